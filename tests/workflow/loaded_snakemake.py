"""The real Snakemake in forks of one process that has loaded its modules: 2.3 of the 2.7 CPU seconds of a call.

A fork gets arguments, environment, working directory and output of its own, a session of its own where it is asked for,
and none of Berth's modules is loaded before it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass
class Forked:
    """A Snakemake that was started; used as a subprocess.Popen is."""

    pid: int
    returncode: int | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def ended(self, status: int) -> None:
        """Its parent has collected it."""
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()

    def poll(self) -> int | None:
        """The exit code, None as long as it lives."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code when it has ended."""
        if not self._ended.wait(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired("snakemake", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it if it lives."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it if it lives."""
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class Loaded:
    """The process that forks, and its forks that live."""

    process: subprocess.Popen[str]
    started: queue.SimpleQueue[Forked] = field(default_factory=queue.SimpleQueue)
    asking: threading.Lock = field(default_factory=threading.Lock)

    def fork(self, asked: Mapping[str, Any]) -> Forked:
        """A fork that is what was asked for."""
        assert self.process.stdin
        with self.asking:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            return self.started.get()

    def listen(self) -> None:
        """Take what it says until it ends."""
        living: dict[int, Forked] = {}
        assert self.process.stdout
        for line in self.process.stdout:
            pid, *status = map(int, line.split())
            if status:
                living.pop(pid).ended(status[0])
            else:
                living[pid] = Forked(pid)
                self.started.put(living[pid])

    def end(self) -> None:
        """Let it end, and collect it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@functools.cache
def loaded() -> Loaded:
    """One for each of pytest's workers; it ends with its standard input."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found = Loaded(process)
    threading.Thread(target=found.listen, daemon=True).start()
    atexit.register(found.end)
    return found


def start_loaded(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], output: Path, *, session: bool
) -> Forked:
    """`snakemake ARGUMENTS` with its output at the end of a file, in a session of its own if asked."""
    asked = {"argv": list(arguments), "cwd": str(cwd), "env": dict(environment), "output": str(output)}
    return loaded().fork({**asked, "session": session})


def run_loaded(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code and the output of `snakemake ARGUMENTS`."""
    with tempfile.NamedTemporaryFile() as output:
        running = start_loaded(arguments, cwd, environment, Path(output.name), session=False)
        try:
            code = running.wait()
        except BaseException:
            # Interrupted, or out of the test's time.
            running.kill()
            raise
        assert code is not None
        return code, Path(output.name).read_text()


def become_snakemake(asked: Mapping[str, Any]) -> None:
    """Be what `snakemake` is when its program has imported it. Does not return."""
    from snakemake.cli import main

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if asked["session"]:
        os.setsid()
    quiet = os.open(os.devnull, os.O_RDONLY)
    output = os.open(asked["output"], os.O_WRONLY | os.O_APPEND)
    for theirs, ours in ((quiet, 0), (output, 1), (output, 2)):
        os.dup2(theirs, ours)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    program = str(Path(sys.executable).with_name("snakemake"))
    # As Python does at its start: the program's folder, PYTHONPATH, and what was there.
    sys.path[:] = [str(Path(program).parent), *asked["env"].get("PYTHONPATH", "").split(":"), *sys.path[1:]]
    sys.argv = [program, *asked["argv"]]
    main()
    sys.exit(0)


def serve(requests: int, answers: TextIO) -> None:
    """Fork for each line, and answer with the child's number, and with it and its exit status when it has ended."""
    # What every run loads once it has begun: for the names of files, and for the sources of scripts.
    import nbformat  # noqa: F401
    import smart_open  # noqa: F401
    import snakemake.cli

    # Registers the plugins of executors, which are looked for and loaded here.
    snakemake.cli.get_argument_parser()
    gc.freeze()
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    waiting = selectors.DefaultSelector()
    for source in (requests, woken):
        waiting.register(source, selectors.EVENT_READ)
    text = b""
    while True:
        for key, _ in waiting.select():
            if key.fd == woken:
                os.read(woken, 512)
                collect(answers)
                continue
            read = os.read(requests, 1 << 16)
            if not read:
                return
            *lines, text = (text + read).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    become_snakemake(json.loads(line))
                print(pid, file=answers, flush=True)


def collect(answers: TextIO) -> None:
    """Tell of every child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        print(pid, status, file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.stdin.fileno(), sys.stdout)
