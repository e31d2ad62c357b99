"""Crosses and words at the points of a figure that crashed or failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from berth._curves import Curve, Mark

    Numbers = NDArray[np.float64]

_SIZE_PT = 6.5


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn in one panel: its points (NaN at a gap), its colour, and the values that a crash left."""

    curve: Curve
    x: Numbers
    y: Numbers
    raw: Numbers
    colour: str


@dataclass(frozen=True)
class _Place:
    line: Line
    mark: Mark
    x: float
    y: float
    start: tuple[float, float] | None


def draw_marks(ax: Axes, lines: Sequence[Line], *, over_concurrency: bool, log: bool, merge: bool) -> None:
    """A cross and a word at each point that crashed or failed; alike words at one place are merged if asked.

    A crash is joined to the last point of its curve by dots, which are no part of the curve.
    """
    places = [_place(line, mark, over_concurrency, log) for line in lines for mark in line.curve.marks]
    alike = Counter((place.x, place.mark.text) for place in places)
    written: set[tuple[float, str]] = set()
    # Words that share a place are stacked; heights above it in points.
    heights: dict[float, float] = defaultdict(lambda: 3.0)
    for place in places:
        mark, x, y = place.mark, place.x, place.y
        colour = place.line.colour
        if place.start is not None and mark.crashed and over_concurrency:
            xs, ys = zip(place.start, (x, y), strict=True)
            ax.plot(xs, ys, color=colour, linestyle=":", linewidth=0.8, gid="crash-line")
        ax.plot([x], [y], color=colour, marker="x", markersize=4.5, markeredgewidth=1.2, clip_on=False, gid="mark")
        text = mark.text if over_concurrency else f"{mark.text} at {mark.concurrency}"
        if merge:
            if (x, mark.text) in written:
                continue
            written.add((x, mark.text))
            count = alike[x, mark.text]
            text += f" ({count} runs)" if count > 1 else ""
        upright = over_concurrency and not mark.crashed
        height = 0.55 * _SIZE_PT * len(text) + 4 if upright else _SIZE_PT + 1
        first = x <= place.line.curve.concurrency[0] or not over_concurrency
        ax.annotate(
            text,
            (x, y),
            xytext=(0 if upright else 5 if first else -5, heights[x] + (2 if upright else 0)),
            textcoords="offset points",
            gid="crash" if mark.crashed else "failure",
            **_words(colour, "center" if upright else "left" if first else "right", 90 if upright else 0),
        )
        heights[x] += height


def _words(colour: str, side: str, rotation: int) -> dict[str, Any]:
    return {"color": colour, "fontsize": _SIZE_PT, "ha": side, "va": "bottom", "rotation": rotation}


def _place(line: Line, mark: Mark, over_concurrency: bool, log: bool) -> _Place:
    """Where a mark stands, and the last point of its curve before it.

    A throughput that was counted until the crash is a place of its own, otherwise it is 0. A latency has no such
    value: the mark stands at the height of the last point. Against a latency it stands at that point.
    """
    before = np.flatnonzero(np.isfinite(line.y[: mark.position]))
    start = (float(line.x[before[-1]]), float(line.y[before[-1]])) if len(before) else None
    if not over_concurrency:
        x, y = start or _first(line)
        return _Place(line, mark, x, y, start)
    if log:
        return _Place(line, mark, mark.concurrency, (start or _first(line))[1], start)
    counted = float(line.raw[mark.position]) if mark.crashed else 0.0
    return _Place(line, mark, mark.concurrency, counted if np.isfinite(counted) else 0.0, start)


def _first(line: Line) -> tuple[float, float]:
    known = np.flatnonzero(np.isfinite(line.y))
    return (float(line.x[known[0]]), float(line.y[known[0]])) if len(known) else (1.0, 1.0)
