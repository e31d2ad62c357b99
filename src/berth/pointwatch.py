"""What is looked at several times a second while a point runs: server, lease and progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from berth.signals import raise_if_asked
from berth.watchdog import TokenWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from berth.metrics import Snapshot
    from berth.serve import Running

# The client's own count moves at every finished request; the server is only asked when it has not moved for this long,
# so that asking does not disturb the measurement.
_ASK_SERVER_AFTER_S = 15.0
_CHECK_LEASE_EVERY_S = 5.0


class Watched(Protocol):
    """The server of a point, the sweep's lease, and the server's counters now (None where they cannot be read)."""

    @property
    def server(self) -> Running:
        """The server."""

    @property
    def check_lease(self) -> Callable[[], None]:
        """Raises where the sweep has lost its run to another."""

    def counters_now(self) -> Snapshot | None:
        """The server's counters."""


class PointWatch:
    """Watches one point: `progress` is told of finished requests, `should_stop` is asked several times a second."""

    def __init__(self, watched: Watched, on_progress: Callable[[int, int], None], *, stall_s: float) -> None:
        self._watched = watched
        self._on_progress = on_progress
        self._completed = 0
        self._moved = self._leased = time.monotonic()
        self._tokens = TokenWatch(self._read, stall_s=stall_s)

    def progress(self, completed: int, total: int) -> None:
        """Note how many requests are done."""
        if completed != self._completed:
            self._completed, self._moved = completed, time.monotonic()
        self._on_progress(completed, total)

    def should_stop(self) -> None:
        """Return while the point may go on.

        Raises:
            ServerDied, Stalled, LeaseLost, Terminated: it may not.
        """
        if self.look():
            self._tokens.check()

    def look(self) -> bool:
        """Look at server and lease alone; whether it was time for more than whether the process lives.

        Raises:
            ServerDied, LeaseLost, Terminated: as they say.
        """
        raise_if_asked()
        server = self._watched.server
        # Whether the process lives costs nothing; who listens on its port is read from the kernel's tables.
        if not server.alive():
            raise server.died()
        now = time.monotonic()
        if now - self._leased <= _CHECK_LEASE_EVERY_S:
            return False
        self._leased = now
        server.check()
        self._watched.check_lease()
        return True

    def _read(self) -> float | None:
        if time.monotonic() - self._moved < _ASK_SERVER_AFTER_S:
            return float(self._completed)
        counters = self._watched.counters_now()
        tokens = counters.counters.get("generation_tokens") if counters else None
        return None if tokens is None else self._completed + tokens
