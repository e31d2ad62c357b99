"""What the checks of `doctor` share: a result, and a program that is asked and not trusted to be there."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from berth.holder import job_id

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 30.0
# Of /proc/self/mountinfo (proc(5)); what Lustre, GPFS and others call themselves there.
_NETWORK = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "panfs", "wekafs", "pvfs2"}
)


@dataclass(frozen=True)
class Result:
    """One check: what was found and, where something is to be done, what. No secret is in it."""

    status: Literal["ok", "WARN", "FAIL"]
    what: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """`FAIL  what  (remedy)`."""
        return f"{self.status:<4}  {self.what}" + (f"  ({self.remedy})" if self.remedy else "")


def ok(what: str) -> Result:
    """Nothing is to be done."""
    return Result("ok", what)


def warn(what: str, remedy: str) -> Result:
    """Something that may be right, or right elsewhere, and that a person should know."""
    return Result("WARN", what, remedy)


def fail(what: str, remedy: str) -> Result:
    """A sweep would fail."""
    return Result("FAIL", what, remedy)


@dataclass(frozen=True)
class Answer:
    """What a program said; `code` is None where it is not on PATH or gave no answer in time."""

    code: int | None
    out: str
    err: str

    @property
    def good(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def complaint(self) -> str:
        """The last line of what it said against it."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


def ask(*argv: str, timeout_s: float = _TIMEOUT_S, environ: Mapping[str, str] | None = None) -> Answer:
    """The answer of a program, in a session of its own; `environ` is this process's environment where None."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=None if environ is None else dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"{argv[0]} gave no answer in {timeout_s:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def file_system(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system on which a path is or would be, such as ext4 or nfs4; "" where it is not told."""
    wanted = existing(path).resolve()
    found = (-1, "")
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        place, _, source = line.partition(" - ")
        mounted = Path(place.split()[4].replace("\\040", " "))
        if wanted.is_relative_to(mounted) and len(mounted.parts) >= found[0]:
            found = (len(mounted.parts), source.split()[0])
    return found[1]


def is_network(kind: str) -> bool:
    """Whether a type of file system is seen by several nodes."""
    return kind in _NETWORK or kind.startswith("fuse.")


def in_job() -> bool:
    """Whether this is a compute node of a job, where accelerators must be."""
    return job_id() is not None
