"""The jobs of one run as text in the paths of their markers: `c1-8.16-64` measures 16 to 64, after the job of 1 to 8.

The path alone says which levels a job measures and after which job: the job itself reads the Snakefile again, when
other points are missing and other durations are known, and a plan that it made anew could cut the run differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PATTERN = r"[0-9]+-[0-9]+(\.[0-9]+-[0-9]+)*"


def texts(parts: Sequence[Sequence[int]]) -> list[str]:
    """The text of each job, from the levels of each in rising order."""
    ranges = [f"{part[0]}-{part[-1]}" for part in parts]
    return [".".join(ranges[: number + 1]) for number in range(len(ranges))]


def levels_of(text: str, levels: Sequence[int]) -> list[int]:
    """Those of a run's levels that a job measures; one of them may have been measured before."""
    first, _, last = text.rpartition(".")[2].partition("-")
    return [level for level in levels if int(first) <= level <= int(last)]


def before(text: str) -> str:
    """The job that must have ended before, empty for the first."""
    return text.rpartition(".")[0]
