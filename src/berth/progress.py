"""Progress of a sweep for people: the running point and what is left, on the terminal and in the log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

_EVERY_S = 10.0


def span(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def predict_s(level: int, durations_s: dict[int, float]) -> float | None:
    """Seconds that a point will take, from points already measured; None where there is none.

    Between and beyond measured levels the duration of the nearest lower level is taken: throughput does not fall as
    concurrency rises until the server saturates, so this is an upper bound there and close beyond it.
    """
    lower = [known for known in durations_s if known <= level]
    if lower:
        return durations_s[max(lower)]
    return durations_s[min(durations_s)] if durations_s else None


@dataclass
class SweepProgress:
    """Counts points and requests of one sweep and logs where it stands, at most every ten seconds."""

    levels: list[int]
    durations_s: dict[int, float] = field(default_factory=dict)
    _level: int = 0
    _started: float = 0.0
    _told: float = 0.0

    def start(self, level: int) -> None:
        """A point begins."""
        self._level, self._started = level, time.monotonic()
        self._told = self._started
        logger.info("concurrency %d: point %d of %d starts%s", level, self._position, len(self.levels), self._left(0))

    def update(self, completed: int, total: int) -> None:
        """`completed` of `total` requests of the running point are answered."""
        now = time.monotonic()
        if now - self._told < _EVERY_S or not completed:
            return
        self._told = now
        elapsed = now - self._started
        point_left = elapsed * (total - completed) / completed
        logger.info(
            "concurrency %d: %d/%d requests in %s, %s left%s",
            self._level,
            completed,
            total,
            span(elapsed),
            span(point_left),
            self._left(point_left),
        )

    def finish(self, level: int, duration_s: float, told: str) -> None:
        """A point has ended; `told` says how."""
        self.durations_s[level] = duration_s
        logger.info("concurrency %d: %s (%s)", level, told, span(duration_s))

    @property
    def _position(self) -> int:
        return self.levels.index(self._level) + 1

    def _left(self, point_left_s: float) -> str:
        ahead = self.levels[self._position :] if point_left_s else self.levels[self._position - 1 :]
        predicted = [predict_s(level, self.durations_s) for level in ahead]
        known = [seconds for seconds in predicted if seconds is not None]
        if not ahead or len(known) < len(ahead):
            return ""
        return f"; sweep: about {span(sum(known) + point_left_s)} left"
