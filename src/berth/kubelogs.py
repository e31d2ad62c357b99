"""The log of a pod's container as a file that grows: followed, taken up again where the way to the cluster broke."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from berth.kubectl import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from berth.kubectl import Cluster

_PAUSE_S = 1.0


class LogFollower:
    """Writes what one container prints to the end of a file. start() begins; finish() or stop() ends it."""

    def __init__(self, cluster: Cluster, pod: str, container: str, path: Path) -> None:
        self._cluster = cluster
        self._pod = pod
        self._container = container
        self._path = path
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._follow, name=f"log of {pod}", daemon=True)

    def start(self) -> None:
        """Begin, from the container's first line on."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def finish(self, limit_s: float) -> None:
        """Wait until everything that a container which ended has printed is in the file."""
        self._over.set()
        self._thread.join(limit_s)

    def stop(self) -> None:
        """End it now."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self._process is not None:
                self._process.kill()
        self._thread.join(_PAUSE_S * 5)

    def _follow(self) -> None:
        since: list[str] = []
        while True:
            began = datetime.now(UTC)
            argv = self._cluster.kubectl("logs", self._pod, f"--container={self._container}", "--follow", *since)
            with self._path.open("ab") as log:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.DEVNULL,
                    env=self._cluster.environment(),
                    start_new_session=True,
                )
                self._process.wait()
            # A connection that broke is not the end of the container; what was printed meanwhile is asked for again.
            if self._over.wait(_PAUSE_S):
                return
            since = [f"--since-time={(began - timedelta(seconds=1)).isoformat(timespec='seconds')}"]
            if (datetime.now(UTC) - began).total_seconds() > 10 * _PAUSE_S:
                since = [f"--since-time={(datetime.now(UTC) - timedelta(seconds=3)).isoformat(timespec='seconds')}"]


def append_log(cluster: Cluster, pod: str, container: str, path: Path, *words: str) -> bool:
    """Write what a container has printed to the end of a file; `words` such as "--previous". False where it is gone."""
    try:
        said = cluster.run(cluster.kubectl("logs", pod, f"--container={container}", *words))
    except ClusterError:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        log.write(said)
    return True
