"""What a benchmark client watches about itself: how late its event loop wakes, and whether its clock is set.

The warm worker carries this file into the image, where Berth is not installed: standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

# Fifty wake-ups a second cost nothing that can be measured, and a block of one token's time is seen.
_EVERY_S = 0.02
_READINGS = 5


class LoopLag:
    """How late the running event loop wakes a callback that is due every 20 ms.

    `start` and `stop` are called inside the loop. Without one, nothing is watched and `report` is None.
    """

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._every_s = every_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._lags_s: list[float] = []

    def start(self) -> None:
        """Forget what was seen, and watch from now on."""
        self.stop()
        self._lags_s = []
        self._loop = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
            self._arm(self._loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._every_s
        self._timer = loop.call_at(self._due, self._wake, loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lags_s.append(max(0.0, loop.time() - self._due))
        self._arm(loop)

    def stop(self) -> None:
        """Watch no more. A wake-up that is overdue now counts."""
        if self._timer is not None and self._loop is not None:
            self._timer.cancel()
            if self._loop.time() > self._due:
                self._lags_s.append(self._loop.time() - self._due)
        self._timer = None

    def report(self) -> dict[str, float] | None:
        """`mean_ms`, `p99_ms` and `max_ms` of what an event at any time would have waited; None where none was seen.

        In a block of one second the fifty wake-ups that it swallowed would each have been late, the first by a second
        and the last by nothing. They are added, or a block would count as much as one wake-up in time.
        """
        if not self._lags_s:
            return None
        every_s = self._every_s
        seen = sorted(lag - step * every_s for lag in self._lags_s for step in range(int(lag / every_s) + 1))
        p99 = seen[int(0.99 * (len(seen) - 1))]
        return {"mean_ms": 1e3 * sum(seen) / len(seen), "p99_ms": 1e3 * p99, "max_ms": 1e3 * seen[-1]}


def clock_offset_s() -> float:
    """Wall clock minus the clock that never steps, in seconds; two of these tell by how much the wall clock was set.

    The reading with the least time around it is taken: between two calls a process may lose its CPU.
    """
    found: list[tuple[float, float]] = []
    for _ in range(_READINGS):
        before = time.monotonic()
        wall = time.time()
        after = time.monotonic()
        found.append((after - before, wall - (before + after) / 2))
    return min(found)[1]
