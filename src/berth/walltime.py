"""How long a sweep takes, and how it is cut into jobs that a site allows. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth.coordinates import level_words
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from berth.coordinates import Level, Rate

# The published start of Scout, 217,283,738,720 bytes, took 840 s: weights 380 s, image pull 279 s, compilation 40 s,
# graph capture 36 s; the 105 s that are left over are counted with what does not depend on the model.
LOAD_BYTES_PER_S = 217_283_738_720 / 380
START_FIXED_S = 840.0 - 380.0
# Published wall time of a point beyond its measured time: 12.4 to 13.7 s.
POINT_OVERHEAD_S = 14.0
# The published client's 1000 prompts of ShareGPT gave 181,738 to 182,420 output tokens.
OUTPUT_TOKENS_PER_PROMPT = 182.0
# Published runs of one point differ by up to a fourth (405B at 512: 1225 and 1527 tokens/s), and a server that dies
# starts once more. Half as much again covers both in any sweep that is longer than its start.
SAFETY = 1.5
# A job begins with two nested starts of Snakemake: 8 s on an idle node, and more where Python is on a slow file system.
JOB_START_S = 60.0
# sbatch(1), --signal: the warning may come up to a minute earlier than asked for.
WARNING_EARLY_S = 60.0


@dataclass(frozen=True)
class Estimate:
    """Seconds that a server takes to become warm, and that each point takes; without a margin."""

    start_s: float
    points_s: Mapping[Level, float]

    def job_s(self, levels: Iterable[Level], warn_s: float) -> float:
        """Seconds to ask a scheduler for: server and points with a margin, the job's own start, and its warned end."""
        work_s = SAFETY * (self.start_s + sum(self.points_s[level] for level in levels))
        return JOB_START_S + work_s + WARNING_EARLY_S + warn_s

    def job_minutes(self, levels: Iterable[Level], warn_s: float) -> int:
        """The same in whole minutes, which is what schedulers count in."""
        return math.ceil(self.job_s(levels, warn_s) / 60)


def start_s(weights_bytes: int) -> float:
    """Seconds from the start of a server until it is warm, at the rates of the published logs."""
    return START_FIXED_S + weights_bytes / LOAD_BYTES_PER_S


def from_throughput(throughput_tok_s: Mapping[int, float], num_prompts: int) -> dict[int, float]:
    """Seconds per point from a curve of output tokens per second by concurrency."""
    tokens = OUTPUT_TOKENS_PER_PROMPT * num_prompts
    return {level: tokens / rate + POINT_OVERHEAD_S for level, rate in throughput_tok_s.items() if rate > 0}


def point_seconds(
    levels: Iterable[int], measured_s: Mapping[int, float], curve_s: Mapping[int, float]
) -> dict[int, float]:
    """Seconds of each level: as measured before; else from the curve, scaled by the nearest level that was measured."""
    points = {}
    for level in levels:
        if level in measured_s:
            points[level] = measured_s[level]
            continue
        scale = 1.0
        if measured_s:
            near = min(measured_s, key=lambda known: abs(math.log(known / level)))
            scale = measured_s[near] / interpolated(near, curve_s)
        points[level] = scale * interpolated(level, curve_s)
    return points


def rate_seconds(
    rates: Iterable[Rate], num_prompts: int, measured_s: Mapping[Level, float], curve_s: Mapping[int, float]
) -> dict[Level, float]:
    """Seconds of each rate: as measured before; else until all prompts are sent, and no less than a full server takes.

    The highest level of the curve says how long that is.
    """
    full_s = curve_s[max(curve_s)]
    return {rate: measured_s.get(rate, max(num_prompts / rate + POINT_OVERHEAD_S, full_s)) for rate in rates}


def interpolated(level: int, curve_s: Mapping[int, float]) -> float:
    """Seconds at a level of a curve, between its levels on logarithmic axes.

    Below its lowest level, half the concurrency takes twice as long; above its highest, more does not help.
    """
    known = sorted(curve_s)
    if level <= known[0]:
        return curve_s[known[0]] * known[0] / level
    if level >= known[-1]:
        return curve_s[known[-1]]
    low = max(each for each in known if each <= level)
    high = min(each for each in known if each >= level)
    if low == high:
        return curve_s[low]
    part = math.log(level / low) / math.log(high / low)
    return math.exp((1 - part) * math.log(curve_s[low]) + part * math.log(curve_s[high]))


def split(
    estimate: Estimate, levels: Sequence[Level], *, max_minutes: int | None, warn_s: float, where: str, key: str
) -> list[list[Level]]:
    """The levels in as few jobs as fit into `max_minutes`, in their order; one job where there is no limit.

    `where` names the run and `key` the setting in the error.

    Raises:
        BerthError: a job with one point alone would not fit.
    """
    if max_minutes is None:
        return [list(levels)] if levels else []
    parts: list[list[Level]] = []
    for level in levels:
        alone = estimate.job_minutes([level], warn_s)
        if alone > max_minutes:
            raise BerthError(
                f"{key}: {max_minutes} minutes are too short for {where} at {level_words(level)}: the start of the "
                f"server ({estimate.start_s / 60:.1f} min) and this point ({estimate.points_s[level] / 60:.1f} min), "
                f"times {SAFETY:g} for safety, with {JOB_START_S:g} s before and {warn_s + WARNING_EARLY_S:g} s of "
                f"warning after, need {alone} minutes. Raise it if the site allows longer jobs, take another "
                "partition, or measure fewer prompts or no such low level."
            )
        if parts and estimate.job_minutes([*parts[-1], level], warn_s) <= max_minutes:
            parts[-1].append(level)
        else:
            parts.append([level])
    return parts
