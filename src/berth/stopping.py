"""Which levels of a run are measured, where its sweep may stop early and refine around the knee. Pure.

The same points give the same decision, whoever asks: a sweep after each of its points, the plan before anything starts,
the table when it is made. Nothing else is kept about it, so that a limit that is changed, a point that is deleted, or
an option that is taken away decides anew, and what was measured stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from berth.coordinates import Rate, level_words
from berth.delivered import finite_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.coordinates import Level

# A rate between two others has no more digits than anybody wants to read.
_RATE_DIGITS = 3


@dataclass(frozen=True)
class Seen:
    """What counts of a measured point: output tokens/s, and latencies in ms by the client's names (p99_ttft_ms)."""

    throughput: float
    latencies_ms: Mapping[str, float | None]

    @classmethod
    def of(cls, throughput: Any, values: Mapping[str, Any]) -> Seen:
        """From a client's result, or a row of the table."""
        latencies = {name: finite_number(value) for name, value in values.items() if str(name).endswith("_ms")}
        return cls(finite_number(throughput) or 0.0, latencies)


@dataclass(frozen=True)
class Asked:
    """What a benchmark asks of each run: its levels, when to stop, and where to refine."""

    levels: tuple[Level, ...]
    stop_when: Mapping[str, Any] = field(default_factory=dict)
    refine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decides(self) -> bool:
        """Whether what is measured depends on the points."""
        return bool(self.stop_when or self.refine)


@dataclass(frozen=True)
class Decision:
    """`wanted` are the levels that belong to the run, rising, and `left_out` those that do not, with the reason."""

    wanted: tuple[Level, ...]
    left_out: Mapping[Level, str]


def decide(asked: Asked, seen: Mapping[Level, Seen], *, failed: frozenset[Level] = frozenset()) -> Decision:
    """What a run needs, from the points that it has.

    Levels above the one at which it stops are left out, unless they are measured. Levels around the knee are added
    once all others are measured. A level that has just failed waits for the next sweep, and decides nothing.
    """
    coarse = tuple(sorted(asked.levels))
    at, why = _stop(asked.stop_when, [level for level in coarse if level in seen], seen)
    left_out = {level: why for level in coarse if at is not None and level > at and level not in seen}
    wanted = [level for level in coarse if level not in left_out]
    if asked.refine and all(level in seen or level in failed for level in wanted):
        measured = [level for level in wanted if level in seen]
        wanted += _around_knee(measured, seen, int(asked.refine["points"]))
    return Decision(tuple(sorted({*wanted, *seen})), left_out)


def _stop(
    stop_when: Mapping[str, Any], measured: Sequence[Level], seen: Mapping[Level, Seen]
) -> tuple[Level | None, str]:
    """The lowest level at which a limit is reached, and a sentence on it."""
    saturated = stop_when.get("saturated")
    limits = {name: limit for name, limit in stop_when.items() if name != "saturated"}
    best, still = 0.0, 0
    for level in measured:
        point = seen[level]
        for name, limit_ms in limits.items():
            latency, statistic = name.removesuffix("_ms").split("_")
            found_ms = point.latencies_ms.get(f"{statistic}_{latency}_ms")
            if found_ms is not None and found_ms > limit_ms:
                words = f"{statistic} {latency.upper()} {found_ms:.4g} ms, above {limit_ms:g} ms"
                return level, f"stopped at {level_words(level)}: {words}"
        if saturated:
            still = still + 1 if best and point.throughput < best * (1 + saturated["gain"]) else 0
            best = max(best, point.throughput)
            if still >= saturated["points"]:
                words = f"throughput grew by less than {saturated['gain']:.3g} of itself at {still} levels"
                return level, f"stopped at {level_words(level)}: {words}"
    return None, ""


def knee(measured: Sequence[Level], seen: Mapping[Level, Seen]) -> Level | None:
    """The level at which throughput divided by mean end-to-end latency is highest; None where it is not known.

    Kleinrock called the quotient power. It does not depend on how far the sweep went.
    """
    power = {
        level: seen[level].throughput / latency_ms
        for level in measured
        if (latency_ms := seen[level].latencies_ms.get("mean_e2el_ms"))
    }
    return max(power, key=lambda level: power[level]) if power else None


def _around_knee(measured: Sequence[Level], seen: Mapping[Level, Seen], points: int) -> list[Level]:
    """At most so many levels between the knee and its neighbours, evenly spaced by ratio on both sides."""
    at = knee(measured, seen)
    if at is None:
        return []
    place = measured.index(at)
    low = measured[place - 1] if place else None
    high = measured[place + 1] if place + 1 < len(measured) else None
    below = points // 2 if high is not None else points
    found = _between(low, at, below) if low is not None else []
    if high is not None:
        found += _between(at, high, points - len(found))
    return found


def _between(low: Level, high: Level, count: int) -> list[Level]:
    steps = [low * math.pow(high / low, part / (count + 1)) for part in range(1, count + 1)]
    if isinstance(low, Rate):
        levels: list[Level] = [Rate(f"{step:.{_RATE_DIGITS}g}") for step in steps]
    else:
        levels = [round(step) for step in steps]
    return sorted({level for level in levels if low < level < high})
