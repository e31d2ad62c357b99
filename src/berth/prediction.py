"""What earlier records and published curves say about the time that a run takes. Reads, never writes."""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any

from berth.coordinates import Rate, level_of
from berth.published import find_figure, read_rows
from berth.record import FIRST_REQUEST
from berth.walltime import Estimate, from_throughput, point_seconds, rate_seconds, start_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from berth.coordinates import Level

# A whole published sweep, for experiments that name no published curve.
EXAMPLE = "beltre2025/example-run-hops"
_RATE = "output_throughput_tok_s"


def estimate(
    *,
    results: Path,
    spec: str,
    levels: Sequence[Level],
    num_prompts: int,
    weights_bytes: int,
    published_dir: Path,
    published: Sequence[str],
    platform: str,
) -> Estimate:
    """Seconds of the start and of each level of a run.

    From earlier records of the same spec, whichever experiment or run they belong to (the slowest counts); what they
    do not say, from the published curves of the experiment, those of this platform if there are any (the slowest
    counts again), else from the published example run.

    Raises:
        BerthError: a published set is wrong or absent.
    """
    starts, durations = _earlier(results, spec)
    curve = _published_curve(published_dir, [*published, EXAMPLE], platform, num_prompts)
    rates = [level for level in levels if isinstance(level, Rate)]
    counts = [level for level in levels if not isinstance(level, Rate)]
    known = {level: seconds for level, seconds in durations.items() if not isinstance(level, Rate)}
    points = rate_seconds(rates, num_prompts, durations, curve)
    points.update(point_seconds(counts, known, curve).items())
    return Estimate(max(starts, default=start_s(weights_bytes)), points)


def _earlier(results: Path, spec: str) -> tuple[list[float], dict[Level, float]]:
    starts: list[float] = []
    durations: dict[Level, float] = {}
    for folder in ("points", "spool"):
        for path in sorted((results / folder).glob(f"*/*/{spec}/run*/[cq]*.json")):
            # The plan judges records; a time that cannot be read is only not known.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
                record = json.loads(path.read_text())
                level = level_of(record["point"])
                durations[level] = max(durations.get(level, 0.0), float(record["wall"]["duration_s"]))
                starts.append(_warm_after(record["server"]["timeline"]))
    return starts, durations


def _warm_after(timeline: Iterable[dict[str, Any]]) -> float:
    return max(float(event["elapsed_s"]) for event in timeline if event["event"] != FIRST_REQUEST)


def _published_curve(folder: Path, references: Sequence[str], platform: str, num_prompts: int) -> dict[int, float]:
    for reference in references:
        _, figure = find_figure(folder, reference)
        measured = [row for row in read_rows(figure.path) if row["status"] == "ok" and row.get(_RATE) is not None]
        slowest: dict[int, float] = {}
        for row in [row for row in measured if row["platform"] == platform] or measured:
            level = row["concurrency"]
            slowest[level] = min(slowest.get(level, math.inf), row[_RATE])
        if slowest:
            return from_throughput(slowest, num_prompts)
    raise AssertionError(f"{EXAMPLE} holds no point")
