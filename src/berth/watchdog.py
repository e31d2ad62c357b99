"""Notices a server that still answers but no longer generates."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Callable


class Stalled(BerthError):  # noqa: N818 - what happened, as sweeps report it.
    """A point, or the warm-up before the first, made no progress for too long."""

    kind = "crash"

    def __init__(self, stall_s: float, last: float | None) -> None:
        self.cause = f"The server generated nothing for {stall_s:g} s while requests were running" + (
            f" (progress stood at {last:g})." if last is not None else " (its progress could not be read)."
        )
        self.remedy = "Read the server's log: its engine probably died or hangs while its API still answers."
        super().__init__(f"{self.cause}\nWhat to do: {self.remedy}")


class TokenWatch:
    """Watches a number that must change while a point runs: generated tokens or completed requests.

    `read` returns it, or None when it cannot be read now, which is no progress. `clock` gives seconds.
    """

    def __init__(
        self, read: Callable[[], float | None], *, stall_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._stall_s = stall_s
        self._clock = clock
        self._last: float | None = None
        self._moved_at = clock()

    def check(self) -> None:
        """Read the number once; call it every few seconds while the point runs.

        Raises:
            Stalled: when it has not changed for `stall_s` seconds.
        """
        value = self._read()
        now = self._clock()
        if value is not None and value != self._last:
            self._last = value
            self._moved_at = now
        elif now - self._moved_at > self._stall_s:
            raise Stalled(self._stall_s, self._last)
