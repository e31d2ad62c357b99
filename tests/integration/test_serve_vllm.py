"""The server's life with the real vLLM on the CPU: few starts, each of which shows several things."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from real_server import environment_python
from shared_starts import vllm_cache_root

from berth.diagnose import KnownFailure
from berth.lease import lease
from berth.processes import TOKEN_VARIABLE, find_processes, new_token, start_ticks
from berth.ready import Checks, PortTaken, wait_until_ready
from berth.serve import Launch, ServerDied, serve
from berth.sockets import free_port, shared_memory_of
from berth.tinymodel import generate_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

KEY = "sk-a-key-of-the-test-5e21"
FAILURES = (
    KnownFailure(r"Repo id must be in the form|Invalid repository ID", "The model's folder is missing.", "Stage it."),
)

# A sweep in a process of its own: takes the lease, ends what others left, serves, and waits to be ended.
SWEEP = """
import json, pathlib, sys, time
from berth.lease import lease
from berth.ready import Checks, wait_until_ready
from berth.serve import Launch, serve
from berth.signals import terminate_as_exception
spool, token, log, fields = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), json.loads(sys.argv[4])
fields |= {"argv": tuple(fields["argv"]), "cwd": pathlib.Path(fields["cwd"])}
with terminate_as_exception(), lease(spool, heartbeat_s=1, stale_s=10, poll_s=0.1, token=token) as held:
    with serve(Launch(**fields), log_path=log, token=token, grace_s=20, known_failures=()) as server:
        print("started", flush=True)
        wait_until_ready(server, api_key="k", checks=Checks(), stall_s=300, request_timeout_s=10, poll_s=0.1)
        held.record_shared_memory()
        print("ready", flush=True)
        time.sleep(1000)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    generate_model(dest=folder / "tiny", manifest_path=folder / "manifest.json", seed=1)
    return folder / "tiny"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of another server, which must survive everything."""
    process = subprocess.Popen(["sleep", "1000"], env={TOKEN_VARIABLE: new_token()}, start_new_session=True)
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def launch(model: Path, folder: Path, *, worker: bool = False, key: str = KEY) -> Launch:
    python = environment_python()
    port = free_port("127.0.0.1", 20000, 29999)
    env = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(model.parent),
        "VLLM_CACHE_ROOT": str(vllm_cache_root()),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    options = ["--host", "127.0.0.1", "--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "8"]
    if not worker:
        # The engine's process computes by itself, and has no child that does.
        options += ["--distributed-executor-backend", "uni"]
    return Launch(
        argv=("vllm", "serve", str(model), "--served-model-name", "tiny", "--port", str(port), *options),
        env=env,
        secret_env={"VLLM_API_KEY": key},
        cwd=folder,
        host="127.0.0.1",
        port=port,
        served_model="tiny",
    )


def wait(server: Any, **more: Any) -> Any:
    return wait_until_ready(server, api_key=KEY, checks=Checks(), stall_s=300, request_timeout_s=10, poll_s=0.1, **more)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.1)


def start_sweep(folder: Path, token: str, plan: Launch, log_name: str) -> subprocess.Popen[str]:
    fields = {name: getattr(plan, name) for name in ("argv", "env", "secret_env", "host", "port", "served_model")}
    fields["cwd"] = str(plan.cwd)
    command = [sys.executable, "-c", SWEEP, str(folder), token, str(folder / log_name), json.dumps(fields)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_nothing_left(token: str, port: int) -> None:
    assert find_processes(token) == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_ready_in_order_then_a_killed_engine_is_noticed(
    model: Path, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    """All checks pass in order; SIGKILL to the engine's process ends the server, and nothing of it is left."""
    plan = launch(model, tmp_path)
    token = new_token()
    with serve(plan, log_path=tmp_path / "log", token=token, grace_s=20, known_failures=FAILURES) as server:
        timeline = wait(server)
        events = [event.event for event in timeline.events]
        assert events == ["process_started", "listening", "health", "models", "first_completion"]
        server.check()
        # vLLM renames this process, which hides its environment unless SPT_NOENV is set.
        engine = next(process for process in server.processes() if "EngineCore" in " ".join(process.cmdline()))
        assert f"{TOKEN_VARIABLE}={token}".encode() in Path(f"/proc/{engine.pid}/environ").read_bytes()
        assert KEY not in repr([process.cmdline() for process in server.processes()])
        engine.kill()
        until(lambda: not server.alive())
        with pytest.raises(ServerDied, match="What to do"):
            server.check()
    assert_nothing_left(token, plan.port)
    assert KEY not in (tmp_path / "log").read_text()


def test_bad_path_and_busy_port_are_told_with_their_cause(model: Path, tmp_path: Path) -> None:
    """A missing model is diagnosed when the server ends, and a port that another process holds is named."""
    bad, busy = (launch(model, tmp_path) for _ in range(2))
    bad = replace(bad, argv=("vllm", "serve", "/no/such/model", *bad.argv[3:]))
    settings = {"grace_s": 20, "known_failures": FAILURES}
    with (
        socket.create_server(("127.0.0.1", busy.port)),
        serve(bad, log_path=tmp_path / "bad", token=new_token(), **settings) as bad_server,
        serve(busy, log_path=tmp_path / "busy", token=new_token(), **settings) as busy_server,
    ):
        with pytest.raises(ServerDied) as caught:
            wait(bad_server)
        assert caught.value.cause == "The model's folder is missing."
        assert "/no/such/model" in caught.value.line
        with pytest.raises(PortTaken, match=f"Port {busy.port} .*another process listens"):
            wait_until_ready(busy_server, api_key=KEY, checks=Checks(), stall_s=300, request_timeout_s=1, poll_s=0.1)


def test_term_while_loading_and_kill_when_ready_leave_nothing(
    model: Path, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    """TERM to a loading sweep ends all; after SIGKILL to a ready one the next ends what is left, and only that."""
    first, second = new_token(), new_token()
    plan = launch(model, tmp_path, worker=True, key="k")
    sweep = start_sweep(tmp_path, first, plan, "first")
    assert sweep.stdout.readline() == "started\n"
    until(lambda: "EngineCore" in (tmp_path / "first").read_text())
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate()
    assert sweep.returncode != 0
    assert_nothing_left(first, plan.port)

    sweep = start_sweep(tmp_path, second, plan, "second")
    assert sweep.stdout.readline() == "started\n"
    assert sweep.stdout.readline() == "ready\n"
    processes = find_processes(second)
    assert len(processes) >= 2
    shared = shared_memory_of(process.pid for process in processes)
    # A server that hangs: it cannot heed the TERM that the kernel sends it when the sweep dies.
    for process in processes:
        process.suspend()
    sweep.kill()
    sweep.communicate()
    assert {process.pid for process in find_processes(second)} == {process.pid for process in processes}

    with lease(tmp_path, heartbeat_s=1, stale_s=10, poll_s=0.1, token=new_token()) as held:
        assert held.previous.token == second
        ended = held.end_leftovers(grace_s=1)
    assert {entry.pid for entry in ended} == {process.pid for process in processes}
    # None, unlike psutil's view, also for a zombie that its new parent has not reaped yet.
    assert [start_ticks(process.pid) for process in processes] == [None] * len(processes)
    assert not any(Path("/dev/shm", name).exists() for name in shared)
    assert_nothing_left(second, plan.port)
