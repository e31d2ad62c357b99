"""The client's processes, each in a session of its own: a warm worker with JSON lines, or one process per point."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import resource
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from berth.processes import guarded, kill_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_GRACE_S = 3.0
_TAIL_BYTES = 6000
_TAIL_LINES = 15
_POLL_S = 0.1
_ENDED_POLL_S = 0.01
_BAR = re.compile(rb"(\d+)/(\d+) \[")
_BAR_BYTES = 4096


def start_group(
    command: Sequence[str], *, env: Mapping[str, str], log_path: Path, piped: bool
) -> subprocess.Popen[bytes]:
    """The process, leader of a new session. Its errors go to the end of `log_path`, its output too unless `piped`.

    Raises:
        OSError: the program cannot be started.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            guarded(command) or list(command),
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else log,
            stderr=log,
            env=dict(env),
            start_new_session=True,
        )
    # A connection per request in flight: the usual soft limit of 1024 files is too low for 1024 of them.
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    return process


def end_group(
    process: subprocess.Popen[bytes], grace_s: float = _GRACE_S, end_rest: Callable[[], None] | None = None
) -> None:
    """End every process of the session: its group is asked first, all are killed after `grace_s` or when it has ended.

    Returns when they are gone. `end_rest` ends what is not of the session, such as a container, whose first process
    does not heed TERM.
    """
    try:
        if end_rest is not None:
            end_rest()
        _signal_group(process.pid, signal.SIGTERM)
        _await(process, grace_s)
    finally:
        # Also when the wait was interrupted: nothing of the session may outlive this call. Until it is reaped, its
        # number is that of no other session.
        if process.returncode is None:
            kill_session(process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _await(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Wait until a process has ended, and leave it to be reaped."""
    end = time.monotonic() + limit_s
    while process.returncode is None and time.monotonic() < end:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return
        time.sleep(_ENDED_POLL_S)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def log_tail(path: Path, start: int = 0) -> str:
    """The last lines of a log from byte `start` on, for an error message."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(start, size - _TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:])


def log_size(path: Path) -> int:
    """The bytes of a log, 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def ended_how(code: int) -> str:
    """A process's return code in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def run_once(
    command: Sequence[str],
    env: Mapping[str, str],
    log_path: Path,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], None] | None,
    *,
    end_rest: Callable[[], None] | None = None,
) -> int:
    """The return code of a program that shows a tqdm bar in its log; `on_progress(completed, total)` follows the bar.

    `end_rest` is called at the end, whatever ended it.

    Raises:
        OSError: it cannot be started.
        Exception: whatever `should_stop()` raises; the program is ended first.
    """
    log_start = log_size(log_path)
    process = start_group(command, env=env, log_path=log_path, piped=False)
    told = None
    try:
        while process.poll() is None:
            if should_stop is not None:
                should_stop()
            bar = _last_bar(log_path, log_start)
            if bar is not None and bar != told:
                on_progress(*bar)
                told = bar
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
    finally:
        end_group(process, end_rest=end_rest)
    return process.returncode


def _last_bar(log_path: Path, log_start: int) -> tuple[int, int] | None:
    # For progress only: what a point is worth is read from the result file, never from what the client prints.
    with contextlib.suppress(OSError), log_path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(log_start, size - _BAR_BYTES))
        bars = _BAR.findall(log.read())
        return (int(bars[-1][0]), int(bars[-1][1])) if bars else None
    return None


class WorkerDiedError(Exception):
    """The worker ended without an answer; the text says how."""


class Worker:
    """A process that reads commands and writes messages, one JSON object per line.

    `start()` starts it. A thread reads its messages, so that it never blocks on a full pipe.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        end_rest: Callable[[], None] | None = None,
    ) -> None:
        self._end_rest = end_rest
        self._command = list(command)
        self._env = env
        self._log_path = log_path
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process. Raises OSError where it cannot be started."""
        self._process = start_group(self._command, env=self._env, log_path=self._log_path, piped=True)
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The process id, which is also the id of its group and session."""
        return self._process.pid if self._process else None

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout or ():
                try:
                    message = json.loads(line)
                except ValueError:
                    # A container runtime may write a line of its own before the worker starts.
                    logger.debug("not a message of the client: %r", line[:200])
                    continue
                if isinstance(message, dict):
                    self._messages.put(message)
        self._messages.put(None)

    def send(self, **command: Any) -> None:
        """Give one command. A worker that is gone is noticed at the next `receive`."""
        stream = self._process.stdin if self._process else None
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.write(json.dumps(command).encode() + b"\n")
                stream.flush()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None when there was none in time.

        Raises:
            WorkerDiedError: the process has ended.
        """
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if message is None:
            self._messages.put(None)
            raise WorkerDiedError(self._how_it_ended())
        return message

    def _how_it_ended(self) -> str:
        process = self._process
        deadline = time.monotonic() + _GRACE_S
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        code = process.poll() if process is not None else None
        if code is None:
            return "closed its output"
        return ended_how(code)

    def end(self) -> None:
        """End the process and all of its group."""
        if self._process is not None:
            end_group(self._process, end_rest=self._end_rest)
