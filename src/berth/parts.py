"""The jobs of one run as text in the paths of their markers: `c1-8.16-64` measures 16 to 64, after the job of 1 to 8.

Rates are written as `q0_5-2.4-8`: the point separates jobs. The path alone says which levels a job measures and after
which job: the job itself reads the Snakefile again, when other points are missing and other durations are known, and
a plan that it made anew could cut the run differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.coordinates import level_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.coordinates import Level

_NUMBER = r"[0-9]+(?:_[0-9]+)?"
PATTERN = rf"[cq]{_NUMBER}-{_NUMBER}(\.{_NUMBER}-{_NUMBER})*"


def texts(parts: Sequence[Sequence[Level]]) -> list[str]:
    """The text of each job, from the levels of each in rising order."""
    ranges = [f"{_number(part[0])}-{_number(part[-1])}" for part in parts]
    axis = level_name(parts[0][0])[0] if parts else ""
    return [axis + ".".join(ranges[: number + 1]) for number in range(len(ranges))]


def levels_of(text: str, levels: Sequence[Level]) -> list[Level]:
    """Those of a run's levels that a job measures; one of them may have been measured before."""
    first, last = (float(each.replace("_", ".")) for each in text[1:].rpartition(".")[2].split("-"))
    return [level for level in levels if first <= level <= last]


def before(text: str) -> str:
    """The job that must have ended before, empty for the first."""
    return text.rpartition(".")[0]


def _number(level: Level) -> str:
    return level_name(level)[1:].replace(".", "_")
