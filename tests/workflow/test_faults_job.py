"""Nothing finished is lost and nothing is left when the client, the server, the job, Snakemake or the disk ends.

Snakemake, the processes and the disk are real. In the place of vLLM is the stand-in of tests/slurm, for what is tested
is what Berth does around it. The real one is killed in a point in tests/nodes/test_nodes_vllm.py, its engine in
tests/integration/test_serve_vllm.py, its client in tests/integration/test_client_vllm.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from standin import set_standin, stage_standin
from workspace import LEVELS, Workspace, levels_of, parent_of, point_starts, run_log, wait_until, words_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def measured_by_standin(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose experiment is complete: three points of one run."""
    workspace = Workspace.create(tmp_path_factory.mktemp("faults") / "measured")
    stage_standin(workspace, "local")
    workspace.configure(
        lambda config: (
            config["benchmarks"]["demo"].update(warm_up_prompts=0),
            config["sweep"].update(client_mode="process", stop_grace_s=3),
            # Each figure of an experiment is a job of its own; the published ones have nothing to do with faults.
            config.update(experiments={"local": config["experiments"]["local"]}),
        )
    )
    workspace.run("points")
    return workspace


@pytest.fixture
def workspace(measured_by_standin: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """A copy whose second point lasts until it is released, and which must leave no process behind."""
    copy = measured_by_standin.clone(tmp_path / "workspace")
    stage_standin(copy, "local")
    set_standin(copy, hold=[1])
    yield copy
    copy.leave_nothing()


def sweeps(workspace: Workspace) -> list[psutil.Process]:
    found = [p for p in workspace.processes() if (words := words_of(p)) and words[-1].endswith(".sweep.py")]
    # What a sweep starts has its command line for a moment.
    numbers = {p.pid for p in found}
    return [p for p in found if parent_of(p) not in numbers]


def clients(workspace: Workspace) -> list[psutil.Process]:
    return [p for p in workspace.processes() if words_of(p)[2:4] == ["bench", "serve"]]


def test_refused_point_is_told_and_measured_again(workspace: Workspace) -> None:
    """A point whose client is killed is refused with its reason; the others keep bytes and time stamp; it is next."""
    before = workspace.snapshot()
    deleted = next(path for key, path in workspace.points().items() if key.endswith("/c2"))
    deleted.unlink()
    assert workspace.planned("points")["point"] == 1
    running = workspace.start("points")
    (client,) = wait_until(lambda: clients(workspace), "the deleted point is measured")
    client.kill()
    assert running.wait() == 1
    assert "c2 refused (client)" in run_log(workspace)
    failure = json.loads(next(iter(workspace.failures().values())).read_text())
    assert failure["failure"]["kind"] == "client"
    assert workspace.servers() == []

    set_standin(workspace, hold=())
    assert workspace.planned("points")["point"] == 1
    workspace.run("points")
    after = workspace.snapshot()
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in after if "/c2." in name}


def test_killed_server_is_a_crash_in_log_and_figure(workspace: Workspace) -> None:
    """The server killed in a point: that point has crashed, the next has a new server, the gap is planned."""
    before = workspace.snapshot()
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=10))
    running = workspace.start("figures")
    wait_until(lambda: point_starts(workspace, 2), "the second point starts")
    (server,) = workspace.servers()
    for process in [*server.children(recursive=True), server]:
        process.kill()
    assert running.wait() == 1
    failure = json.loads(next(iter(workspace.failures().values())).read_text())
    assert failure["point"]["concurrency"] == 2
    assert failure["failure"]["kind"] == "crash"
    measured = [path for key, path in workspace.points().items() if not any(name.startswith(key) for name in before)]
    records = [json.loads(path.read_text()) for path in measured]
    instances = {record["point"]["concurrency"]: record["server"]["instance"] for record in records}
    assert instances == {1: 1, 4: 2}
    assert "starting the server again (1 of 1)" in run_log(workspace)
    assert ">crash<" in (workspace.path / "results/figures/local/output_throughput.svg").read_text()
    assert workspace.planned("points")["point"] == 1
    after = workspace.snapshot()
    assert {name: after[name] for name in before} == before


def test_killed_snakemake_and_killed_sweep(workspace: Workspace) -> None:
    """Snakemake is killed, its sweep goes on; a second sweep waits for it, and takes over when it is killed too."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=7))
    old = workspace.snapshot()
    first = workspace.start("points")
    wait_until(lambda: levels_of(workspace.spooled()) == [1], "the first point is in the spool")
    kept = next(iter(workspace.spooled().values())).read_bytes()
    (first_sweep,) = sweeps(workspace)
    workspace.kill_session(first)
    assert first_sweep.is_running()

    workspace.run("--unlock")
    second = workspace.start("points", "results/tidy/points.csv")
    wait_until(lambda: "waiting for the sweep that holds" in run_log(workspace), "the second sweep waits")
    assert len(workspace.servers()) == 1
    first_sweep.kill()
    set_standin(workspace, hold=())
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
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=8, concurrency=[2, 4, 8]))
    spool = workspace.path / "results/spool"
    spool.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(spool)], check=True)
    try:
        running = workspace.start("points")
        wait_until(lambda: point_starts(workspace, 2), "the first point starts")
        fill(spool / "filler")
        set_standin(workspace, hold=())
        assert running.wait() == 1
        assert "no room for the next point's record" in run_log(workspace)
        assert levels_of(workspace.spooled()) == [2]
        kept = next(iter(workspace.spooled().values())).read_bytes()
        (spool / "filler").unlink()
        assert workspace.planned("points")["point"] == 3
        workspace.run("points")
        assert kept in [path.read_bytes() for path in workspace.points().values()]
    finally:
        subprocess.run(["umount", "--lazy", str(spool)], check=True)


def test_terminated_sweep_keeps_what_is_finished(workspace: Workspace) -> None:
    """TERM to the sweep, as a scheduler sends it, ends the server at once and keeps the finished points."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=9))
    running = workspace.start("points")
    wait_until(lambda: levels_of(workspace.spooled()) == [1], "the first point is in the spool")
    (sweep,) = sweeps(workspace)
    sweep.send_signal(signal.SIGTERM)
    assert running.wait() == 1
    assert workspace.servers() == []
    assert "every finished point is kept" in run_log(workspace)
    assert levels_of(workspace.spooled()) == [1]
