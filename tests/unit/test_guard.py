"""The process in front of Apptainer: it ends what its command leaves, and ends as its command ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import berth._guard as guard
from berth.processes import guarded, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Leaves a daemon without its environment, in a group of its own and deaf to TERM, and then does what it is told.
LEAVES = """
import os, signal, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        time.sleep(1000)
    os._exit(0)
exec(sys.argv[2])
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.02)


def start(pid_file: Path, then: str, *, parent: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", LEAVES, str(pid_file), then]
    before = [sys.executable, "-IS", guard.__file__, str(os.getpid() if parent is None else parent)]
    return subprocess.Popen([*before, *command], start_new_session=True)


def wait_for(path: str) -> str:
    return f"\nwhile not os.path.exists({path!r}): time.sleep(0.02)\n"


@pytest.mark.parametrize(
    ("then", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("os.kill(os.getpid(), 6)", -6)]
)
def test_what_the_command_leaves_is_ended_and_its_exit_is_told(tmp_path: Path, then: str, code: int) -> None:
    """A daemon that no token and no group shows is adopted and ended; exit code or signal is the command's."""
    pid_file = tmp_path / "pid"
    process = start(pid_file, wait_for(str(pid_file)) + then)
    assert process.wait() == code
    assert start_ticks(int(pid_file.read_text())) is None


def test_a_signal_reaches_the_command(tmp_path: Path) -> None:
    """TERM is handed on, and nothing is left."""
    pid_file = tmp_path / "pid"
    process = start(pid_file, "time.sleep(1000)")
    until(pid_file.exists)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert start_ticks(int(pid_file.read_text())) is None


def test_the_end_of_the_parent_ends_everything(tmp_path: Path) -> None:
    """When the sweep is killed, guard, command and what it left are gone."""
    pid_file, guards = tmp_path / "pid", tmp_path / "guard"
    sweep = """
import os, subprocess, sys
before = [sys.executable, "-IS", sys.argv[1], str(os.getpid())]
started = subprocess.Popen([*before, *sys.argv[3:]], start_new_session=True)
open(sys.argv[2], "w").write(str(started.pid))
started.wait()
"""
    command = [sys.executable, "-c", LEAVES, str(pid_file), "time.sleep(1000)"]
    process = subprocess.Popen([sys.executable, "-c", sweep, guard.__file__, str(guards), *command])
    until(pid_file.exists)
    process.kill()
    process.wait()
    until(lambda: start_ticks(int(guards.read_text())) is None)
    assert start_ticks(int(pid_file.read_text())) is None


def test_a_parent_that_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    """A sweep that died while the guard started is not outlived."""
    assert start(tmp_path / "pid", "pass", parent=1).wait() == 128 + signal.SIGTERM
    assert not (tmp_path / "pid").exists()


def test_only_apptainer_has_a_guard() -> None:
    """Podman and plain processes leave no such helpers."""
    assert guarded(["podman", "run"]) == guarded(["/envs/x/bin/vllm"]) == []
    assert guarded(["/opt/bin/apptainer", "exec"])[-2:] == ["/opt/bin/apptainer", "exec"]
