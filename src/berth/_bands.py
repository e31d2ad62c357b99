"""The figure of `statistics`: the mean of each definition over concurrency, with bands for the spread of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from berth import _style as style
from berth._layout import add_below
from berth.columns import BY_NAME
from berth.coordinates import Rate
from berth.figures import axis_label

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from berth.analysis import StatisticsSettings
    from berth.spread import Group, Spread


def draw_bands(spread: Spread, title: str, notes: list[str], settings: StatisticsSettings, outputs: list[Path]) -> None:
    """Draw means, ranges and intervals over the mean of the spread beside it, and write them to each output."""
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE_WIDTH_IN, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        levels = np.unique([float(level.concurrency) for group in spread.groups for level in group.levels])
        rates = any(isinstance(level.concurrency, Rate) for group in spread.groups for level in group.levels)
        for ax in (left, right):
            style.level_axis(ax, levels, 11, rates=rates)
        handles = []
        for number, group in enumerate(spread.groups):
            look: dict[str, Any] = style.look(number, 0)
            _mean(left, group, look)
            _relative(right, group, look)
            runs = f"{group.runs} run{'s' if group.runs != 1 else ''}"
            handles.append(Line2D([], [], label=f"{group.label}, {runs}", **look))
        unit = BY_NAME[spread.metric].unit
        left.set_ylabel(f"{axis_label(spread.metric)} ({unit})")
        right.set_ylabel("Relative to the mean (%)")
        style.linear_axis(left)
        highest = max(
            (value for group in spread.groups for level in group.levels for value in level.numbers), default=1.0
        )
        # An interval of two runs can reach far above the data, and is cut.
        left.set_ylim(0, 1.15 * highest)
        _frame(right)
        percent = f"{100 * settings.confidence:g} %"
        told = [
            (
                f"Dark band: lowest to highest run. Light band: {percent} confidence interval of the mean (Student's "
                "t; wide where there are few runs). A level with one run has no band. Dots: runs."
            ),
            *notes,
        ]
        figure.suptitle(
            style.wrapped(title, style.PAGE_WIDTH_IN, 9),
            x=0.05 / style.PAGE_WIDTH_IN,
            ha="left",
            fontsize=8,
            weight="bold",
        )
        add_below(figure, left, told, handles)
        for path in outputs:
            style.save(figure, path)


def _mean(ax: Axes, group: Group, look: dict[str, Any]) -> None:
    x, mean, low, high, least, most = _arrays(group)
    ax.fill_between(x, np.maximum(low, 0), high, color=look["color"], alpha=0.13, linewidth=0)
    ax.fill_between(x, least, most, color=look["color"], alpha=0.4, linewidth=0)
    ax.plot(x, mean, **look)


def _relative(ax: Axes, group: Group, look: dict[str, Any]) -> None:
    x, mean, low, high, least, most = _arrays(group)
    for bottom, top, alpha in ((low, high, 0.13), (least, most, 0.35)):
        percents = [100 * (edge / mean - 1) for edge in (bottom, top)]
        ax.fill_between(x, *percents, color=look["color"], alpha=alpha, linewidth=0)
    dots = [
        (level.concurrency, 100 * (value / level.mean.mean - 1))
        for level in group.levels
        if level.mean
        for value in level.numbers
    ]
    if dots:
        ax.plot(*zip(*dots, strict=True), ".", color=look["color"], ms=3, mew=0)


def _arrays(group: Group) -> tuple[np.ndarray[Any, Any], ...]:
    """Concurrency, mean, interval and range; NaN where there is none, so that neither line nor band crosses a gap."""
    rows = []
    for level in group.levels:
        mean = level.mean
        if mean is None:
            rows.append([level.concurrency, *[np.nan] * 5])
            continue
        interval = [np.nan, np.nan] if mean.low is None or mean.high is None else [mean.low, mean.high]
        reach = [min(level.numbers), max(level.numbers)] if mean.n > 1 else [np.nan, np.nan]
        rows.append([level.concurrency, mean.mean, *interval, *reach])
    return tuple(np.array(rows, dtype=float).T) if rows else tuple(np.empty((6, 0)))


def _frame(ax: Axes) -> None:
    """Limits that show the runs: an interval of two runs may be many times as wide, and is cut."""
    reach = max([1.0, *(abs(y) for line in ax.get_lines() for y in np.asarray(line.get_ydata(), dtype=float))])
    ax.axhline(0, color=style.GREY, linewidth=0.5)
    ax.set_ylim(-1.6 * reach, 1.6 * reach)
