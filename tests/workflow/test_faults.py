"""Nothing finished is lost and nothing is left behind, whatever is killed. The real workflow, server and client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from workspace import LEVELS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import psutil
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm]


def levels_of(records: dict[str, Path]) -> list[int]:
    return sorted(int(key.rpartition("/c")[2]) for key in records)


def run_log(workspace: Workspace) -> str:
    path = workspace.path / "run.log"
    return path.read_text() if path.exists() else ""


def point_starts(workspace: Workspace, level: int) -> bool:
    return f"concurrency {level}: point" in run_log(workspace)


def sweeps(workspace: Workspace) -> list[psutil.Process]:
    return [p for p in workspace.processes() if p.cmdline()[-1:] and p.cmdline()[-1].endswith(".sweep.py")]


def test_refused_point_is_told_and_measured_again(workspace: Workspace) -> None:
    """A point whose client is killed is refused with its reason; the others keep bytes and time stamp; it is next."""
    before = workspace.snapshot()
    deleted = next(path for key, path in workspace.points().items() if key.endswith("/c2"))
    deleted.unlink()
    assert workspace.planned()["point"] == 1
    running = workspace.start()
    wait_until(lambda: point_starts(workspace, 2), "the deleted point starts")
    worker = next(p for p in workspace.processes() if "_bench_worker.py" in " ".join(p.cmdline()))
    worker.kill()
    assert running.wait() == 1
    assert "c2 refused (client)" in run_log(workspace)
    failure = json.loads(next(iter(workspace.failures().values())).read_text())
    assert failure["failure"]["kind"] == "client"
    assert workspace.servers() == []

    assert workspace.planned()["point"] == 1
    workspace.run()
    after = workspace.snapshot()
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in after if "/c2." in name}


def test_killed_server_is_a_crash_in_log_and_figure(workspace: Workspace) -> None:
    """The server killed in a point: that point has crashed, a new server measures the next, a rerun the gap."""
    workspace.configure(lambda config: config["benchmarks"]["demo"]["concurrency"].extend([8, 16]))
    before = workspace.snapshot()
    assert workspace.planned()["point"] == 2
    running = workspace.start()
    wait_until(lambda: point_starts(workspace, 8), "the new point starts")
    for server in workspace.servers():
        for process in [*server.children(recursive=True), server]:
            process.kill()
    assert running.wait() == 1
    assert levels_of(workspace.points()) == [*LEVELS, 16]
    failure = json.loads(next(iter(workspace.failures().values())).read_text())
    assert failure["point"]["concurrency"] == 8
    assert failure["failure"]["kind"] == "crash"
    assert "starting the server again (1 of 1)" in run_log(workspace)
    assert ">crash<" in (workspace.path / "results/figures/local/output_throughput.svg").read_text()

    assert workspace.planned()["point"] == 1
    workspace.run()
    assert levels_of(workspace.points()) == [*LEVELS, 8, 16]
    after = workspace.snapshot()
    assert {name: after[name] for name in before} == before


def test_killed_snakemake_and_killed_sweep(workspace: Workspace) -> None:
    """Snakemake is killed, its sweep goes on; a second sweep waits for it, and takes over when it is killed too."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=7))
    old = workspace.snapshot()
    first = workspace.start()
    wait_until(lambda: levels_of(workspace.spooled()) == [1], "the first point is in the spool")
    kept = next(iter(workspace.spooled().values())).read_bytes()
    (first_sweep,) = sweeps(workspace)
    workspace.kill_session(first)
    assert first_sweep.is_running()
    # It goes on without Snakemake. Stopped, so that its short points are not done before the second sweep comes.
    first_sweep.suspend()

    workspace.run("--unlock")
    second = workspace.start()
    wait_until(lambda: "waiting for the sweep that holds" in run_log(workspace), "the second sweep waits")
    assert len(workspace.servers()) == 1
    first_sweep.kill()
    assert second.wait() == 0
    spec = {key for key in workspace.points() if not any(name.startswith(key + ".") for name in old)}
    assert sorted(int(key.rpartition("/c")[2]) for key in spec) == list(LEVELS)
    accepted = next(path for key, path in workspace.points().items() if key in spec and key.endswith("/c1"))
    assert accepted.read_bytes() == kept
    assert workspace.servers() == []
    after = workspace.snapshot()
    assert {name: after[name] for name in old} == old
    # Both definitions are in one table, and so in one figure.
    assert len((workspace.path / "results/tidy/points.csv").read_text().splitlines()) == 1 + 2 * len(LEVELS)


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(16 * 1024))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs: run as root")
def test_full_spool_loses_nothing(workspace: Workspace) -> None:
    """A spool that fills up ends the sweep before the next point; with room again only the rest is measured."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=8))
    spool = workspace.path / "results/spool"
    spool.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(spool)], check=True)
    try:
        running = workspace.start()
        wait_until(lambda: point_starts(workspace, 1), "the first point starts")
        fill(spool / "filler")
        assert running.wait() == 1
        assert "no room for the next point's record" in run_log(workspace)
        assert levels_of(workspace.spooled()) == [1]
        kept = next(iter(workspace.spooled().values())).read_bytes()
        (spool / "filler").unlink()
        assert workspace.planned()["point"] == len(LEVELS)
        workspace.run()
        assert kept in [path.read_bytes() for path in workspace.points().values()]
    finally:
        subprocess.run(["umount", "--lazy", str(spool)], check=True)


def test_terminated_sweep_keeps_what_is_finished(workspace: Workspace) -> None:
    """TERM to the sweep, as a scheduler sends it, ends the server at once and keeps the finished points."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=9))
    running = workspace.start()
    wait_until(lambda: levels_of(workspace.spooled()) == [1], "the first point is in the spool")
    (sweep,) = sweeps(workspace)
    sweep.send_signal(signal.SIGTERM)
    assert running.wait() == 1
    assert workspace.servers() == []
    assert "every finished point is kept" in run_log(workspace)
    assert levels_of(workspace.spooled())[:1] == [1]
