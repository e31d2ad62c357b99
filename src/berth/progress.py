"""Progress of a sweep for people: the running point and what is left, on the terminal, in the log and in the spool.

The file in the spool is what `berth.watch` shows on another node. It is of no use to a sweep, and gone at its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from berth.coordinates import Rate, level_name, level_words, parse_level
from berth.fsio import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from berth.coordinates import Level

logger = logging.getLogger(__name__)

_EVERY_S = 10.0
# A shared file system is not asked more often than this.
_SAVE_EVERY_S = 5.0

State = Literal["starting", "ready", "measuring"]


def span(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def predict_s(level: Level, durations_s: dict[Level, float]) -> float | None:
    """Seconds that a point will take, from points already measured; None where there is none.

    Between and beyond measured levels the duration of the nearest lower level is taken: throughput does not fall as
    concurrency rises until the server saturates, and a higher rate sends its requests in less time, so this is an upper
    bound there and close beyond it.
    """
    lower = [known for known in durations_s if known <= level]
    if lower:
        return durations_s[max(lower)]
    return durations_s[min(durations_s)] if durations_s else None


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands, as its file says. Times are seconds since 1970, or durations in seconds.

    `host` and `pid` are of the sweep, `instance` is the number of its server, `state` the server's since `since_s`.
    `levels` are those that the sweep has to measure, `ended_s` the duration of each that has ended, `failed` those that
    ended without a number. `level` is the running one with `completed` of `total` requests since `level_since_s`; 0
    between two points.
    """

    host: str
    pid: int
    state: State
    instance: int
    since_s: float
    levels: tuple[Level, ...]
    ended_s: dict[Level, float]
    failed: tuple[Level, ...]
    level: Level
    level_since_s: float
    completed: int
    total: int

    def left_s(self, now_s: float) -> float | None:
        """Seconds until the last point ends, from the points that have ended; None where that is not known."""
        ahead = [level for level in self.levels if level not in self.ended_s and level != self.level]
        known = {level: seconds for level, seconds in self.ended_s.items() if level not in self.failed}
        predicted = [predict_s(level, known) for level in ahead]
        running = self.point_left_s(now_s)
        if self.level and running is None:
            whole = predict_s(self.level, known)
            running = None if whole is None else max(0.0, whole - (now_s - self.level_since_s))
        seconds = [*predicted, *([running] if self.level else [])]
        return None if None in seconds else sum(each for each in seconds if each is not None)

    def point_left_s(self, now_s: float) -> float | None:
        """Seconds until the running point ends, from its own requests; None where that is not known."""
        if not self.level or not self.completed:
            return None
        return (now_s - self.level_since_s) * (self.total - self.completed) / self.completed


def read_standing(path: Path) -> Standing | None:
    """Where a sweep stands; None where there is no such file, or one of another version."""
    try:
        value = json.loads(path.read_text())
        value["ended_s"] = {_read(level): float(seconds) for level, seconds in value["ended_s"].items()}
        value["levels"], value["failed"] = (tuple(map(_read, value[key])) for key in ("levels", "failed"))
        value["level"] = _read(value["level"])
        return Standing(**value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(written: int | str) -> Level:
    """A level as the file has it: a number of requests, or the name of a rate."""
    level = parse_level(str(written))
    return level if isinstance(level, Rate) else int(written)


def _written(level: Level) -> int | str:
    return level_name(level) if isinstance(level, Rate) else level


@dataclass
class SweepProgress:
    """Counts points and requests of one sweep, logs where it stands at most every ten seconds, and keeps `file`."""

    levels: list[Level]
    durations_s: dict[Level, float] = field(default_factory=dict)
    file: Path | None = None
    _level: Level = 0
    _state: State = "starting"
    _instance: int = 1
    _since_s: float = field(default_factory=time.time)
    _failed: list[Level] = field(default_factory=list)
    _level_since_s: float = 0.0
    _saved: float = 0.0
    _started: float = 0.0
    _told: float = 0.0

    def server(self, instance: int) -> None:
        """A server is being started, the first or one after a restart."""
        self._state, self._instance, self._since_s, self._level = "starting", instance, time.time(), 0
        self._save(0, 0)

    def end(self) -> None:
        """The sweep ends: nothing of it is to be watched any more."""
        if self.file is None:
            return
        found = read_standing(self.file)
        # A sweep that was suspended for long has a successor, whose file it is now.
        if found is not None and (found.host, found.pid) == (socket.gethostname(), os.getpid()):
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)

    def start(self, level: Level) -> None:
        """A point begins."""
        if self._state == "starting":
            self._since_s = time.time()
        self._state, self._level_since_s = "measuring", time.time()
        self._level, self._started = level, time.monotonic()
        self._told = self._started
        self._save(0, 0)
        logger.info("%s: point %d of %d starts%s", level_words(level), self._position, len(self.levels), self._left(0))

    def update(self, completed: int, total: int) -> None:
        """`completed` of `total` requests of the running point are answered."""
        now = time.monotonic()
        if now - self._saved >= _SAVE_EVERY_S:
            self._save(completed, total)
        if now - self._told < _EVERY_S or not completed:
            return
        self._told = now
        elapsed = now - self._started
        point_left = elapsed * (total - completed) / completed
        logger.info(
            "%s: %d/%d requests in %s, %s left%s",
            level_words(self._level),
            completed,
            total,
            span(elapsed),
            span(point_left),
            self._left(point_left),
        )

    def replan(self, left: list[Level]) -> None:
        """Other levels than were thought of are left; the running one counts as ended."""
        self.levels = [level for level in self.levels if level in self.durations_s or level == self._level]
        self.levels += [level for level in left if level not in self.levels]

    def finish(self, level: Level, duration_s: float, told: str, *, failed: bool = False) -> None:
        """A point has ended; `told` says how."""
        self.durations_s[level] = duration_s
        if failed:
            self._failed.append(level)
        self._state, self._level = "ready", 0
        self._save(0, 0)
        logger.info("%s: %s (%s)", level_words(level), told, span(duration_s))

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

    def _save(self, completed: int, total: int) -> None:
        if self.file is None:
            return
        self._saved = time.monotonic()
        standing = Standing(
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self._state,
            instance=self._instance,
            since_s=round(self._since_s, 3),
            levels=tuple(self.levels),
            ended_s={level: round(seconds, 3) for level, seconds in self.durations_s.items()},
            failed=tuple(self._failed),
            level=self._level,
            level_since_s=round(self._level_since_s, 3),
            completed=completed,
            total=total,
        )
        # Only people look at it: a full disk must not end a sweep here.
        with contextlib.suppress(OSError):
            levels = {name: list(map(_written, getattr(standing, name))) for name in ("levels", "failed")}
            ended = {str(_written(level)): seconds for level, seconds in standing.ended_s.items()}
            write_json(self.file, asdict(standing) | levels | {"level": _written(standing.level), "ended_s": ended})
