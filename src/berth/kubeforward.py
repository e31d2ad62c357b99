"""A way from this machine to a port of a pod or a service, made anew whenever it breaks."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import time
from typing import TYPE_CHECKING

from berth.kubectl import ClusterError
from berth.processes import spawn

if TYPE_CHECKING:
    from pathlib import Path

    from berth.kubectl import Cluster

logger = logging.getLogger(__name__)

_LISTENS = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ->")
_START_S = 20.0
_END_S = 5.0


class Forward:
    """`kubectl port-forward` on a loopback port of its own choice. One that is dead says nothing of the server."""

    def __init__(self, cluster: Cluster, port: int, *, log_path: Path, token: str) -> None:
        self._cluster = cluster
        self._port = port
        self._log_path = log_path
        self._token = token
        self._named = ""
        self._local = 0
        self._process: subprocess.Popen[bytes] | None = None

    def to(self, named: str) -> None:
        """From now on it leads to this, by kubectl's names: pod/NAME or service/NAME."""
        if named != self._named:
            self.close()
            self._named = named

    def port(self) -> int:
        """The port of this machine that leads there now; 0 where there is no way at the moment."""
        if self._process is not None and self._process.poll() is None:
            return self._local
        self.close()
        try:
            self._start()
        except ClusterError as error:
            logger.info("no way to %s yet: %s", self._named, error)
            return 0
        return self._local

    def _start(self) -> None:
        argv = self._cluster.kubectl("port-forward", "--address=127.0.0.1", self._named, f":{self._port}")
        start = self._log_path.stat().st_size if self._log_path.exists() else 0
        self._process = spawn(
            argv,
            env=self._cluster.environment(),
            secret_env={},
            cwd=self._log_path.parent,
            log_path=self._log_path,
            token=self._token,
        )
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            with self._log_path.open("rb") as log:
                log.seek(start)
                said = log.read()
            if found := _LISTENS.search(said):
                self._local = int(found[1])
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self.close()
        raise ClusterError(" ".join(argv), said.decode(errors="replace") or "it does not listen")

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
