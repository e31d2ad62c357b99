"""Readiness, against a stand-in server that can show each failure in a second (the real vLLM: tests/integration)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from berth.diagnose import KnownFailure
from berth.processes import find_processes, new_token
from berth.ready import Checks, NotReady, PortTaken, Timeline, wait_until_ready
from berth.serve import Launch, Server, ServerDied, serve
from berth.sockets import free_port
from berth.watchdog import Stalled, TokenWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDIN = Path(__file__).with_name("standin_server.py")
KEY = "fresh-random-key"
FAILURES = [KnownFailure(r"no such model", "The model is missing.", "Stage it.")]


def launch(mode: str, tmp_path: Path, port: int | None = None) -> Launch:
    port = port or free_port("127.0.0.1", 20000, 29999)
    return Launch(
        argv=(sys.executable, str(STANDIN), str(port), mode),
        env={"PATH": os.environ["PATH"]},
        secret_env={"VLLM_API_KEY": KEY},
        cwd=tmp_path,
        host="127.0.0.1",
        port=port,
        served_model="tiny",
    )


@contextmanager
def started(mode: str, tmp_path: Path, port: int | None = None) -> Iterator[Server]:
    with serve(
        launch(mode, tmp_path, port),
        log_path=tmp_path / "server.log",
        token=new_token(),
        grace_s=1,
        known_failures=FAILURES,
    ) as server:
        yield server


def wait(server: Server, **changes: Any) -> Timeline:
    settings = {"stall_s": 3.0, "request_timeout_s": 5, "poll_s": 0.05, "checks": Checks()} | changes
    return wait_until_ready(server, api_key=KEY, **settings)


def test_events_in_order(tmp_path: Path) -> None:
    """A ready server has passed all checks in order, and each was told when it happened."""
    told = []
    with started("fine", tmp_path) as server:
        timeline = wait(server, on_event=lambda event, elapsed_s: told.append((event, elapsed_s)))
        server.check()
    assert [event for event, _ in told] == ["process_started", "listening", "health", "models", "first_completion"]
    assert [(event.event, event.elapsed_s) for event in timeline.events] == told
    assert sorted(elapsed for _, elapsed in told) == [elapsed for _, elapsed in told]
    assert timeline.as_json()[0] == {"event": "process_started", "elapsed_s": 0.0}


@pytest.mark.parametrize("mode", ["slow-log", "slow-cpu", "slow-read"])
def test_slow_server_with_progress_is_waited_for(mode: str, tmp_path: Path) -> None:
    """A server that takes longer than the stall time is not given up while its log grows, it computes or it reads."""
    with started(mode, tmp_path) as server:
        timeline = wait(server)
    assert timeline.events[1].elapsed_s > 3, "the stand-in was not slow enough to show anything"


def test_stalled_server_is_given_up(tmp_path: Path) -> None:
    """A server that does nothing is given up after the stall time, and what was seen last is told."""
    with started("stalls", tmp_path) as server, pytest.raises(NotReady) as caught:
        wait(server)
    assert "made no progress for 3 s" in caught.value.cause
    assert "nothing listens" in caught.value.cause
    assert caught.value.tail.endswith("starting")


def test_own_probes_are_no_progress(tmp_path: Path) -> None:
    """A server that only logs our own requests stalls, although its log grows for ever."""
    with started("unhealthy", tmp_path) as server, pytest.raises(NotReady, match="/health: HTTP 503"):
        wait(server)
    assert '"GET /health' in (tmp_path / "server.log").read_text()


def test_limit_ends_the_wait(tmp_path: Path) -> None:
    """The job's own time limit ends the wait, however much progress there is."""
    with started("slow-log", tmp_path) as server, pytest.raises(NotReady, match=r"not ready 0\.5 s after its start"):
        wait(server, limit_s=0.5)


def test_death_is_told_at_once_with_its_cause(tmp_path: Path) -> None:
    """A server that ends while it is waited for is diagnosed from the recipe's table, long before any deadline."""
    with started("fails-at-start", tmp_path) as server, pytest.raises(ServerDied) as caught:
        wait(server, stall_s=10_000)
    assert (caught.value.cause, caught.value.remedy) == ("The model is missing.", "Stage it.")
    assert caught.value.line == "ValueError: no such model"


def test_kill_is_told(tmp_path: Path) -> None:
    """A server that the kernel kills is told as killed."""
    with started("killed", tmp_path) as server, pytest.raises(ServerDied, match="out-of-memory killer"):
        wait(server, stall_s=10_000)


def test_server_that_dies_at_the_first_completion_is_not_ready(tmp_path: Path) -> None:
    """200 on /health is not readiness: a server that dies at its first request is reported dead."""
    with started("dies", tmp_path) as server, pytest.raises(ServerDied, match="pipeline broke"):
        wait(server, stall_s=10_000)


@pytest.mark.parametrize("mode", ["hangs", "spins"])
def test_completion_that_never_comes_is_a_stall(mode: str, tmp_path: Path) -> None:
    """An engine that is dead or spins while its API answers is given up, though it may compute."""
    with started(mode, tmp_path) as server, pytest.raises(NotReady, match="made no progress"):
        wait(server)


@pytest.mark.parametrize(("mode", "words"), [("fails", "engine is dead"), ("zero", "completion_tokens")])
def test_completion_that_fails_for_long_is_not_ready(mode: str, words: str, tmp_path: Path) -> None:
    """A server that answers with errors or no token is given up, although each failure makes its log grow."""
    with started(mode, tmp_path) as server, pytest.raises(NotReady) as caught:
        wait(server)
    assert "completion" in caught.value.cause
    assert words in caught.value.cause


@pytest.mark.parametrize(("mode", "words"), [("refuses", "no chat template"), ("other-model", "'tiny' but other")])
def test_hopeless_answers_end_the_wait_at_once(mode: str, words: str, tmp_path: Path) -> None:
    """A request that the server calls wrong, or a model that it does not know, is not repeated until the stall."""
    with started(mode, tmp_path) as server, pytest.raises(NotReady, match=words):
        wait(server, stall_s=10_000)


@pytest.mark.parametrize(
    ("mode", "words"), [("fine", "refuses the key that was made for our server"), ("open", "answers without a key")]
)
def test_foreign_server_on_the_port_is_refused(mode: str, words: str, tmp_path: Path) -> None:
    """Another server that took the port answers, but not as ours, and is told from it by the fresh key."""
    ours = launch("stalls", tmp_path)
    foreign = subprocess.Popen(
        [sys.executable, str(STANDIN), str(ours.port), mode],
        env={"PATH": os.environ["PATH"], "VLLM_API_KEY": "of somebody else"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        with started("stalls", tmp_path, ours.port) as server, pytest.raises(PortTaken, match=words) as caught:
            wait(server, stall_s=10_000)
        assert f"Port {ours.port} of 127.0.0.1 is used by another server" in caught.value.cause
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_server_that_found_its_port_taken_is_told_so(tmp_path: Path) -> None:
    """When our server ends because something that is no HTTP server holds its port, the port is named as the cause."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started("fine", tmp_path, port) as server, pytest.raises(PortTaken, match="another process listens"):
            wait(server, stall_s=10_000, request_timeout_s=0.2)


def test_two_servers_sharing_a_port_are_noticed(tmp_path: Path) -> None:
    """With SO_REUSEPORT, which vLLM sets, two servers of one user both get a port: that is refused."""
    with started("shares", tmp_path) as server, socket.socket() as other:
        wait(server)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", server.launch.port))
        other.listen()
        with pytest.raises(PortTaken, match="share it"):
            wait(server)
        with pytest.raises(ServerDied, match="was replaced"):
            server.check()


def test_listener_at_another_address_is_no_trouble(tmp_path: Path) -> None:
    """The same port at another address of the host is somebody else's business."""
    with started("fine", tmp_path) as server, socket.create_server(("127.0.0.2", server.launch.port)):
        wait(server)
        server.check()


def test_proxy_of_the_site_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables of the job do not keep us from a server of the same node."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with started("fine", tmp_path) as server:
        wait(server)


def test_key_is_in_no_argument_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The key reaches the server by its environment and the Authorization header only."""
    caplog.set_level("DEBUG")
    with started("fine", tmp_path) as server:
        wait(server)
        commands = [process.cmdline() for process in find_processes(server.token)]
        assert KEY not in repr(server.launch)
    assert commands
    assert KEY not in repr(commands)
    assert KEY not in caplog.text + (tmp_path / "server.log").read_text()


def test_token_watch_notices_a_standstill() -> None:
    """A number that stands still for the stall time is a stall, one that changes is none, with a clock of our own."""
    clock = iter(range(0, 1000, 10))
    values = iter([1, 2, 2, 3, None, 3, 3, 3])
    watch = TokenWatch(lambda: next(values), stall_s=25, clock=lambda: next(clock))
    for _ in range(6):
        watch.check()
    with pytest.raises(Stalled, match=r"nothing for 25 s .*stood at 3"):
        watch.check()


def test_token_watch_with_the_real_clock() -> None:
    """A number that cannot be read is no progress."""
    watch = TokenWatch(lambda: None, stall_s=0.1)
    watch.check()
    time.sleep(0.2)
    with pytest.raises(Stalled, match="could not be read"):
        watch.check()
