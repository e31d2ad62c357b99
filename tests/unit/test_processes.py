"""Processes found by their token and ended, whatever they do against it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from berth.errors import BerthError
from berth.processes import TOKEN_VARIABLE, end_processes, find_processes, mark_of, new_token, spawn, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENV = {"PATH": os.environ["PATH"]}

# Each writes the pids of all its processes to a file, one a line.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:                     # a daemon: double fork, a session of its own
    os.setsid()
    if os.fork() == 0:
        pass
    else:
        os._exit(0)
elif os.fork() == 0:                   # a child without the token, as vLLM's renamed engine looks without SPT_NOENV
    os.execve(sys.executable, [sys.executable, "-c", WITHOUT % sys.argv[1]], {})
with open(sys.argv[1], "a") as file:
    file.write("%d\\n" % os.getpid())
time.sleep(1000)
"""
WITHOUT = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(%r, 'a').write('%%d\\n' %% os.getpid())
time.sleep(1000)
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.02)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def start(tmp_path: Path, *argv: str, token: str, secret_env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return spawn(
        argv, env=ENV, secret_env=secret_env or {}, cwd=tmp_path, log_path=tmp_path / "log" / "server.log", token=token
    )


def start_stubborn(tmp_path: Path, token: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    pids = tmp_path / "pids"
    process = start(tmp_path, sys.executable, "-c", f"WITHOUT = {WITHOUT!r}\n{STUBBORN}", str(pids), token=token)
    until(lambda: len(lines(pids)) == 3)
    return process, [int(pid) for pid in lines(pids)]


def test_stubborn_processes_and_daemons_are_ended(tmp_path: Path) -> None:
    """Processes that ignore TERM, a daemon and a child without the token are all found, and KILL ends them."""
    token = new_token()
    process, pids = start_stubborn(tmp_path, token)
    assert {found.pid for found in find_processes(token)} == set(pids)
    ended = end_processes(token, grace_s=0.2)
    assert {entry.pid: entry.signal for entry in ended} == dict.fromkeys(pids, "KILL")
    process.wait()
    assert not any(start_ticks(pid) for pid in pids)


def test_term_is_enough_for_the_willing(tmp_path: Path) -> None:
    """A process that heeds TERM is not killed."""
    token = new_token()
    process = start(tmp_path, "sleep", "1000", token=token)
    until(lambda: psutil.Process(process.pid).name() == "sleep")
    assert [entry.signal for entry in end_processes(token, grace_s=60)] == ["TERM"]
    assert process.wait() == -signal.SIGTERM


def test_stopped_process_is_ended(tmp_path: Path) -> None:
    """A process that stands still cannot react to TERM, and KILL ends it."""
    token = new_token()
    process = start(tmp_path, "sleep", "1000", token=token)
    process.send_signal(signal.SIGSTOP)
    assert [entry.signal for entry in end_processes(token, grace_s=0.1)] == ["KILL"]
    process.wait()


def test_others_are_left_alone(tmp_path: Path) -> None:
    """A process of another server, one without a token and one with a longer token survive."""
    token = new_token()
    bystanders = [
        start(tmp_path, "sleep", "1000", token=new_token()),
        start(tmp_path, "sleep", "1000", token=f"{token}0"),
        subprocess.Popen(["sleep", "1000"]),
    ]
    process = start(tmp_path, "sleep", "1000", token=token)
    try:
        assert [entry.pid for entry in end_processes(token, grace_s=60)] == [process.pid]
        assert [bystander.poll() for bystander in bystanders] == [None, None, None]
    finally:
        process.wait()
        for bystander in bystanders:
            bystander.kill()
            bystander.wait()


def test_child_of_ours_with_another_token_is_left_alone(tmp_path: Path) -> None:
    """A process below a server's that belongs to another server is not ended with it."""
    token, other = new_token(), new_token()
    pid = tmp_path / "pid"
    process = start(tmp_path, "sh", "-c", f"{TOKEN_VARIABLE}={other} sleep 1000 & echo $! > {pid}; wait", token=token)
    until(lambda: bool(lines(pid)))
    child = int(lines(pid)[0])
    until(lambda: [found.pid for found in find_processes(other)] == [child])
    assert [entry.pid for entry in end_processes(token, grace_s=60)] == [process.pid]
    process.wait()
    assert [entry.pid for entry in end_processes(other, grace_s=60)] == [child]


def test_session_finds_a_child_whose_parent_is_dead(tmp_path: Path) -> None:
    """With the session of a dead server that is not reaped, its child without a token is found, and only then."""
    token = new_token()
    pid = tmp_path / "pid"
    process = start(tmp_path, "sh", "-c", f"env -i sleep 1000 & echo $! > {pid}; wait", token=token)
    until(lambda: bool(lines(pid)) and start_ticks(int(lines(pid)[0])) is not None)
    child = psutil.Process(int(lines(pid)[0]))
    until(lambda: child.name() == "sleep")
    process.kill()
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert find_processes(token) == []
    assert [entry.pid for entry in end_processes(token, grace_s=60, session=process.pid)] == [child.pid]
    process.wait()


def test_caller_and_its_ancestors_are_never_ended(tmp_path: Path) -> None:
    """A caller that carries the token itself, as a job inside a server's environment would, survives."""
    token = new_token()
    code = (
        "import subprocess, sys\nfrom berth.processes import end_processes\n"
        f"child = subprocess.Popen(['sleep', '1000'])\nended = end_processes({token!r}, grace_s=60)\n"
        "assert [entry.pid for entry in ended] == [child.pid], ended\nchild.wait(); print('alive')"
    )
    command = ["sh", "-c", '"$@"; echo parent', "sh", sys.executable, "-c", code]
    result = subprocess.run(command, env=ENV | {TOKEN_VARIABLE: token}, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["alive", "parent"], result.stderr


def test_processes_born_meanwhile_are_ended(tmp_path: Path) -> None:
    """A server that starts new processes at every TERM leaves none."""
    token = new_token()
    ready = tmp_path / "ready"
    code = (
        "import signal,subprocess,sys,time\n"
        "def again(*_): subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        f"signal.signal(signal.SIGTERM, again); open({str(ready)!r},'w').close()\n"
        "while True: time.sleep(0.01)"
    )
    process = start(tmp_path, sys.executable, "-c", code, token=token)
    until(ready.exists)
    ended = end_processes(token, grace_s=0.5)
    assert len(ended) >= 2
    assert find_processes(token) == []
    process.wait()


def test_nothing_to_end_is_no_error() -> None:
    """A token that no process has ends nothing."""
    assert end_processes(new_token(), grace_s=60) == []


def test_spawned_process_is_alone(tmp_path: Path) -> None:
    """A server has a session of its own, no input, only the given environment, and secrets only there."""
    token = new_token()
    code = (
        "import os,sys; print(os.getsid(0)==os.getpid(), repr(sys.stdin.read()), sorted(os.environ)); print(sys.argv)"
    )
    process = start(tmp_path, sys.executable, "-c", code, token=token, secret_env={"VLLM_API_KEY": "hidden"})
    assert process.wait() == 0
    log = (tmp_path / "log" / "server.log").read_text()
    names = sorted([TOKEN_VARIABLE, "PATH", "SPT_NOENV", "VLLM_API_KEY", *(["LC_CTYPE"] if "LC_CTYPE" in log else [])])
    assert log == f"True '' {names}\n['-c']\n"
    assert "hidden" not in log


def test_log_is_appended_to(tmp_path: Path) -> None:
    """A second server of the same log does not destroy what the first one said."""
    for word in ("first", "second"):
        start(tmp_path, "echo", word, token=new_token()).wait()
    assert (tmp_path / "log" / "server.log").read_text() == "first\nsecond\n"


def test_missing_program_is_named(tmp_path: Path) -> None:
    """A program that is not there gives one error with its name and the PATH that was searched."""
    with pytest.raises(BerthError, match=r"'no-such-server' was not found .*PATH of the server"):
        start(tmp_path, "no-such-server", token=new_token())


def test_server_is_asked_to_end_when_its_caller_is_killed(tmp_path: Path) -> None:
    """After SIGKILL of the caller the kernel sends the server TERM, so that it does not keep the GPUs for nobody."""
    token = new_token()
    code = (
        "import os,sys,time\nfrom pathlib import Path\nfrom berth.processes import spawn\n"
        f"spawn(['sleep','1000'], env={ENV!r}, secret_env={{}}, cwd=Path('.'), log_path=Path('log'), token={token!r})\n"
        "print('started', flush=True); time.sleep(1000)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert caller.stdout.readline() == "started\n"
    until(lambda: [found.name() for found in find_processes(token)] == ["sleep"])
    caller.kill()
    until(lambda: find_processes(token) == [])
    caller.wait()
    caller.stdout.close()


def test_the_monitor_of_a_container_that_podman_forgot_is_found_by_its_name(tmp_path: Path) -> None:
    """A `podman run` that is killed while it makes a container leaves conmon, whose environment has no token."""
    conmon = tmp_path / "conmon"
    # A stand-in: a script is called as its file, and the real one stays for a moment that no test can hit.
    conmon.write_text("#!/bin/sh\nsleep 1000 &\nwait\n")
    conmon.chmod(0o755)
    mine, other = new_token(), new_token()
    started = {
        token: subprocess.Popen([conmon, "-n", f"berth-x-run1-4711-{mark_of(token)}-client"], env=ENV)
        for token in (mine, other)
    }
    try:
        until(lambda: len(find_processes(mine)) == len(find_processes(other)) == 2)
        assert {process.pid for process in find_processes(mine)} & {started[other].pid} == set()
        ended = end_processes(mine, grace_s=1)
        assert {entry.name for entry in ended} == {"conmon", "sleep"}
        started[mine].wait()
        assert started[other].poll() is None
    finally:
        end_processes(other, grace_s=1)
        for process in started.values():
            process.wait()
