"""Figures of the tidy table, in the style of the paper: measured and published curves take the same path."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from berth import _style as style
from berth._curves import CONCURRENCY, RATE, Curve, curves, notes, without_value
from berth._layout import add_below
from berth._marks import Line, draw_marks
from berth._schema import nearest
from berth.errors import BerthError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

logger = logging.getLogger(__name__)

# What may stand on x as the level of a curve's points.
_AXES = (CONCURRENCY, RATE)


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the column on y, its title, and the column on x (concurrency, request rate, or a latency)."""

    column: str
    title: str = ""
    x: str = CONCURRENCY


@dataclass(frozen=True)
class Kind:
    """A kind of figure: its panels, and the label and scale of their common y axis."""

    label: str
    panels: tuple[Panel, ...]
    log: bool = False


def _over_rate(kind: Kind) -> Kind:
    return replace(kind, panels=tuple(replace(panel, x=RATE) for panel in kind.panels))


def _latency(name: str, words: str) -> Kind:
    panels = tuple(Panel(f"{key}_{name}_ms", title) for key, title in _STATISTIC_WORDS.items())
    return Kind(f"{words} (ms)", panels, log=True)


_STATISTIC_WORDS = {"mean": "Mean", "median": "Median", "p99": "99th percentile"}
_LATENCY_WORDS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
_THROUGHPUT = "output_throughput_tok_s"
_DELIVERED = "request_throughput_req_s"
_OVER_CONCURRENCY: dict[str, Kind] = {
    "output_throughput": Kind("Output token throughput (tokens/s)", (Panel(_THROUGHPUT),)),
    "request_throughput": Kind("Request throughput (requests/s)", (Panel(_DELIVERED),)),
    **{name: _latency(name, words) for name, words in _LATENCY_WORDS.items()},
    "goodput": Kind("Goodput (requests/s)", (Panel("request_goodput_req_s"),)),
}
KINDS: dict[str, Kind] = {
    **_OVER_CONCURRENCY,
    **{f"{name}_over_rate": _over_rate(kind) for name, kind in _OVER_CONCURRENCY.items()},
    "throughput_vs_latency": Kind(
        "Output token throughput (tokens/s)",
        tuple(Panel(_THROUGHPUT, x=f"median_{name}_ms") for name in ("ttft", "tpot", "e2el")),
    ),
}

# Above this many curves they are told apart by platform only, and runs become thin lines.
_MANY = 12
_PANEL_HEIGHT_IN = 2.6


def draw_figure(df: pd.DataFrame, kind: str, title: str, outputs: list[Path], note: str = "") -> None:
    """Draw a tidy table as one figure and write it to each output (.pdf, .svg or .png), whole or not at all.

    The same table gives the same bytes. `note` is set below the axes, with the notes of the rows.

    Raises:
        BerthError: there is no such kind, or an output has another ending.
    """
    style.check_formats(outputs)
    with mpl.rc_context(style.RC):
        figure = make_figure(df, kind, title, note)
        for path in outputs:
            style.save(figure, path)
            logger.info("Drew %s", path)


def make_figure(df: pd.DataFrame, kind: str, title: str, note: str = "") -> Figure:
    """The figure of a tidy table, not yet written.

    Raises:
        BerthError: there is no such kind.
    """
    if kind not in KINDS:
        raise BerthError(f'No kind of figure "{kind}".{nearest(kind, list(KINDS))} Kinds: {", ".join(KINDS)}.')
    what = KINDS[kind]
    drawn = [curve for curve in curves(df) if what.panels[0].x not in _AXES or curve.axis == what.panels[0].x]
    panels = [panel for panel in what.panels if _known(panel, drawn)] or [what.panels[0]]
    with mpl.rc_context(style.RC):
        width = style.PAGE_WIDTH_IN if len(panels) > 1 else style.COLUMN_WIDTH_IN
        figure = Figure(figsize=(width, _PANEL_HEIGHT_IN), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, what, drawn, most_ticks=11 if len(panels) == 1 else 6)
        axes[0].set_ylabel(what.label)
        for ax in axes[1:]:
            ax.tick_params(left=False)
        figure.suptitle(style.wrapped(title, width, 9), x=0.05 / width, ha="left", fontsize=8, weight="bold")
        absent = "" if panels[0].x in _AXES else without_value(drawn)
        add_below(figure, axes[0], [line for line in (note, *notes(df), absent) if line], _handles(drawn))
        return figure


def axis_label(column: str) -> str:
    """The words for a number of the table on an axis, without its unit."""
    for kind in KINDS.values():
        for panel in kind.panels:
            if panel.column == column:
                words = kind.label.partition(" (")[0]
                return f"{panel.title} {words[0].lower()}{words[1:]}" if panel.title else words
    return column.replace("_", " ")


def _known(panel: Panel, drawn: list[Curve]) -> bool:
    return any(np.isfinite(_xy(panel, curve)[1]).any() for curve in drawn)


def _xy(panel: Panel, curve: Curve) -> tuple[Numbers, Numbers]:
    x = curve.levels if panel.x in _AXES else curve.values(panel.x)
    return x, np.where(np.isfinite(x), curve.values(panel.column), np.nan)


def _draw_panel(ax: Axes, panel: Panel, kind: Kind, drawn: list[Curve], most_ticks: int) -> None:
    over_levels = panel.x in _AXES
    # The scales come first: matplotlib forgets limits and ticks when a scale changes.
    ax.set_yscale("log" if kind.log else "linear")
    if over_levels:
        levels = np.unique(np.concatenate([np.empty(0), *(curve.levels for curve in drawn)]))
        style.level_axis(ax, levels, most_ticks, rates=panel.x == RATE)
        if (panel.column, panel.x) == (_DELIVERED, RATE) and len(levels):
            _draw_offered(ax, levels)
    else:
        ax.set_xscale("log")
        ax.margins(x=0.08)
        ax.set_xlabel(f"Median {_LATENCY_WORDS[panel.x.split('_')[1]].lower()} (ms)")
    ax.set_title(panel.title)
    lines = []
    for number, curve in enumerate(drawn):
        x, y = _xy(panel, curve)
        look = _look(curve, drawn)
        if len(drawn) <= _MANY:
            _draw_curve(ax, curve, x, y, look, name=f"{panel.x}-{panel.column}-{number}")
        lines.append(Line(curve, x, y, curve.raw(panel.column), look["color"]))
    if len(drawn) > _MANY:
        _draw_bundles(ax, lines, name=f"{panel.x}-{panel.column}")
    if over_levels:
        draw_marks(ax, lines, log=kind.log, merge=len(drawn) > _MANY)
    else:
        style.log_axis(ax.xaxis, dense=False)
        _name_levels(ax, lines)
    if kind.log:
        style.log_axis(ax.yaxis, dense=True)
    else:
        style.linear_axis(ax)
    if not any(np.isfinite(line.y).any() or line.curve.marks for line in lines):
        measured = any(np.isfinite(curve.values(_THROUGHPUT)).any() for curve in drawn)
        words = "not measured" if measured else "no points yet"
        ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", color=style.GREY)
        # Numbers on an axis without data would mean nothing.
        ax.set_yticks([])
        ax.set_title("")


def _draw_offered(ax: Axes, levels: Numbers) -> None:
    """Where a server that answers all that it is asked would be."""
    x = np.geomspace(levels[0], levels[-1], 64)
    ax.plot(x, x, color=style.GREY, linestyle=(0, (2, 2)), linewidth=0.7, gid="offered", zorder=1)
    ax.annotate(
        "offered",
        (levels[-1], levels[-1]),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=style.GREY,
        fontsize=style.NOTE_SIZE_PT,
    )


def _look(curve: Curve, drawn: list[Curve]) -> dict[str, Any]:
    if len(drawn) > _MANY:
        return style.look(curve.group, 0)
    return style.look(curve.group, curve.run, alone=len({other.group for other in drawn}) == 1)


def _draw_curve(ax: Axes, curve: Curve, x: Numbers, y: Numbers, look: dict[str, Any], *, name: str) -> None:
    # NaN at a gap: matplotlib lifts the pen there.
    ax.plot(x[~curve.skipped], y[~curve.skipped], gid=f"curve-{name}", label=curve.label, **look)
    hollow = curve.flagged & np.isfinite(y)
    if hollow.any():
        ax.plot(x[hollow], y[hollow], gid=f"flagged-{name}", zorder=3, **(look | _hollow(look["color"])))


def _draw_bundles(ax: Axes, lines: list[Line], *, name: str) -> None:
    """All runs of a group as one thin line with lifted pen between them: thousands of artists would take minutes."""
    for group in dict.fromkeys(line.curve.group for line in lines):
        of_group = [line for line in lines if line.curve.group == group]
        pen_up = np.array([np.nan])
        x, y = (np.concatenate([part for line in of_group for part in (getattr(line, axis), pen_up)]) for axis in "xy")
        thin: dict[str, Any] = {
            "color": of_group[0].colour,
            "linewidth": 0.5,
            "marker": ".",
            "markersize": 2,
            "markeredgewidth": 0,
        }
        ax.plot(x, y, gid=f"bundle-{name}-{group}", label=of_group[0].curve.platform, alpha=0.6, **thin)
        flags = np.concatenate([part for line in of_group for part in (line.curve.flagged, [False])])
        hollow = flags & np.isfinite(y)
        if hollow.any():
            ax.plot(x[hollow], y[hollow], gid=f"flagged-{name}-{group}", marker="o", **_hollow(of_group[0].colour))


def _hollow(colour: str) -> dict[str, Any]:
    return {
        "color": colour,
        "linestyle": "none",
        "markerfacecolor": "white",
        "markeredgecolor": colour,
        "markeredgewidth": 0.8,
    }


def _name_levels(ax: Axes, lines: list[Line]) -> None:
    """The level beside the points of the first curve: such axes do not show it."""
    for line in lines[:1]:
        known = np.flatnonzero(np.isfinite(line.y))
        for position in known[:: 1 if len(known) < 7 else 2]:
            ax.annotate(
                style.plain(line.curve.levels[position]),
                (line.x[position], line.y[position]),
                xytext=(-3, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=style.GREY,
                fontsize=style.NOTE_SIZE_PT,
                gid="level",
            )


def _handles(drawn: list[Curve]) -> list[Line2D]:
    handles = []
    if len(drawn) <= _MANY:
        handles = [Line2D([], [], label=curve.label, **_look(curve, drawn)) for curve in drawn]
    else:
        groups = Counter((curve.group, curve.platform) for curve in drawn)
        for (group, platform), runs in groups.items():
            words = f"{platform}, {runs} run{'s' if runs > 1 else ''}"
            handles.append(Line2D([], [], label=words, color=style.look(group, 0)["color"]))
    if any(curve.flagged.any() for curve in drawn):
        handles.append(Line2D([], [], label="flagged (hollow)", marker="o", **_hollow(style.GREY)))
    return handles
