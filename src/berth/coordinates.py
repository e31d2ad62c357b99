"""The coordinates of runs and points, as text in paths and as values.

A run's key is `{experiment}/{platform}/{spec}/run{run}`; a point's key adds `/c{concurrency}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_KEY = re.compile(r"([^/]+)/([^/]+)/([0-9a-f]{10})/run([1-9][0-9]*)/c([1-9][0-9]*)")


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

    def point(self, concurrency: int) -> PointId:
        """Its point at one maximum request concurrency."""
        return PointId(self, concurrency)


@dataclass(frozen=True, order=True)
class PointId:
    """The unit that is measured, kept and missing."""

    run: RunId
    concurrency: int

    @property
    def key(self) -> str:
        """The path of its record below results/points, without `.json`."""
        return f"{self.run.key}/c{self.concurrency}"


def parse_point(key: str) -> PointId | None:
    """The point of a key, or None where the text is no point's key."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    experiment, platform, spec, run, concurrency = match.groups()
    return PointId(RunId(experiment, platform, spec, int(run)), int(concurrency))
