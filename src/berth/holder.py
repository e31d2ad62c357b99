"""What a lease file says: who holds it, what earlier holders left, and whether a holder still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from berth.container import is_podman
from berth.processes import start_ticks

# In a batch script of Flux the job is the instance around it, which later versions name.
JOB_ID_VARIABLES = ("SLURM_JOB_ID", "FLUX_JOB_ID", "FLUX_ENCLOSING_ID")


def job_id() -> str | None:
    """The scheduler's id of this job, None outside one."""
    return next((value for name in JOB_ID_VARIABLES if (value := os.environ.get(name))), None)


@dataclass(frozen=True)
class Identity:
    """One process of one boot of one host.

    `machine_id` is /etc/machine-id or "", `boot_id` is new at every boot, `pid_namespace` tells which numbering the pid
    belongs to, `start_ticks` is when it started, in clock ticks since the boot, and tells it from a later process
    with the same pid.
    """

    host: str
    machine_id: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int

    @classmethod
    def current(cls) -> Identity:
        """The identity of the calling process."""
        return cls(
            host=socket.gethostname(),
            machine_id=_text(Path("/etc/machine-id")),
            boot_id=_text(Path("/proc/sys/kernel/random/boot_id")),
            pid_namespace=str(Path("/proc/self/ns/pid").readlink()),
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()) or 0,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Identity:
        """The identity as asdict() wrote it.

        Raises:
            KeyError, TypeError, ValueError: when it is none.
        """
        texts = {name: str(value[name]) for name in ("host", "machine_id", "boot_id", "pid_namespace")}
        return cls(**texts, pid=int(value["pid"]), start_ticks=int(value["start_ticks"]))

    def as_json(self) -> dict[str, Any]:
        """The identity as a JSON object."""
        return asdict(self)

    def same_kernel(self, other: Identity) -> bool:
        """Whether both run on one host, in one boot of it: boot_id is random, so equality is proof."""
        return self.boot_id != "" and self.boot_id == other.boot_id

    def knows_dead(self, other: Identity) -> bool | None:
        """Whether the other process is surely dead (True) or alive (False); None when that cannot be seen from here."""
        if self.same_kernel(other):
            return None if self.pid_namespace != other.pid_namespace else _gone(other)
        # A host name alone is no proof: cloned machines and containers are often all called the same.
        if self.machine_id and (self.host, self.machine_id) == (other.host, other.machine_id):
            return True
        return None


@dataclass(frozen=True)
class Leftover:
    """The server of a sweep that could not take it down: its token, and its files in /dev/shm (name -> inode).

    `podman` is Podman with its global options where containers of the server may be left, else ().
    """

    identity: Identity
    token: str
    shared_memory: dict[str, int] = field(default_factory=dict)
    podman: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {
            "identity": self.identity.as_json(),
            "token": self.token,
            "shared_memory": self.shared_memory,
            "podman": list(self.podman),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Leftover:
        """The entry as as_json() wrote it."""
        shared = {str(name): int(inode) for name, inode in value["shared_memory"].items()}
        return cls(Identity.from_json(value["identity"]), str(value["token"]), shared, _podman(value))


@dataclass(frozen=True)
class Holder:
    """What a lease file says: who took it, for which server, and what earlier holders may have left running."""

    identity: Identity
    token: str
    job_id: str | None
    acquired: str
    released: bool
    shared_memory: dict[str, int]
    leftovers: tuple[Leftover, ...]
    podman: tuple[str, ...] = ()

    def __str__(self) -> str:
        job = f", job {self.job_id}" if self.job_id else ""
        return f"process {self.identity.pid} on {self.identity.host}{job}, since {self.acquired}"

    def as_json(self) -> dict[str, Any]:
        """The content of a lease file."""
        return {
            "schema": 1,
            "identity": self.identity.as_json(),
            "token": self.token,
            "job_id": self.job_id,
            "acquired": self.acquired,
            "released": self.released,
            "shared_memory": self.shared_memory,
            "podman": list(self.podman),
            "leftovers": [entry.as_json() for entry in self.leftovers],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Holder:
        """The content of a lease file as as_json() wrote it."""
        return cls(
            identity=Identity.from_json(value["identity"]),
            token=str(value["token"]),
            job_id=value["job_id"],
            acquired=str(value["acquired"]),
            released=bool(value["released"]),
            shared_memory={str(name): int(inode) for name, inode in value["shared_memory"].items()},
            leftovers=tuple(Leftover.from_json(entry) for entry in value["leftovers"]),
            podman=_podman(value),
        )


def _podman(value: dict[str, Any]) -> tuple[str, ...]:
    """How Podman is called; () in a file of before there were containers. Nothing else is ever run from such a file."""
    program = tuple(str(word) for word in value.get("podman", ()))
    if not is_podman(program):
        raise ValueError(f"podman: {program}")
    return program


def _gone(process: Identity) -> bool | None:
    ticks = start_ticks(process.pid)
    if ticks is not None:
        return ticks != process.start_ticks
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return None  # Somebody else's process, which a /proc with hidepid does not show.
    return True  # A zombie.


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
