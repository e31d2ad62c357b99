"""Whether a server in a pod gets on while it does not answer yet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from berth.kubectl import ClusterError
from berth.kubestate import SERVER

if TYPE_CHECKING:
    from berth.activity import ActivityMeter
    from berth.kubectl import Cluster

# A command in a pod costs the pod a little, so that it is asked only now and then.
_COUNT_S = 10.0
_CPU_TICKS_S = 10.0
_READ_BYTES_S = 64 * 1024
_COUNTERS = "cat /proc/[0-9]*/stat 2>/dev/null; echo; cat /proc/[0-9]*/io 2>/dev/null; true"


class PodMeter:
    """Samples the log of a pod's server and, where that stands still, what its processes compute and read."""

    def __init__(self, cluster: Cluster, pod: str, log: ActivityMeter) -> None:
        self._cluster = cluster
        self._pod = pod
        self._log = log
        self._asked = time.monotonic()
        self._counted: tuple[int, int] | None = None

    def sample(self) -> frozenset[str]:
        """What moved since the last sample: some of "log", "read", "cpu"."""
        moved = set(self._log.sample())
        now = time.monotonic()
        if moved:
            self._asked = now
        elif now - self._asked > _COUNT_S:
            counted, before, elapsed = self._counters(), self._counted, now - self._asked
            self._asked, self._counted = now, counted
            if counted and before:
                moved |= {"cpu"} if counted[0] - before[0] > _CPU_TICKS_S * elapsed else set()
                moved |= {"read"} if counted[1] - before[1] > _READ_BYTES_S * elapsed else set()
        return frozenset(moved)

    def _counters(self) -> tuple[int, int] | None:
        argv = self._cluster.kubectl("exec", self._pod, f"--container={SERVER}", "--", "/bin/sh", "-c", _COUNTERS)
        try:
            return parse_counters(self._cluster.run(argv).decode(errors="replace"))
        except ClusterError:
            return None


def parse_counters(text: str) -> tuple[int, int]:
    """CPU ticks (user and system) and bytes read, from files stat and, after an empty line, io of /proc."""
    stats, _, io = text.partition("\n\n")
    fields = [line[line.rindex(")") + 2 :].split() for line in stats.splitlines() if ")" in line]
    ticks = sum(int(each[11]) + int(each[12]) for each in fields)
    return ticks, sum(int(line.split()[1]) for line in io.splitlines() if line.startswith("rchar:"))
