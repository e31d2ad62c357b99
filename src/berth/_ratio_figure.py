"""The figure of a comparison: how many times faster each point is, with the tolerance as a band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from berth import _style as style
from berth._layout import add_below
from berth.coordinates import Rate

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from berth.compare import Compared, Comparison

_WORST = "#B2182B"


def draw_ratios(comparison: Comparison, title: str, notes: list[str], outputs: list[Path]) -> None:
    """Draw a panel per number that was compared, and write it to each output, whole or not at all."""
    with mpl.rc_context(style.RC):
        metrics = list(dict.fromkeys(point.metric for point in comparison.points)) or [""]
        wide = len(metrics) > 1
        width = style.PAGE_WIDTH_IN if wide else style.COLUMN_WIDTH_IN
        figure = Figure(figsize=(width, 2.3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0])
        handles: dict[str, Line2D] = {}
        for ax, metric in zip(axes, metrics, strict=True):
            points = [point for point in comparison.points if point.metric == metric]
            handles |= _panel(ax, points)
            ax.set_title(metric.replace("_", " ") if wide else "")
        axes[0].set_ylabel("Speed relative to the reference")
        figure.suptitle(style.wrapped(title, width, 9), x=0.05 / width, ha="left", fontsize=8, weight="bold")
        add_below(figure, axes[0], notes, list(handles.values()))
        for path in outputs:
            style.save(figure, path)


def _panel(ax: Axes, points: list[Compared]) -> dict[str, Line2D]:
    drawn = [point for point in points if point.speed is not None]
    levels = np.unique([float(point.concurrency) for point in points]) if points else np.empty(0)
    style.level_axis(ax, levels, 11, rates=any(isinstance(point.concurrency, Rate) for point in points))
    ax.axhline(1.0, color=style.GREY, linewidth=0.6)
    if points:
        tolerance = points[0].tolerance
        ax.axhspan(1 - tolerance, 1 / (1 - tolerance), color="#009E73", alpha=0.12, linewidth=0)
    handles: dict[str, Line2D] = {}
    for number, curve in enumerate(dict.fromkeys(point.curve for point in drawn)):
        of_curve = [point for point in drawn if point.curve == curve]
        look: dict[str, Any] = style.look(number, 0)
        ax.plot(*_xy(of_curve), **look)
        handles[curve] = Line2D([], [], label=curve, **look)
    worse = [point for point in drawn if point.regression]
    if worse:
        ring: dict[str, Any] = {"marker": "o", "ms": 7, "mfc": "none", "mec": _WORST, "mew": 1.2, "linestyle": "none"}
        ax.plot(*_xy(worse), **ring)
        handles["slower"] = Line2D([], [], label="slower than allowed", **ring)
    gone = [point for point in points if point.speed is None and point.regression]
    if gone:
        cross: dict[str, Any] = {"marker": "x", "color": _WORST, "ms": 5, "mew": 1.3, "linestyle": "none"}
        ax.plot(
            [p.concurrency for p in gone], [0] * len(gone), transform=ax.get_xaxis_transform(), clip_on=False, **cross
        )
        handles["gone"] = Line2D([], [], label="crashed or failed", **cross)
    speeds = [float(point.speed) for point in drawn if point.speed is not None]
    reach = max([0.1, *(abs(speed - 1) * 1.15 for speed in speeds)])
    ax.set_ylim(max(0.0, 1 - reach), 1 + reach)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:.4g}"))
    if not drawn:
        ax.text(0.5, 0.5, "nothing to compare", transform=ax.transAxes, ha="center", color=style.GREY)
    return handles


def _xy(points: list[Compared]) -> tuple[list[float], list[float]]:
    known = [(float(point.concurrency), point.speed) for point in points if point.speed is not None]
    return [x for x, _ in known], [y for _, y in known]
