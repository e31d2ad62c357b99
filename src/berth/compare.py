"""Two sets of points side by side: ratio, tolerance and verdict of each point and of each curve. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from berth.analysis import lower_is_better
from berth.columns import PLOTTED, row_level
from berth.matching import Pair, pair_curves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.analysis import CompareSettings, Tolerance
    from berth.coordinates import Level
    from berth.matching import CurveData, Difference
    from berth.sources import Source

Verdict = Literal["ok", "slower", "faster", "missing", "not comparable"]
_JUDGED = ("ok", "slower", "faster")


@dataclass(frozen=True)
class Side:
    """One side of a point: the mean over its valid runs, their number and relative spread, and what does not count."""

    value: float | None
    runs: int
    cv: float | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """One number at one point. `ratio` is ours over theirs; `speed` is above 1 where ours is the faster one."""

    curve: str
    # A rate where rates were swept.
    concurrency: Level
    metric: str
    ours: Side
    theirs: Side
    ratio: float | None
    speed: float | None
    tolerance: float
    verdict: Verdict
    why: str
    regression: bool


@dataclass(frozen=True)
class CurveVerdict:
    """One number over a whole curve: the geometric mean of `speed` over the points that both have."""

    curve: str
    metric: str
    points: int
    speed: float
    tolerance: float
    verdict: Verdict
    regression: bool


@dataclass(frozen=True)
class Comparison:
    """The outcome: pairs of curves with their differences, points, curves."""

    pairs: tuple[Pair, ...]
    points: tuple[Compared, ...]
    curves: tuple[CurveVerdict, ...]

    @property
    def regressions(self) -> int:
        """Points and curves that are worse than allowed."""
        return sum(point.regression for point in self.points) + sum(curve.regression for curve in self.curves)

    @property
    def judged(self) -> int:
        """Points whose verdict is ok, slower or faster."""
        return sum(each.verdict in _JUDGED for each in self.points)

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing is worse than allowed."""
        return self.judged > 0 and not self.regressions


def compare(ours: Source, theirs: Source, settings: CompareSettings) -> Comparison:
    """The comparison of two sources by the numbers that `settings` names."""
    pairs = pair_curves(ours, theirs)
    points = [
        point
        for pair in pairs
        for metric, limit in settings.metrics.items()
        for point in _points(pair, metric, limit, settings)
    ]
    curves = []
    for metric, limit in settings.metrics.items():
        speeds: dict[str, list[float]] = defaultdict(list)
        for point in points:
            if point.metric == metric and point.verdict in _JUDGED and point.speed is not None:
                speeds[point.curve].append(point.speed)
        if limit.curve_tolerance is not None:
            curves += [_curve(name, metric, values, limit.curve_tolerance) for name, values in speeds.items()]
    return Comparison(tuple(pairs), tuple(points), tuple(curves))


def defining_differences(pair: Pair, settings: CompareSettings) -> list[Difference]:
    """The differences that make a pair two measurements, without those that the settings accept."""
    return [each for each in pair.differences if each.defining and each.what not in settings.accept]


def _points(pair: Pair, metric: str, limit: Tolerance, settings: CompareSettings) -> list[Compared]:
    ours, theirs = _levels(pair.ours), _levels(pair.theirs)
    other = [each.what for each in defining_differences(pair, settings)]
    found = []
    for level in sorted(set(ours) | set(theirs)):
        a, b = _side(ours.get(level, ()), metric), _side(theirs.get(level, ()), metric)
        if a.value is None and b.value is None:
            continue
        ratio = a.value / b.value if a.value is not None and b.value else None
        speed = (1 / ratio if lower_is_better(metric) else ratio) if ratio else ratio
        if a.value is None:
            # A point that was tried and is not valid is worse than before; one that nobody asked for is not.
            tried = any(row["status"] in ("crashed", "failed") for row in ours.get(level, ()))
            verdict: Verdict = "missing"
            why, regression = "; ".join(a.left_out) or "not measured", tried and not other
        elif speed is None:
            verdict, why, regression = "missing", "the reference has none" + _because(b), False
        elif other:
            verdict, why, regression = "not comparable", "another " + ", ".join(other), False
        else:
            verdict = _verdict(speed, limit.tolerance)
            why, regression = "; ".join((*a.left_out, *b.left_out)), verdict == "slower"
        found.append(Compared(pair.label, level, metric, a, b, ratio, speed, limit.tolerance, verdict, why, regression))
    return found


def _because(side: Side) -> str:
    return f" ({'; '.join(side.left_out)})" if side.left_out else ""


def _verdict(speed: float, tolerance: float) -> Verdict:
    # Symmetric: as many times faster is as far away as so many times slower.
    if speed < 1 - tolerance:
        return "slower"
    return "faster" if speed > 1 / (1 - tolerance) else "ok"


def _curve(name: str, metric: str, speeds: Sequence[float], tolerance: float) -> CurveVerdict:
    speed = math.exp(statistics.fmean(math.log(each) for each in speeds))
    verdict = _verdict(speed, tolerance)
    # The mean of one point says nothing that the point does not.
    return CurveVerdict(name, metric, len(speeds), speed, tolerance, verdict, verdict == "slower" and len(speeds) > 1)


def _levels(curve: CurveData | None) -> dict[Level, list[Mapping[str, Any]]]:
    levels: dict[Level, list[Mapping[str, Any]]] = defaultdict(list)
    for row in curve.rows if curve else ():
        levels[row_level(row)].append(row)
    return levels


def _side(rows: Sequence[Mapping[str, Any]], metric: str) -> Side:
    valid = [float(row[metric]) for row in rows if row["status"] in PLOTTED and row.get(metric)]
    left_out = tuple(
        f"run {row['run']}: {str(row['status']).replace('_', ' ')}" for row in rows if row["status"] not in PLOTTED
    )
    mean = statistics.fmean(valid) if valid else None
    cv = statistics.stdev(valid) / mean if mean and len(valid) > 1 else None
    return Side(mean, len(valid), cv, left_out)
