"""A limit of bytes per second that many threads keep together."""

from __future__ import annotations

import threading
import time


class Limit:
    """Makes those who move bytes wait, so that all together stay below `bytes_s`; None is no limit."""

    def __init__(self, bytes_s: int | None) -> None:
        self._bytes_s = bytes_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, size_bytes: int) -> None:
        """Return when `size_bytes` more may have been moved."""
        if self._bytes_s is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size_bytes / self._bytes_s
            pause_s = self._free_at - now
        time.sleep(pause_s)
