"""One step of the building of an environment: a command with its output in a log, and what its failure means."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ERROR_LINES = 12
# A user's own modules, other environments than the one that is built, and what would keep it from being compiled.
_NOT_FOR_BUILDS = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_TARGET", "UV_PREFIX", "PYTHONDONTWRITEBYTECODE"}
)


@dataclass(frozen=True)
class Step:
    """Runs the commands of one build with their output in one log."""

    environment: Path
    log: Path
    lock_fd: int

    @property
    def temporary(self) -> Path:
        """For what is unpacked: the cache's disk, because /tmp may be small."""
        return self.environment / "tmp"

    def run(self, command: list[str], what: str, *, more_env: Mapping[str, str] | None = None) -> None:
        """Run one command.

        Raises:
            BerthError: it failed; the message has its last lines.
        """
        if self.environment.exists():
            self.temporary.mkdir(exist_ok=True)
        with self.log.open("ab") as output:
            output.write(f"$ {' '.join(command)}\n".encode())
            output.flush()
            before = output.tell()
            # The child holds the lock too: if this process is killed, nobody builds beside one that goes on.
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=build_environment(self.temporary if self.temporary.exists() else None) | dict(more_env or {}),
                pass_fds=(self.lock_fd,),
                check=False,
            )
        if done.returncode == 0:
            return
        text = self.log.read_bytes()[before:].decode(errors="replace")
        tail = "\n".join(text.splitlines()[-_ERROR_LINES:])
        raise BerthError(
            f"Building the image failed while {what} (exit code {done.returncode}). {_remedy(text)} "
            f"The whole log is {self.log}. Last lines:\n{tail}"
        )


def build_environment(temporary: Path | None = None) -> dict[str, str]:
    """The environment of a build: this process's, without what would reach into a pinned one."""
    kept = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_BUILDS}
    extra = {"PYTHONNOUSERSITE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return kept | extra | ({"TMPDIR": str(temporary)} if temporary else {})


def _remedy(text: str) -> str:
    """What to do about a failed command, by what it said."""
    lower = text.lower()
    if "no space left" in lower or "disk quota" in lower:
        return "The disk is full: free some room, or set BERTH_CACHE to a directory on a larger disk."
    if "failed to fetch" in lower or "error sending request" in lower:
        return "The package index cannot be reached: set PIP_INDEX_URL, https_proxy or PIP_CERT as your site needs."
    if "no solution found" in lower:
        return "The index has no wheel of this version for this Python and platform (Linux x86_64, glibc 2.28)."
    return "Run again to start afresh; what was downloaded is in the cache."
