"""Progress of a hub download: lines in the log, and the end of one that goes in circles."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from huggingface_hub.utils import tqdm as hub_tqdm  # type: ignore[attr-defined]

from berth.disk import human_bytes

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0
_MAX_RESTARTS = 5
# The name that the library gives to the bar of all bytes of a snapshot; its other bars do not count bytes on disk.
_BYTES_BAR = "huggingface_hub.snapshot_download"


class StalledError(Exception):
    """The hub cuts the stream again and again, and every try starts from the beginning."""


class Progress:
    """Counts the bytes of one download, from several threads."""

    def __init__(self, total_bytes: int, label: str) -> None:
        self._total_bytes = total_bytes
        self._label = label
        self._lock = threading.Lock()
        self._started_s = self._logged_s = time.monotonic()
        self._done_bytes = 0
        self._best_bytes = 0
        self._restarts = 0

    def add(self, count: int) -> None:
        """Count bytes; a negative count is what the library takes back when it starts a file again.

        The library starts a file again without end where a hub neither finishes it nor resumes in the middle, because
        each piece that arrives resets its own count of retries.

        Raises:
            StalledError: too many such starts without getting further.
        """
        with self._lock:
            self._done_bytes += count
            if self._done_bytes > self._best_bytes + max(1, self._total_bytes // 50):
                self._best_bytes, self._restarts = self._done_bytes, 0
            if count < 0:
                self._restarts += 1
                if self._restarts > _MAX_RESTARTS:
                    raise StalledError(
                        f"the hub cut the connection {self._restarts} times at about the same place and cannot resume"
                    )
            self._log()

    def _log(self) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_EVERY_S:
            return
        self._logged_s = now_s
        rate = int(self._done_bytes / (now_s - self._started_s))
        percent = 100 * self._done_bytes // max(1, self._total_bytes)
        logger.info(
            "%s: %s of %s (%d %%), %s/s",
            self._label,
            human_bytes(max(0, self._done_bytes)),
            human_bytes(self._total_bytes),
            percent,
            human_bytes(max(0, rate)),
        )


def progress_class(total_bytes: int, label: str) -> type[Any]:
    """A class for the library's `tqdm_class` that draws nothing and reports to one Progress."""
    progress = Progress(total_bytes, label)

    class Bar(hub_tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("name") == _BYTES_BAR
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes and n:
                progress.add(int(n))
            return None

    return Bar
