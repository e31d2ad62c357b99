"""Crosses and words at the points of a figure that crashed or failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def draw_marks(ax: Axes, lines: Sequence[Line], *, log: bool, merge: bool) -> None:
    """A cross and a word at each point that crashed or failed, on axes over concurrency or rate.

    A crash is joined to the last point of its curve by dots, which are no part of the curve. Alike words at one
    level are merged if asked.
    """
    places = [_place(line, mark, log) for line in lines for mark in line.curve.marks]
    alike = Counter((place.x, place.mark.text) for place in places)
    written: set[tuple[float, str]] = set()
    # Words that share a place are stacked; heights above it in points.
    heights: dict[float, float] = defaultdict(lambda: 3.0)
    for place in places:
        mark, x, y = place.mark, place.x, place.y
        colour = place.line.colour
        if place.start is not None and mark.crashed:
            xs, ys = zip(place.start, (x, y), strict=True)
            ax.plot(xs, ys, color=colour, linestyle=":", linewidth=0.8, gid="crash-line")
        # A failed point stands on the lower edge whatever the scale.
        on = ax.transData if mark.crashed else ax.get_xaxis_transform()
        if not mark.left_out:
            ax.plot([x], [y], "x", color=colour, ms=4.5, mew=1.2, clip_on=False, gid="mark", transform=on)
        text = mark.text
        if merge:
            if (x, text) in written:
                continue
            written.add((x, text))
            count = alike[x, text]
            text += f" ({count} runs)" if count > 1 else ""
        first = x <= place.line.curve.levels[0]
        side = 1 if first else -1
        ax.annotate(
            text,
            (x, y),
            xycoords=on,
            xytext=(side * (5 if mark.crashed else 3), heights[x]),
            textcoords="offset points",
            gid="crash" if mark.crashed else "failure",
            color=colour,
            fontsize=_SIZE_PT,
            ha="left" if first else "right",
            va="bottom",
            rotation=0 if mark.crashed else 90,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            # Otherwise a stack of long words would push the axes together.
            in_layout=False,
        )
        heights[x] += _SIZE_PT + 1 if mark.crashed else 0.55 * _SIZE_PT * len(text) + 4


def _place(line: Line, mark: Mark, log: bool) -> _Place:
    """Where a mark stands, and the last point of its curve before it.

    A failed point stands on the lower edge of the axes. So does a crash, or at the throughput that was counted until
    then; a latency has no such value, so that it stands at the height of the last point.
    """
    known = np.flatnonzero(np.isfinite(line.y))
    before = known[known < mark.position]
    start = (float(line.x[before[-1]]), float(line.y[before[-1]])) if len(before) else None
    if not mark.crashed:
        height = 0.0
    elif log:
        height = start[1] if start else float(line.y[known[0]]) if len(known) else 1.0
    else:
        counted = float(line.raw[mark.position])
        height = counted if np.isfinite(counted) else 0.0
    return _Place(line, mark, mark.level, height, start)
