"""Where the spread of repeated runs comes from: platform, host, run, or the single point. Pure.

The model, on logarithms so that a standard deviation is a relative spread:

    log y = level + platform + platform x level + host + run + point

Levels are fixed; all else is random, host nested in platform and run in host. Henderson's third method: what each term
takes off the residual sum of squares, set equal to its expectation. It needs no balance. docs/statistics.md says more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from berth.stats import spread_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from berth.coordinates import Level

    Matrix = NDArray[np.float64]

_POINT = "point"
TERMS = ("platform", "platform x level", "host", "run", _POINT)
# What repeating a measurement brings, on one platform.
REPEATING = ("host", "run", _POINT)
# Below this many degrees of freedom a component is an order of magnitude and no more.
FEW_DF = 5


@dataclass(frozen=True)
class Observation:
    """One valid point: its number must be above 0. `host` is "" where it is not known."""

    platform: str
    host: str
    run: str
    level: Level
    value: float


@dataclass(frozen=True)
class Component:
    """One term's spread: `sd` is relative (0.01 is 1 %), `share` its part of all variance between points of a level.

    `sd` is None where the term cannot be estimated, and `told` says why, or how far to trust it. `low` and `high` bound
    the confidence interval of the point's own spread; the others' has no simple form.
    """

    term: str
    sd: float | None
    share: float | None
    df: int
    low: float | None
    high: float | None
    told: str


def split(observations: Sequence[Observation], confidence: float) -> list[Component]:
    """One component per term of TERMS, in that order; nothing for no observations."""
    if not observations:
        return []
    y = np.log([each.value for each in observations])
    groups = _groups(observations)
    bases, known = _spaces(groups)
    dfs = {term: basis.shape[1] for term, basis in bases.items()} | {_POINT: len(y) - known.shape[1]}
    squares = {term: _square(basis, y) for term, basis in bases.items()} | {_POINT: float(y @ y) - _square(known, y)}
    estimated = [term for term in TERMS if dfs[term] > 0]
    # The expected sum of squares of a term holds the variances of the later terms too, each so many times.
    design = {term: _indicator(groups[term]) for term in estimated if term != _POINT}
    times = np.diag([float(dfs[term]) for term in estimated])
    for row, term in enumerate(estimated):
        if term != _POINT:
            times[row, :] = [_square(bases[term], design[each]) if each != _POINT else dfs[term] for each in estimated]
    solved = np.linalg.solve(times, [squares[term] for term in estimated])
    variances = {term: float(value) for term, value in zip(estimated, solved, strict=True)}
    total = sum(max(value, 0.0) for value in variances.values())
    return [
        _component(term, variances[term], total, dfs, confidence)
        if term in variances
        else Component(term, None, None, 0, None, None, _why_not(term, observations))
        for term in TERMS
    ]


def _component(term: str, variance: float, total: float, dfs: dict[str, int], confidence: float) -> Component:
    # Rounding leaves traces where all values are equal.
    sd = math.sqrt(variance) if variance > 1e-24 else 0.0
    low, high = spread_interval(sd, dfs[term], confidence) if term == _POINT and sd else (None, None)
    share = max(variance, 0.0) / total if total else None
    return Component(term, sd, share, dfs[term], low, high, _trust(term, variance, dfs))


def _groups(observations: Sequence[Observation]) -> dict[str, list[tuple[object, ...]]]:
    """The group of each observation per term, nested names included."""
    hosted = all(each.host for each in observations)
    return {
        "level": [(each.level,) for each in observations],
        "platform": [(each.platform,) for each in observations],
        "platform x level": [(each.platform, each.level) for each in observations],
        "host": [(each.platform, each.host if hosted else "") for each in observations],
        "run": [(each.platform, each.host if hosted else "", each.run) for each in observations],
        "point": [(index,) for index in range(len(observations))],
    }


def _indicator(groups: Sequence[tuple[object, ...]]) -> Matrix:
    names = {name: column for column, name in enumerate(dict.fromkeys(groups))}
    matrix = np.zeros((len(groups), len(names)))
    matrix[np.arange(len(groups)), [names[name] for name in groups]] = 1
    return matrix


def _spaces(groups: dict[str, list[tuple[object, ...]]]) -> tuple[dict[str, Matrix], Matrix]:
    """For each term but the last an orthonormal basis of what it adds to the terms before; and all of them together."""
    known = _orthonormal(_indicator(groups["level"]))
    bases = {}
    for term in TERMS[:-1]:
        added = _indicator(groups[term])
        bases[term] = _orthonormal(added - known @ (known.T @ added))
        known = np.hstack([known, bases[term]])
    return bases, known


def _square(basis: Matrix, values: Matrix) -> float:
    """The squared length of what of the values lies in the basis' span."""
    return float(np.sum((basis.T @ values) ** 2))


def _orthonormal(matrix: Matrix) -> Matrix:
    """An orthonormal basis of the columns' span."""
    left, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-9 * max(1.0, float(sizes[0]))], dtype=np.float64)


def _why_not(term: str, observations: Sequence[Observation]) -> str:
    if term == "host" and not all(each.host for each in observations):
        return "cannot be estimated: the host of a run is not known, so that hosts count with the runs"
    return {
        "platform": "cannot be estimated: one platform",
        "platform x level": "cannot be estimated: one platform, or no level that two have",
        "host": "cannot be estimated: no platform has runs on two hosts",
        "run": "cannot be told from the host: no host has two runs",
        "point": "cannot be estimated: no level was measured in two runs beyond what the other terms explain",
    }[term]


def _trust(term: str, variance: float, dfs: dict[str, int]) -> str:
    told = []
    if variance < 0:
        told.append("the estimate is negative, told as 0: no more than the later terms explain")
    if term == "host" and dfs["run"] == 0:
        told.append("host and run together: no host has two runs")
    if dfs[term] < FEW_DF:
        told.append(f"{dfs[term]} degree{'s' if dfs[term] > 1 else ''} of freedom: an order of magnitude, no more")
    if term == "platform" and variance > 0:
        told.append("platforms are no random sample: see the test of platforms")
    return "; ".join(told)
