"""Other programs, run to their end, with an error that says what they said."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ERROR_LINES = 12

_MODULE = "or name the site's module in `modules` of the platform file"
_INSTALL = {
    "skopeo": f"install it (Debian, Fedora, conda-forge: the package skopeo), {_MODULE}",
    "podman": f"install it, {_MODULE}, or set `runtime` there to one that this node has",
    "apptainer": f"install it, {_MODULE}, or set `runtime` there to one that this node has",
}


class ProgramMissing(BerthError):  # noqa: N818  # What is the matter.
    """A program is not on PATH of this node."""


class ProgramFailed(BerthError):  # noqa: N818  # What happened.
    """A program ended with an error; `said` is what it printed."""

    def __init__(self, name: str, code: int, said: str) -> None:
        self.name = name
        self.code = code
        self.said = said
        tail = "\n".join(said.splitlines()[-_ERROR_LINES:])
        super().__init__(f"{name} failed (exit code {code}). Last lines:\n{tail}")


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, lock_fd: int | None = None) -> bytes:
    """What a program prints on its standard output; it runs without input.

    Args:
        argv: the program, found on PATH of `env`, and its arguments; never a secret.
        env: its whole environment; None is this process's.
        lock_fd: a lock that the program holds too, so that nobody works beside one whose caller was killed.

    Raises:
        ProgramMissing: it is not on PATH.
        ProgramFailed: it failed.
    """
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(os.environ if env is None else env),
            pass_fds=() if lock_fd is None else (lock_fd,),
            check=False,
        )
    except (FileNotFoundError, PermissionError):
        remedy = _INSTALL.get(argv[0], "install it")
        raise ProgramMissing(f"{argv[0]} is not on PATH of {os.uname().nodename}: {remedy}.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ProgramFailed(argv[0], done.returncode, said)
    return done.stdout
