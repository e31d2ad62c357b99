"""Processes that belong to one server, found by a token in their environment, and ended without exception."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TOKEN_VARIABLE = "BERTH_INSTANCE"  # noqa: S105 - the name of a variable, no secret.

# vLLM renames its engine and worker processes with setproctitle, which overwrites the environment that /proc shows,
# and with it the token of exactly the processes that hold the GPUs. This variable of setproctitle keeps it.
TOKEN_KEEPERS = {"SPT_NOENV": "1"}

_MARK_DIGITS = 8
_KILL_LIMIT_S = 30.0
_SCAN_S = 0.05

# The kernel sends the server TERM when its sweep is killed with SIGKILL (prctl 1 is PR_SET_PDEATHSIG). A Python that
# then becomes the server asks for it: subprocess's preexec_fn may deadlock in a process that has threads.
_LAUNCHER = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,15,0,0,0);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(143);os.execvp(sys.argv[2],sys.argv[2:])"
)


_GUARD = Path(__file__).with_name("_guard.py")


@dataclass(frozen=True)
class Ended:
    """A process that was ended, and the last signal that it needed ("TERM" or "KILL")."""

    pid: int
    name: str
    signal: str


def new_token() -> str:
    """A token that no other server has: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def mark_of(token: str) -> str:
    """What of a token stands in the names of its containers: enough that no two sweeps of a node share it."""
    own, _, rank = token.partition(".")
    return own[:_MARK_DIGITS] + (f"-node{rank}" if rank else "")


def find_processes(token: str, *, session: int | None = None) -> list[psutil.Process]:
    """The living processes of this user that belong to the server with this token.

    They are those with the token in their environment, Podman's monitors of its containers, their descendants, and the
    members of a session that such a process leads or that is given. What has the token of one of its nodes, TOKEN.RANK,
    belongs to it as well. The caller, its ancestors and processes with another token are never among them.
    A `session` must be the pid of a child that is not reaped yet, so that its number cannot mean another process.
    """
    entry = f"{TOKEN_VARIABLE}={token}".encode()

    def belongs(variable: bytes) -> bool:
        return variable == entry or variable.startswith(entry + b".")

    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    children: dict[int, list[int]] = {}
    members: dict[int, list[int]] = {}
    tokens: dict[int, bytes] = {}
    for pid, state, parent, leader in _own_processes():
        if pid in spared or state in "ZXx":
            continue
        children.setdefault(parent, []).append(pid)
        members.setdefault(leader, []).append(pid)
        if variable := _token_entry(pid):
            tokens[pid] = variable
        elif _monitors(pid, token):
            tokens[pid] = entry
    todo = [pid for pid, variable in tokens.items() if belongs(variable)]
    if session is not None:
        todo += members.get(session, [])
    found: dict[int, None] = {}
    while todo:
        pid = todo.pop()
        if pid in found or not belongs(tokens.get(pid, entry)):
            continue
        found[pid] = None
        todo += children.get(pid, []) + members.get(pid, [])
    return [process for pid in sorted(found) if (process := _process(pid))]


def end_processes(token: str, *, grace_s: float, session: int | None = None) -> list[Ended]:
    """End all processes of a server: TERM, at most `grace_s` seconds of patience, then KILL until none is left.

    Returns what was ended. Processes that are born meanwhile are ended too.

    Raises:
        BerthError: when processes outlive KILL (the kernel waits for a device or a file system); it names them.
    """
    ended: dict[tuple[int, float], Ended] = {}
    asked: dict[int, int | None] = {}
    deadline = time.monotonic() + grace_s
    limit = deadline + _KILL_LIMIT_S
    empty_scans = 0
    # Two scans, because a process that is just calling exec shows no environment for a moment.
    while empty_scans < 2:
        found = find_processes(token, session=session)
        # A process that exits has no environment to be found by, but it may still hold its port and its accelerator.
        exiting = [pid for pid, ticks in asked.items() if ticks is not None and start_ticks(pid) == ticks]
        empty_scans = 0 if found or exiting else empty_scans + 1
        now = time.monotonic()
        if (found or exiting) and now > limit:
            left = {process.pid: process for process in (*found, *filter(None, map(_process, exiting)))}
            names = ", ".join(f"{process.pid} ({_name(process)})" for process in left.values())
            raise BerthError(
                f"Processes of the server could not be ended, even by KILL: {names}. They probably hang in the kernel "
                "(GPU driver or file system). Their accelerators stay occupied: tell the operators of this node."
            )
        for process in found:
            # One that is gone needs nothing; one that refuses the signal is found again and named at the end.
            with contextlib.suppress(psutil.Error):
                key = (process.pid, process.create_time())
                asked.setdefault(process.pid, start_ticks(process.pid))
                if now >= deadline:
                    ended[key] = Ended(process.pid, _name(process), "KILL")
                    process.kill()
                elif key not in ended:
                    ended[key] = Ended(process.pid, _name(process), "TERM")
                    process.terminate()
        # Only children of the caller have to be reaped; waiting for others is the scan's work.
        time.sleep(_SCAN_S if found or ended else 0.01)
    return list(ended.values())


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    secret_env: Mapping[str, str],
    cwd: Path,
    log_path: Path,
    token: str,
    piped: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, with the token in its environment and its output appended to the log.

    With `piped` its input and its output are pipes, and only its errors go to the log.

    `env` and `secret_env` together are its whole environment: nothing of the caller's is inherited. When the caller
    dies without cleaning up, the kernel sends the process TERM. Call it in the main thread, which outlives the server.

    Raises:
        BerthError: when the program, the working directory or the log's folder is missing.
    """
    environment = {**env, **secret_env, **TOKEN_KEEPERS, TOKEN_VARIABLE: token}
    if not argv or shutil.which(argv[0], path=environment.get("PATH", os.defpath)) is None:
        raise BerthError(
            f"The program {argv[0] if argv else ''!r} was not found or is not executable. "
            f"PATH of the server: {environment.get('PATH', os.defpath)}. Install it, or correct the recipe or platform."
        )
    if not cwd.is_dir():
        raise BerthError(f"The working directory of the server, {cwd}, is missing. Create it.")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            guarded(argv) or [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *argv],
            env=environment,
            cwd=cwd,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else log,
            stderr=log,
            start_new_session=True,
        )


def guarded(argv: Sequence[str]) -> list[str]:
    """The command that runs Apptainer and ends the helpers that it leaves; [] for what needs no guard."""
    if Path(argv[0]).name != "apptainer":
        return []
    return [sys.executable, "-IS", str(_GUARD), str(os.getpid()), *argv]


def kill_session(leader: int) -> None:
    """KILL every process of a session whose leader is a child that is not reaped yet, until none is left.

    A process that is born while the others are killed is in no list that was made before.
    """
    limit = time.monotonic() + _KILL_LIMIT_S
    empty_scans = 0
    while empty_scans < 2 and time.monotonic() < limit:
        found = [pid for pid, state, _, session in _own_processes() if session == leader and state not in "ZXx"]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        empty_scans = 0 if found else empty_scans + 1
        time.sleep(_SCAN_S if found else 0.01)


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot (proc(5), field 22); None when it is gone or a zombie.

    Together with the pid it names one process of one boot, whatever happens to the clock.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZXx" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """Fields 3 and following of /proc/PID/stat; None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _own_processes() -> Iterator[tuple[int, str, int, int]]:
    """(pid, state, parent's pid, session) of each process of this user."""
    user = os.geteuid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == user and (fields := _stat(int(entry.name))):
                yield int(entry.name), fields[0], int(fields[1]), int(fields[3])


def _token_entry(pid: int) -> bytes | None:
    """The environment's entry with a token, as "NAME=value"; None without one."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = f"{TOKEN_VARIABLE}=".encode()
    return next((entry for entry in environ.split(b"\0") if entry.startswith(prefix)), None)


def _monitors(pid: int, token: str) -> bool:
    """Whether a process is conmon, which Podman starts for each container with its name after -n, for one of ours.

    Its environment has no token. It and a container that is made but not started, of which Podman knows nothing, are
    what a `podman run` leaves that is killed at the wrong moment.
    """
    try:
        if Path(f"/proc/{pid}/comm").read_bytes() != b"conmon\n":
            return False
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    name = words[words.index("-n") + 1] if "-n" in words[:-1] else ""
    of_node = "" if "." in token else "(-node[0-9]+)?"
    return re.search(rf"^berth-.*-{mark_of(token)}{of_node}(-client|-trial)?$", name) is not None


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "?"
