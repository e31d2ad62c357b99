"""Whether a server that does not answer yet gets on: its log grows, it reads, or it computes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_SAMPLE_S = 1.0
_CPU_CORES = 0.1  # of one core, on average between two samples: far above a server that only answers our probes.
_READ_BYTES_S = 64 * 1024  # per second, for the same reason.


class ActivityMeter:
    """Samples the log and the processes of a server. Lines that answer our own probes are no growth of the log."""

    def __init__(
        self, processes: Callable[[], list[psutil.Process]], log_path: Path, *, log_start: int, own_paths: Sequence[str]
    ) -> None:
        self._processes = processes
        self._log_path = log_path
        self._log_position = log_start
        self._own = [f"{verb} {path}" for verb in ("GET", "POST") for path in own_paths]
        self._counted: dict[tuple[int, float], tuple[int, float]] = {}
        self._sampled = time.monotonic()

    def sample(self) -> frozenset[str]:
        """What moved since the last sample: some of "log", "read", "cpu". Processes are read once a second at most."""
        moved = {"log"} if self._log_grew() else set()
        elapsed = time.monotonic() - self._sampled
        if elapsed >= _SAMPLE_S or not self._counted:
            self._sampled += elapsed
            read_bytes, cpu_s = self._process_growth()
            if read_bytes > _READ_BYTES_S * elapsed:
                moved.add("read")
            if cpu_s > _CPU_CORES * elapsed:
                moved.add("cpu")
        return frozenset(moved)

    def _log_grew(self) -> bool:
        try:
            with self._log_path.open("rb") as handle:
                handle.seek(self._log_position)
                data = handle.read(4 * 1024 * 1024)
        except OSError:
            return False
        self._log_position += len(data)
        lines = data.decode(errors="replace").splitlines()
        return any(line.strip() and not any(own in line for own in self._own) for line in lines)

    def _process_growth(self) -> tuple[int, float]:
        """(bytes read, CPU seconds) of all processes since the last call, without those that ended meanwhile."""
        read_bytes, cpu_s = 0, 0.0
        counted = {}
        for process in self._processes():
            with contextlib.suppress(psutil.Error, OSError):
                io = process.io_counters()
                times = process.cpu_times()
                # Reads through the page cache and through mapped files are counted in different places.
                now = (max(io.read_chars, io.read_bytes), times.user + times.system)
                key = (process.pid, process.create_time())
                before = self._counted.get(key, (0, 0.0))
                read_bytes += max(0, now[0] - before[0])
                cpu_s += max(0.0, now[1] - before[1])
                counted[key] = now
        self._counted = counted
        return read_bytes, cpu_s
