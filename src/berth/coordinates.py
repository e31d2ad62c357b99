"""The coordinates of runs and points, as text in paths and as values.

A run's key is `{experiment}/{platform}/{spec}/run{run}`; a point's key adds the name of its level: `/c16` for a maximum
request concurrency of 16, `/q2.5` for 2.5 requests per second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY = re.compile(r"([^/]+)/([^/]+)/([0-9a-f]{10})/run([1-9][0-9]*)/([cq][^/]+)")
# The name of a level, for patterns that find points among other things, and the files of points in a run's folder.
LEVEL_PATTERN = r"(?:c[1-9][0-9]*|q[0-9]+(?:\.[0-9]+)?)"
POINT_FILES = "[cq]*.json"
_CONCURRENCY = re.compile(r"c([1-9][0-9]*)")
_RATE = re.compile(r"q((?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?)")


class Rate(float):
    """A level of a sweep over request rates, in requests per second."""

    __slots__ = ()

    def __str__(self) -> str:
        """With its unit, so that nobody takes it for a concurrency."""
        return f"{plain_rate(self)} requests/s"


# What is swept: a maximum request concurrency, or a rate.
Level = int | Rate


def plain_rate(rate: float) -> str:
    """A number of requests, or of requests per second, as in paths and arguments: no exponent, no zeros at its end."""
    return f"{rate:.9f}".rstrip("0").rstrip(".")


def level_name(level: Level) -> str:
    """The name of a point's files, without ending: c16, or q2.5."""
    return f"q{plain_rate(level)}" if isinstance(level, Rate) else f"c{level}"


def parse_level(name: str) -> Level | None:
    """The level of such a name, or None where the text is none."""
    if match := _CONCURRENCY.fullmatch(name):
        return int(match[1])
    match = _RATE.fullmatch(name)
    return Rate(match[1]) if match and float(match[1]) > 0 else None


def level_words(level: Level) -> str:
    """The level in a sentence."""
    return str(level) if isinstance(level, Rate) else f"concurrency {level}"


def level_of(point: Mapping[str, Any]) -> Level:
    """The level of a record's `point`."""
    return Rate(point["request_rate"]) if point.get("request_rate") is not None else int(point["concurrency"])


def level_entry(level: Level) -> dict[str, int | float]:
    """What a record's `point` says of its level."""
    return {"request_rate": float(level)} if isinstance(level, Rate) else {"concurrency": level}


@dataclass(frozen=True, order=True)
class RunId:
    """One server instance and the points measured against it: a curve of a figure."""

    experiment: str
    platform: str
    spec: str
    run: int

    @property
    def key(self) -> str:
        """The folder of its points below results/points, results/spool and results/failures."""
        return f"{self.experiment}/{self.platform}/{self.spec}/run{self.run}"

    def point(self, level: Level) -> PointId:
        """Its point at one level."""
        return PointId(self, level)


@dataclass(frozen=True, order=True)
class PointId:
    """The unit that is measured, kept and missing."""

    run: RunId
    level: Level

    @property
    def key(self) -> str:
        """The path of its record below results/points, without `.json`."""
        return f"{self.run.key}/{level_name(self.level)}"


def parse_point(key: str) -> PointId | None:
    """The point of a key, or None where the text is no point's key."""
    match = _KEY.fullmatch(key)
    level = parse_level(match[5]) if match else None
    if match is None or level is None:
        return None
    experiment, platform, spec, run, _ = match.groups()
    return PointId(RunId(experiment, platform, spec, int(run)), level)
