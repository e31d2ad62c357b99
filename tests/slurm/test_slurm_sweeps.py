"""Sweeps as jobs of a real Slurm, with the settings of profiles/hops: what ends them, and how the rest is measured.

Slurm, Snakemake, its executor and everything of Berth are real. In the place of vLLM is standin_vllm.py, which adds
nothing to what is tested here; test_slurm_vllm.py has the real one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass, field

import pytest
from slurm_cluster import (
    Slurm,
    SlurmWorkspace,
    by_run,
    in_second_point,
    servers,
    set_standin,
    started,
    use_standin,
    wait_until,
)

from berth.watch_state import RunSeen, Watched

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]

LEVELS = [1, 2, 4]
CANCELLED, OUT_OF_TIME, NODE_DIED, UNTOUCHED = RUNS = (1, 2, 3, 4)


@dataclass
class Storm:
    """Four runs side by side, of which three were ended in their second point, each in another way."""

    cluster: Slurm
    workspace: SlurmWorkspace
    planned: dict[str, int]
    shown: dict[int, str] = field(default_factory=dict)
    shown_after: dict[int, str] = field(default_factory=dict)
    jobs: dict[int, str] = field(default_factory=dict)
    points: dict[int, list[int]] = field(default_factory=dict)
    spooled: dict[int, list[int]] = field(default_factory=dict)
    servers_left: list[list[str]] = field(default_factory=list)
    watched: list[RunSeen] = field(default_factory=list)


@pytest.fixture(scope="module")
def storm(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """One call of Snakemake for four runs, in the middle of which three of the jobs are ended."""
    workspace = SlurmWorkspace.on(slurm, tmp_path_factory.mktemp("storm") / "workspace")
    use_standin(workspace, runs=len(RUNS), levels=LEVELS)
    workspace.change_queue(warn_s=45)
    held = (CANCELLED, OUT_OF_TIME, NODE_DIED)
    set_standin(workspace, hold=held)
    happened = Storm(slurm, workspace, workspace.planned("points"))
    with started(workspace) as running:
        wait_until(lambda: len(slurm.jobs()) == len(RUNS), "four jobs")
        happened.jobs = slurm.jobs()
        happened.shown = {run: slurm("scontrol", "show", "job", "-d", job) for run, job in happened.jobs.items()}
        wait_until(lambda: in_second_point(workspace, held), "three second points")
        # At the same time, each on a node of its own.
        assert len({slurm.node_of(happened.jobs[run]) for run in held}) == len(held)
        happened.watched = Watched(workspace.path / "results").look()
        slurm.shorten(happened.jobs[OUT_OF_TIME])
        slurm("scancel", happened.jobs[CANCELLED])
        node = slurm.node_of(happened.jobs[NODE_DIED])
        slurm.kill_node(node, happened.jobs[NODE_DIED])
        assert running.wait() == 1
    happened.shown_after = {run: slurm("scontrol", "show", "job", job) for run, job in happened.jobs.items()}
    happened.points, happened.spooled = by_run(workspace.points()), by_run(workspace.spooled())
    happened.servers_left = servers(workspace)
    slurm.revive_node(node)
    return happened


def test_dry_run_lists_one_job_per_run(storm: Storm) -> None:
    """`-n` lists the points that are missing and one sweep for each run, before anything is submitted."""
    assert storm.planned["sweep"] == len(RUNS)
    assert storm.planned["point"] == len(RUNS) * len(LEVELS)


def test_job_asks_for_nodes_gpus_and_time(storm: Storm) -> None:
    """A run gets a whole node with the GPUs that the deployment needs, and the time that was predicted for it."""
    for shown in storm.shown.values():
        assert re.search(r"NumNodes=1(-1)? ", shown)
        assert "gres:gpu:4" in shown
        # A start of 460 s and points of 28, 21 and 18 s (by the published example), times 1.5; 60 s before them, and
        # 45 s of warning that may come 60 s early.
        assert "TimeLimit=00:16:00" in shown
        assert re.search(r"OverSubscribe=NO|Exclusive=NODE", shown)


def test_live_view_shows_what_each_job_measures(storm: Storm) -> None:
    """While jobs run, `berth.watch` tells which point each measures, which are done, and the job that does it."""
    seen = {each.run.run: each for each in storm.watched}
    for run in (CANCELLED, OUT_OF_TIME, NODE_DIED):
        assert (seen[run].state, seen[run].standing.level, seen[run].waiting) == ("measuring", 2, (4,))
        assert [point.level for point in seen[run].done] == [1]
        assert seen[run].holder.job_id == storm.jobs[run]


def test_finished_run_is_complete(storm: Storm) -> None:
    """What happens to other jobs does not touch a run: all of its points are accepted."""
    assert storm.points == {UNTOUCHED: LEVELS}


def test_finished_points_of_ended_jobs_are_kept(storm: Storm) -> None:
    """After scancel, the end of the walltime and the death of a node, finished points are in the spool."""
    assert {run: storm.spooled[run] for run in (CANCELLED, OUT_OF_TIME, NODE_DIED)} == {
        CANCELLED: [1],
        OUT_OF_TIME: [1],
        NODE_DIED: [1],
    }


@pytest.mark.parametrize("run", [CANCELLED, OUT_OF_TIME])
def test_sweep_is_told_to_end_and_stops_cleanly(storm: Storm, run: int) -> None:
    """Cancelling and the warning before the end of the walltime reach the sweep, which takes its server down."""
    log = "".join(path.read_text() for path in storm.workspace.path.glob(f"results/logs/sweep/**/run{run}.attempt1.*"))
    assert "asked to end by SIGTERM; every finished point is kept" in log
    assert "concurrency 4: point" not in log


def test_slurm_knows_how_each_job_ended(storm: Storm) -> None:
    """The job whose time ran out ended by itself (TIMEOUT where Slurm looked late), the others as they were ended."""
    assert re.search("JobState=(FAILED|TIMEOUT)", storm.shown_after[OUT_OF_TIME])
    assert "JobState=CANCELLED" in storm.shown_after[CANCELLED]
    assert "JobState=NODE_FAIL" in storm.shown_after[NODE_DIED]


def test_nothing_is_left_running(storm: Storm) -> None:
    """When Snakemake has ended, no server runs and no job waits or runs."""
    assert storm.servers_left == []


def lose_first_point(workspace: SlurmWorkspace, run: int) -> None:
    """Remove the first point of a run from the spool."""
    for path in workspace.path.glob(f"results/spool/**/run{run}/c1.*"):
        path.unlink()


def test_interrupt_and_resume(storm: Storm) -> None:
    """Ctrl-C ends jobs and servers; the next call measures only what is missing, in as many jobs as the site allows.

    The durations in the accepted records are made long here, so that the prediction from earlier records is seen to
    count: two points then fit into a job of 42 minutes, and three do not.
    """
    workspace, cluster = storm.workspace, storm.cluster
    unfinished = (CANCELLED, OUT_OF_TIME, NODE_DIED)
    # One run has lost all of its points, so that it has more left than fits into one job.
    lose_first_point(workspace, CANCELLED)
    kept = {run: next(workspace.path.glob(f"results/spool/**/run{run}/c1.json")).read_bytes() for run in unfinished[1:]}
    for path in workspace.points().values():
        record = json.loads(path.read_text())
        record["wall"]["duration_s"] = 600.0
        path.write_text(json.dumps(record))
    workspace.change_queue(max_minutes=42)
    # Three runs, one of them in two jobs; the points in the spool need no sweep.
    assert workspace.planned("points") == {"sweep": 4, "point": 9, "points": 1, "total": 14}

    set_standin(workspace, hold=unfinished)
    begin = time.time()
    with started(workspace) as running:
        wait_until(lambda: in_second_point(workspace, unfinished, begin), "three second points")
        assert set(cluster.jobs()) == set(unfinished)
        # As a terminal does: to the whole group.
        os.killpg(running.pid, signal.SIGINT)
        running.wait()
    wait_until(lambda: not cluster.jobs(), "no job is left", 30)
    wait_until(lambda: not workspace.processes(), "no process is left", 30)

    set_standin(workspace, hold=())
    lose_first_point(workspace, CANCELLED)
    before = {path: path.read_bytes() for path in workspace.path.glob(f"results/points/**/run{UNTOUCHED}/*")}
    workspace.run("points")
    assert by_run(workspace.points()) == dict.fromkeys(RUNS, LEVELS)
    for run, record in kept.items():
        assert next(workspace.path.glob(f"results/points/**/run{run}/c1.json")).read_bytes() == record
    assert {path: path.read_bytes() for path in before} == before
    assert servers(workspace) == []
    assert not list(workspace.path.glob("results/sweeps/**/*.done"))
    assert set(workspace.planned("points")) == {"points", "total"}
    logs = sorted(path.name for path in workspace.path.glob(f"results/logs/sweep/**/run{CANCELLED}.*"))
    assert logs == [
        "run1.attempt1.c1-2.4-4.log",
        "run1.attempt1.c1-2.log",
        "run1.attempt1.c1-4.log",
    ]
