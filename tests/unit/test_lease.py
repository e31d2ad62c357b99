"""The lease, held by real processes that contend, die, stop and wake up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from berth.errors import BerthError
from berth.holder import Holder, Identity
from berth.lease import LeaseLost, lease
from berth.processes import TOKEN_VARIABLE, new_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., subprocess.Popen[str]]

QUICK = {"heartbeat_s": 0.1, "stale_s": 1.0, "poll_s": 0.05}

CONTENDER = """
import os, sys
from pathlib import Path
from berth.lease import lease
directory, shared, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    with lease(directory, heartbeat_s=0.1, stale_s=1.0, poll_s=0.01, token="t%d" % os.getpid()) as held:
        held.check()
        inside = os.open(shared / "inside", os.O_CREAT | os.O_EXCL)  # fails when another holder is inside
        counter = shared / "counter"
        counter.write_text(str(int(counter.read_text()) + 1))
        os.close(inside)
        (shared / "inside").unlink()
"""

HOLDER = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from berth.holder import Identity
from berth.lease import LeaseLost, lease
directory, host = Path(sys.argv[1]), sys.argv[2]
identity = Identity.current()
if host:
    identity = replace(identity, host=host, machine_id=host, boot_id=host)
with lease(directory, heartbeat_s=0.1, stale_s=1.0, poll_s=0.05, token=sys.argv[3], identity=identity) as held:
    print("held", flush=True)
    try:
        while True:
            time.sleep(0.05)
            held.check()
    except LeaseLost:
        print("lost", flush=True)
"""


def elsewhere(name: str) -> Identity:
    """The calling process as it would look on another host."""
    return replace(Identity.current(), host=name, machine_id=name, boot_id=name)


@pytest.fixture
def holder() -> Iterator[Start]:
    """Starts processes that hold a lease until they are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path, *, host: str = "", token: str = "first") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(directory), host, token], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def contenders(tmp_path: Path, count: int, rounds: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CONTENDER, str(tmp_path / "spool"), str(tmp_path), str(rounds)]
    return [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count)]


def test_contending_processes_never_hold_together(tmp_path: Path) -> None:
    """Eight processes take the lease five times each, and no two are ever inside."""
    (tmp_path / "counter").write_text("0")
    for process in contenders(tmp_path, 8, 5):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert (tmp_path / "counter").read_text() == "40"
    assert len(list((tmp_path / "spool").glob("lease.*.json"))) == 1


def test_contenders_for_a_dead_lease_never_hold_together(tmp_path: Path, holder: Start) -> None:
    """When a killed holder's lease is taken over by many at once, one gets it and the others wait."""
    (tmp_path / "counter").write_text("0")
    first = holder(tmp_path / "spool")
    waiting = contenders(tmp_path, 6, 1)
    first.kill()
    for process in waiting:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert (tmp_path / "counter").read_text() == "6"


def test_stale_view_does_not_take_a_number_again(tmp_path: Path) -> None:
    """A sweep that looked long ago cannot take a generation that was taken, released and removed meanwhile."""
    from berth import leasefiles

    with lease(tmp_path, token="a", **QUICK) as held:
        content = Holder.from_json(json.loads(held.path.read_text()))
    with lease(tmp_path, token="b", **QUICK) as held:
        assert held.generation == 2
        assert not leasefiles.link(tmp_path, 1, content)
        held.check()
        assert [path.name for path in tmp_path.iterdir()] == ["lease.000002.json"]


def test_killed_holder_on_this_host_is_replaced_at_once(tmp_path: Path, holder: Start) -> None:
    """After SIGKILL the next sweep takes over without waiting for the heartbeat to grow stale, and learns the token."""
    first = holder(tmp_path, token="the-first")
    first.kill()
    # Not reaped: its parent, as a scheduler's daemon may, lets it stay a zombie.
    with lease(tmp_path, heartbeat_s=1, stale_s=100_000, poll_s=0.01, token="second") as held:
        assert held.previous is not None
        assert held.previous.token == "the-first"
        assert held.previous.identity.pid == first.pid


def test_live_holder_is_waited_for_and_named(tmp_path: Path, holder: Start) -> None:
    """The later sweep says who holds the lease, waits, and gets it when the holder ends by itself."""
    first = holder(tmp_path)
    said = []

    def on_wait(waited: Holder) -> None:
        said.append(str(waited))
        first.send_signal(signal.SIGINT)

    with lease(tmp_path, token="second", on_wait=on_wait, **QUICK) as held:
        assert held.previous is None, "a released lease leaves nothing behind"
    assert len(said) == 1
    assert f"process {first.pid} on " in said[0]


def test_stopped_holder_on_this_host_keeps_the_lease(tmp_path: Path, holder: Start) -> None:
    """A holder on this host that only stands still is alive, however old its heartbeat is."""
    first = holder(tmp_path)
    first.send_signal(signal.SIGSTOP)
    recorded = Holder.from_json(json.loads((tmp_path / "lease.000001.json").read_text()))
    assert Identity.current().knows_dead(recorded.identity) is False


def test_stopped_holder_elsewhere_loses_the_lease_when_it_wakes_up(tmp_path: Path, holder: Start) -> None:
    """A paused holder of another host is replaced once its heartbeat stands still, and is told so when it wakes up."""
    first = holder(tmp_path, host="other")
    first.send_signal(signal.SIGSTOP)
    with lease(tmp_path, token="second", **QUICK) as held:
        first.send_signal(signal.SIGCONT)
        assert first.stdout.readline() == "lost\n"
        first.wait()
        held.check()
        assert held.generation == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lease.000002.json"]


def test_clock_differences_do_not_matter(tmp_path: Path, holder: Start) -> None:
    """A holder elsewhere whose clock is a year behind is alive as long as its heartbeat changes."""
    first = holder(tmp_path, host="other")
    path = tmp_path / "lease.000001.json"
    waits = []

    class TiredError(Exception):
        pass

    def on_wait(_holder: Holder) -> None:
        waits.append(1)

    # The holder's own heartbeat is stopped and replaced by one of an old clock, more often than it grows stale.
    first.send_signal(signal.SIGSTOP)
    heart = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os,sys,time\nfor second in range(10**6): os.utime(sys.argv[1],(second,second)); time.sleep(0.1)",
            str(path),
        ],
    )
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TiredError))
    signal.setitimer(signal.ITIMER_REAL, 4.0)
    try:
        with (
            pytest.raises(TiredError),
            lease(tmp_path, token="second", on_wait=on_wait, heartbeat_s=0.1, stale_s=2, poll_s=0.05),
        ):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        heart.kill()
        heart.wait()
    assert waits == [1]
    assert [entry.name for entry in tmp_path.glob("lease.*")] == [path.name]


def test_identity_tells_the_dead_from_the_living() -> None:
    """The same process is alive, one started at another time is dead, and so is one of an earlier boot of this host."""
    here = replace(Identity.current(), machine_id="m")
    assert here.knows_dead(here) is False
    assert here.knows_dead(replace(here, start_ticks=here.start_ticks + 1)) is True
    assert here.knows_dead(replace(here, boot_id="earlier")) is True


def test_identity_does_not_guess() -> None:
    """Equal host names alone, or another numbering of processes, say nothing about a holder."""
    here = Identity.current()
    assert replace(here, machine_id="").knows_dead(replace(here, machine_id="", boot_id="x")) is None
    assert here.knows_dead(replace(here, machine_id="cloned", boot_id="x")) is None
    assert here.knows_dead(replace(here, pid_namespace="pid:[1]")) is None


def test_zombie_is_dead() -> None:
    """A killed process that its parent has not reaped holds nothing."""
    process = subprocess.Popen(["sleep", "100"])
    from berth.processes import start_ticks

    victim = replace(Identity.current(), pid=process.pid, start_ticks=start_ticks(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Identity.current().knows_dead(victim) is True
    process.wait()


def test_removed_lease_is_lost(tmp_path: Path) -> None:
    """A holder whose file somebody deleted stops instead of writing."""
    with lease(tmp_path, token="a", **QUICK) as held:
        held.path.unlink()
        with pytest.raises(LeaseLost, match="stops and writes nothing more"):
            held.check()
    assert list(tmp_path.iterdir()) == []


def test_release_after_an_exception(tmp_path: Path) -> None:
    """A sweep that fails lets the next one in, with nothing to end."""
    with pytest.raises(KeyError), lease(tmp_path, token="a", **QUICK):
        raise KeyError
    with lease(tmp_path, token="b", **QUICK) as held:
        assert held.previous is None


def test_leftovers_of_dead_holders_are_ended_and_nothing_else(tmp_path: Path, holder: Start) -> None:
    """The next sweep ends the servers of two holders that were killed in a row, and no process of another token."""
    tokens = [new_token() for _ in range(3)]
    servers = [
        subprocess.Popen(["sleep", "1000"], env={TOKEN_VARIABLE: token}, start_new_session=True) for token in tokens
    ]
    for token in tokens[:2]:
        holder(tmp_path, token=token).kill()
    try:
        with lease(tmp_path, token="new", **QUICK) as held:
            ended = held.end_leftovers(grace_s=5)
            assert {entry.pid for entry in ended} == {server.pid for server in servers[:2]}
            assert [server.wait() for server in servers[:2]] == [-signal.SIGTERM] * 2
            assert servers[2].poll() is None
            assert held.end_leftovers(grace_s=5) == []
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_leftovers_elsewhere_stay_noted(tmp_path: Path) -> None:
    """What a dead holder left on another host is passed on, until a sweep runs on that host."""
    abandoned = lease(tmp_path, token="over-there", identity=elsewhere("there"), **QUICK)
    with abandoned as held:
        content = held.path.read_text()
    held.path.write_text(content)  # as if it had never been released
    with lease(tmp_path, token="b", **QUICK) as held:
        assert held.previous.token == "over-there"
        assert held.end_leftovers(grace_s=1) == []
    recorded = Holder.from_json(json.loads(held.path.read_text()))
    assert recorded.released
    assert [entry.token for entry in recorded.leftovers] == ["over-there"]


def test_release_notes_a_server_that_still_runs(tmp_path: Path) -> None:
    """When a sweep ends without having ended its server, the next one knows of it."""
    token = new_token()
    server = subprocess.Popen(["sleep", "1000"], env={TOKEN_VARIABLE: token}, start_new_session=True)
    try:
        with lease(tmp_path, token=token, **QUICK):
            pass
        with lease(tmp_path, token="b", **QUICK) as held:
            assert [entry.pid for entry in held.end_leftovers(grace_s=5)] == [server.pid]
    finally:
        server.kill()
        server.wait()


def test_foreign_file_is_named(tmp_path: Path) -> None:
    """A lease file that is none gives one error that names it and says what to do."""
    (tmp_path / "lease.000001.json").write_text('{"hello": 1}')
    with (
        pytest.raises(BerthError, match=r"lease\.000001\.json is no lease.*delete it"),
        lease(tmp_path, token="a", **QUICK),
    ):
        pass


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    """A lease that grows stale between two heartbeats is refused."""
    with (
        pytest.raises(BerthError, match="at least three times"),
        lease(tmp_path, token="a", heartbeat_s=10, stale_s=20, poll_s=1),
    ):
        pass


def test_lease_works_on_a_full_disk(tmp_path: Path) -> None:
    """The heartbeat and the check need no room, and the next sweep gets in when the disk has room again."""
    import resource

    with lease(tmp_path, token="a", **QUICK) as held:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # Any write of a byte to a file now fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            stamp = held.path.stat().st_mtime_ns
            held.check()
            assert held.path.stat().st_mtime_ns != stamp
            held.record_shared_memory()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with lease(tmp_path, token="b", **QUICK) as held:
        assert held.previous is None


def test_job_id_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler's job id is in the lease, so that people can see which job to look at."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with lease(tmp_path, token="a", **QUICK) as held:
        holder = Holder.from_json(json.loads(held.path.read_text()))
    assert "job 4711" in str(holder)
    assert holder.identity.pid == psutil.Process().pid


def test_a_lease_says_how_podman_was_called_and_nothing_else_is_run_from_it(tmp_path: Path) -> None:
    """Podman's storage is noted for the next sweep; a file that names another program is no lease."""
    called = ("podman", "--root=/local/storage", "--runroot=/local/run")
    with lease(tmp_path, token="first", podman=called, environ={"PATH": "/nowhere"}, **QUICK):
        text = (tmp_path / "lease.000001.json").read_text()
        assert Holder.from_json(json.loads(text)).podman == called
    for other in (["rm", "-rf", "/"], ["podman", "--root=/x", "--log-level=debug"], ["podman", "rm"]):
        with pytest.raises(ValueError, match="podman"):
            Holder.from_json({**json.loads(text), "podman": other})
    assert Holder.from_json({k: v for k, v in json.loads(text).items() if k != "podman"}).podman == ()
