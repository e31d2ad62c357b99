"""Runs one command and ends what it leaves behind: `python _guard.py PARENT ARGV...`, with the command's own exit.

Apptainer's helpers, which hold the file systems of a container (squashfuse_ll, fuse-overlayfs), stay when Apptainer is
ended by a signal. They carry nothing of the environment that they were started with, so that nobody finds them
afterwards. This process adopts them (PR_SET_CHILD_SUBREAPER). When PARENT dies it is asked to end, and asks the
command.

Standard library only: it runs before anything else is known to work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

_PDEATHSIG, _SUBREAPER = 1, 36  # prctl(2)
_PATIENCE_S = 2.0
_POLL_S = 0.02
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Run the command, clean up, and end as it ended."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # A client has a connection per request in flight.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    libc.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)
    own = os.getpid()
    child = os.fork()
    if child == 0:
        libc.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        if os.getppid() == own:
            with contextlib.suppress(OSError):
                os.execvp(argv[0], argv)  # noqa: S606 - the command is this program's purpose.
        os._exit(127)

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    # What came meanwhile is delivered now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    status = _wait(child)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    _end_rest()
    if os.WIFSIGNALED(status):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {os.WTERMSIG(status)})
        with contextlib.suppress(OSError):  # KILL has no handler to reset.
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(own, os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _wait(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def _end_rest() -> None:
    """End every adopted process, and those that are adopted meanwhile."""
    limit = time.monotonic() + _PATIENCE_S
    asked: set[int] = set()
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = _children()
        if not children:
            return
        late = time.monotonic() > limit
        for pid in children:
            if late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(_POLL_S)


def _children() -> list[int]:
    """Pids of this process's children (proc(5), field 4 of stat)."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(entry.path, "stat").read_text(errors="replace")
                if int(text[text.rindex(")") + 2 :].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main()
