"""Statistics of repeated runs: means, intervals, tests and effect sizes. Pure: numbers in, numbers out.

docs/statistics.md gives the formulas, and says what few runs cannot tell.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

# More than a site would ever repeat: beyond it a wished precision is called out of reach.
MOST_RUNS = 1000
# From such a t on scipy's noncentral distribution loses its digits, and it has none from a million on.
_FAR = 10_000.0


@dataclass(frozen=True)
class Mean:
    """The mean of `n` runs; `low` and `high` bound its confidence interval, None where one run has none."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    @property
    def cv(self) -> float | None:
        """The coefficient of variation: standard deviation over mean."""
        return self.sd / self.mean if self.sd is not None and self.mean else None


@dataclass(frozen=True)
class WelchTest:
    """Welch's test of two groups of runs, and Hedges' g with its confidence interval.

    What is None cannot be computed: a group with one run, or no spread at all.
    """

    t: float | None
    df: float | None
    p: float | None
    g: float | None
    g_low: float | None
    g_high: float | None


def mean_of(values: Sequence[float], confidence: float) -> Mean:
    """The mean with Student's confidence interval.

    Raises:
        ValueError: there are no values.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Mean(n, mean, None, None, None)
    sd = statistics.stdev(values)
    half = t_quantile(confidence, n - 1) * sd / math.sqrt(n)
    return Mean(n, mean, sd, mean - half, mean + half)


def t_quantile(confidence: float, df: float) -> float:
    """How many standard errors a two-sided interval reaches to each side."""
    return float(special.stdtrit(df, 0.5 + confidence / 2))


def pooled(spreads: Sequence[tuple[int, float]]) -> tuple[float, int] | None:
    """Pairs of (runs, spread) as one root mean square and its degrees of freedom; None where all have one run."""
    df = sum(n - 1 for n, _ in spreads)
    return (math.sqrt(sum((n - 1) * spread**2 for n, spread in spreads) / df), df) if df else None


def spread_interval(sd: float, df: int, confidence: float) -> tuple[float, float]:
    """The chi-square confidence interval of a standard deviation."""
    tail = (1 - confidence) / 2
    return (
        sd * math.sqrt(df / _chi2_quantile(1 - tail, df)),
        sd * math.sqrt(df / _chi2_quantile(tail, df)),
    )


def _chi2_quantile(probability: float, df: int) -> float:
    return float(2 * special.gammaincinv(df / 2, probability))


def runs_for(cv: float, precision: float, confidence: float) -> int | None:
    """The fewest runs whose interval reaches at most `precision` (relative) to each side of the mean.

    At least 2, because one run has no interval; None where more than MOST_RUNS would be needed.
    """
    for n in range(2, MOST_RUNS + 1):
        if t_quantile(confidence, n - 1) * cv / math.sqrt(n) <= precision:
            return n
    return None


def welch(first: Sequence[float], second: Sequence[float], confidence: float) -> WelchTest:
    """Whether the means of two groups differ, without the assumption of equal spread, and by how much."""
    if min(len(first), len(second)) < 2:
        return WelchTest(None, None, None, None, None, None)
    a, b = statistics.variance(first) / len(first), statistics.variance(second) / len(second)
    if a + b == 0:
        return WelchTest(None, None, None, None, None, None)
    difference = statistics.fmean(first) - statistics.fmean(second)
    t = difference / math.sqrt(a + b)
    df = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    return WelchTest(t, df, float(2 * special.stdtr(df, -abs(t))), *_hedges(first, second, difference, confidence))


def _hedges(
    first: Sequence[float], second: Sequence[float], difference: float, confidence: float
) -> tuple[float, float, float]:
    """Hedges' g and its interval from the noncentral t distribution."""
    n, m = len(first), len(second)
    df = n + m - 2
    sd = math.sqrt(((n - 1) * statistics.variance(first) + (m - 1) * statistics.variance(second)) / df)
    # Exact, where the usual 1 - 3 / (4 df - 1) is off by a tenth for two runs each.
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    scale = math.sqrt(1 / n + 1 / m)
    t = difference / sd / scale
    low, high = (_noncentrality(t, df, tail) for tail in ((1 + confidence) / 2, (1 - confidence) / 2))
    return difference / sd * correction, low * scale * correction, high * scale * correction


def _noncentrality(t: float, df: int, probability: float) -> float:
    """The noncentrality with which a noncentral t falls below `t` with this probability."""
    if abs(t) > _FAR:
        # Beside such a t the normal part of the distribution is nothing: what is left is its chi, to within 1 / t^2.
        return t * math.sqrt(_chi2_quantile(1 - probability if t > 0 else probability, df) / df)
    # A second of each start of what reports and draws, and only comparisons need it.
    from scipy import optimize, stats  # noqa: PLC0415

    def off(noncentrality: float) -> float:
        return float(stats.nct.cdf(t, df, noncentrality)) - probability

    # Far from t the answer is certain; the bracket grows until it holds the root.
    reach = 5.0 + abs(t)
    while off(t - reach) < 0:
        reach *= 2
    low = t - reach
    reach = 5.0 + abs(t)
    while off(t + reach) > 0:
        reach *= 2
    return float(optimize.brentq(off, low, t + reach))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
