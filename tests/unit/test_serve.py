"""The server's life: whatever ends the block, nothing of it is left. A stand-in serves (the real vLLM: integration)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from berth import sockets
from berth.errors import BerthError
from berth.processes import find_processes, new_token, start_ticks
from berth.serve import Launch, ServerDied, serve
from berth.signals import Terminated, terminate_as_exception, uninterrupted
from berth.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

STANDIN = Path(__file__).with_name("standin_server.py")

# A sweep of its own process: serves, says so, waits, and tells how it ended.
SWEEP = """
import os, sys, time
from pathlib import Path
from berth.ready import Checks, wait_until_ready
from berth.serve import Launch, serve
from berth.signals import Terminated, terminate_as_exception
port, token, mode, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
launch = Launch(argv=(sys.executable, sys.argv[5], str(port), mode), env={"PATH": os.environ["PATH"]},
                secret_env={"VLLM_API_KEY": "k"}, cwd=folder, host="127.0.0.1", port=port, served_model="tiny")
try:
    settings = {"log_path": folder / "log", "token": token, "grace_s": 1, "known_failures": ()}
    with terminate_as_exception(), serve(launch, **settings) as server:
        wait_until_ready(server, api_key="k", checks=Checks(), stall_s=30, request_timeout_s=5, poll_s=0.05)
        print("ready", flush=True)
        if len(sys.argv) > 6:
            raise RuntimeError(sys.argv[6])
        time.sleep(1000)
except Terminated as end:
    print("terminated", end.signum, flush=True)
    sys.exit(end.exit_code)
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.02)


class Sweep:
    def __init__(self, tmp_path: Path, mode: str, *more: str) -> None:
        self.token = new_token()
        self.port = free_port("127.0.0.1", 20000, 29999)
        command = [sys.executable, "-c", SWEEP, str(self.port), self.token, mode, str(tmp_path), str(STANDIN), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def end(self) -> tuple[str, str]:
        output = self.process.communicate()
        assert find_processes(self.token) == []
        with socket.create_server(("127.0.0.1", self.port)):
            pass
        return output


def launch(argv: tuple[str, ...], tmp_path: Path, **changes: object) -> Launch:
    values = {
        "argv": argv,
        "env": {"PATH": os.environ["PATH"]},
        "cwd": tmp_path,
        "host": "127.0.0.1",
        "port": free_port("127.0.0.1", 20000, 29999),
        "served_model": "tiny",
    }
    return Launch(**(values | changes))


def settings(tmp_path: Path) -> dict:
    return {"log_path": tmp_path / "log", "token": new_token(), "grace_s": 1, "known_failures": ()}


@pytest.mark.parametrize("mode", ["fine", "deaf"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_leaves_nothing(signum: int, mode: str, tmp_path: Path) -> None:
    """After TERM, INT or HUP to the sweep no process and no port is left, not even of a server with a deaf daemon."""
    sweep = Sweep(tmp_path, mode)
    assert len(find_processes(sweep.token)) == (2 if mode == "deaf" else 1)
    sweep.process.send_signal(signum)
    output, errors = sweep.end()
    assert output == f"terminated {int(signum)}\n", errors
    assert sweep.process.returncode == 128 + signum


def test_second_signal_does_not_stop_the_cleanup(tmp_path: Path) -> None:
    """An impatient user or scheduler that signals again and again does not make the sweep leave its server behind."""
    sweep = Sweep(tmp_path, "deaf")
    while sweep.process.poll() is None:
        sweep.process.send_signal(signal.SIGTERM)
        sweep.process.send_signal(signal.SIGINT)
    sweep.end()
    # A signal that comes after the clean-up ends Python before it has told of the first one.
    assert sweep.process.returncode in {128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT}


def test_exception_leaves_nothing(tmp_path: Path) -> None:
    """An error in the block reaches the caller, and the server is gone."""
    sweep = Sweep(tmp_path, "deaf", "something broke")
    _, errors = sweep.end()
    assert "RuntimeError: something broke" in errors


def test_killed_sweep_leaves_only_what_is_found_by_its_token(tmp_path: Path) -> None:
    """After SIGKILL of the sweep, a willing server ends by itself; a deaf one is found by its token."""
    willing = Sweep(tmp_path, "fine")
    deaf = Sweep(tmp_path, "deaf")
    for sweep in (willing, deaf):
        sweep.process.kill()
        sweep.process.communicate()
    until(lambda: find_processes(willing.token) == [])
    left = find_processes(deaf.token)
    assert len(left) == 2
    for process in left:
        process.kill()


def test_check_tells_that_the_server_died(tmp_path: Path) -> None:
    """A server that was killed during the block is reported as dead, with its exit and the end of its log."""
    command = ("sh", "-c", "echo the last words; exec sleep 1000")
    with serve(launch(command, tmp_path), **settings(tmp_path)) as server:
        server.check()
        until(lambda: "words" in (tmp_path / "log").read_text())
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not server.alive())
        with pytest.raises(ServerDied) as caught:
            server.check()
        assert server.returncode == -signal.SIGKILL
    assert caught.value.kind == "crash"
    assert "out-of-memory" in caught.value.cause
    assert caught.value.tail == "the last words"
    assert server.returncode == -signal.SIGKILL


def test_pid_is_not_given_away_while_the_block_lasts(tmp_path: Path) -> None:
    """A dead server stays unreaped until its session is ended, so that its number can mean no other process."""
    with serve(launch(("false",), tmp_path), **settings(tmp_path)) as server:
        until(lambda: server.returncode == 1)
        assert Path(f"/proc/{server.pid}").exists()
    assert not Path(f"/proc/{server.pid}").exists()


def test_stop_commands_run_in_order(tmp_path: Path) -> None:
    """The stop commands run before the processes are ended, all of them, also when one fails or is missing."""
    said = tmp_path / "said"
    stop = (
        ("sh", "-c", f"echo first >> {said}; exit 3"),
        ("no-such-runtime", "stop"),
        ("sh", "-c", f"echo second >> {said}; ps -o args= >> {said}"),
    )
    with serve(launch(("sleep", "1000"), tmp_path, stop=stop), **settings(tmp_path)) as server:
        pid = server.pid
    assert said.read_text().startswith("first\nsecond\n")
    assert start_ticks(pid) is None


def test_server_that_cannot_start_is_one_error(tmp_path: Path) -> None:
    """A missing program or working directory is named, and nothing is left to clean up."""
    with (
        pytest.raises(BerthError, match="'no-such-server' was not found"),
        serve(launch(("no-such-server",), tmp_path), **settings(tmp_path)),
    ):
        pass
    with (
        pytest.raises(BerthError, match="working directory"),
        serve(launch(("sleep", "1"), tmp_path, cwd=tmp_path / "none"), **settings(tmp_path)),
    ):
        pass


def test_shared_memory_of_a_killed_server_is_removed(tmp_path: Path) -> None:
    """The server's own files in /dev/shm go with it; another's, and data that somebody staged there, stay."""
    tag = new_token()
    names = [f"psm_{tag}_ours", f"psm_{tag}_bystander", f"model_{tag}.safetensors"]
    code = (
        "import mmap,sys,time\nmaps=[]\nfor name in sys.argv[1:]:\n"
        " f=open('/dev/shm/'+name,'w+b'); f.truncate(4096); maps.append(mmap.mmap(f.fileno(),4096))\n"
        "print('mapped',flush=True); time.sleep(1000)"
    )
    bystander = subprocess.Popen([sys.executable, "-c", code, names[1]], stdout=subprocess.PIPE, text=True)
    try:
        assert bystander.stdout.readline() == "mapped\n"
        with serve(launch((sys.executable, "-c", code, names[0], names[2]), tmp_path), **settings(tmp_path)):
            until(lambda: (tmp_path / "log").read_text() == "mapped\n")
        assert [Path("/dev/shm", name).exists() for name in names] == [False, True, True]
    finally:
        bystander.kill()
        bystander.communicate()
        for name in names:
            Path("/dev/shm", name).unlink(missing_ok=True)


def test_removed_shared_memory_is_only_that_which_was_seen(tmp_path: Path) -> None:
    """A file of the same name but another inode is somebody else's, and one that is mapped is in use."""
    path = Path("/dev/shm", f"psm_{new_token()}")
    path.touch()
    try:
        inode = path.stat().st_ino
        assert sockets.remove_shared_memory({path.name: inode + 1}) == []
        assert sockets.remove_shared_memory({path.name: inode}) == [path.name]
    finally:
        path.unlink(missing_ok=True)


def test_free_port_skips_what_is_taken() -> None:
    """A port on which something listens is never chosen, and a range without a free port is named with its key."""
    # An address of this machine that no other test uses: the ports beside this one are free there.
    host = "127.83.0.1"
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BerthError, match=rf"platform\.ports: no port from {port} to {port} is free"):
            free_port(host, port, port, key="platform.ports")
        with pytest.raises(BerthError, match="no port"):
            free_port("0.0.0.0", port, port)
        chosen = {free_port(host, port - 3, port + 3) for _ in range(50)}
        assert port not in chosen


@pytest.mark.parametrize(("low", "high"), [(9000, 8000), (0, 10), (60000, 70000)])
def test_impossible_range_is_refused(low: int, high: int) -> None:
    """A range that is none is refused with what is allowed."""
    with pytest.raises(BerthError, match="Allowed: 1 <= first <= last <= 65535"):
        free_port("127.0.0.1", low, high)


def test_address_of_another_machine_is_refused() -> None:
    """An address that this machine does not have is named."""
    with pytest.raises(BerthError, match=r"cannot listen on '192\.0\.2\.1'"):
        free_port("192.0.2.1", 8000, 8010)


def test_shielded_block_is_finished_before_the_signal_counts() -> None:
    """A TERM inside uninterrupted() is delivered when the block has ended, not lost."""
    done = []

    def work() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("cleanup")
        done.append("after")

    with pytest.raises(Terminated), terminate_as_exception():
        work()
    assert done == ["cleanup"]


def test_handlers_are_put_back() -> None:
    """After the block the process reacts to signals as before."""
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with terminate_as_exception():
        pass
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
