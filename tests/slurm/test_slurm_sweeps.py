"""Sweeps as jobs of a real Slurm, with the settings of profiles/hops: what ends them, and how the rest is measured.

Slurm, Snakemake, its executor and everything of Berth are real. In the place of vLLM is standin_vllm.py, which adds
nothing to what is tested here; test_slurm_vllm.py has the real one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

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


@pytest.fixture(scope="module")
def small(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> SlurmWorkspace:
    """A workspace with one run of one point, of which nothing is measured."""
    workspace = SlurmWorkspace.on(slurm, tmp_path_factory.mktemp("small") / "workspace")
    use_standin(workspace, runs=1, levels=[1])
    return workspace


def test_refused_job_is_told_before_submission(small: SlurmWorkspace) -> None:
    """What Slurm would refuse is one error with file, key and Slurm's own words, and no job was made or started."""
    small.change_queue(partition="nowhere")
    output = small.run("points", code=1)
    small.change_queue(partition="batch")
    assert "config/platforms/hops.yaml: slurm.partition: Slurm would refuse the job of tiny-local" in output
    assert "invalid partition specified: nowhere" in output
    assert "has been submitted" not in output
    assert small.processes() == []


@pytest.mark.parametrize("target", ["-n", "--quiet"])
def test_walltime_below_the_start_is_refused_before_submission(small: SlurmWorkspace, target: str) -> None:
    """A limit too short for the start of the server and one point is one error, in a dry run as in a real one."""
    small.change_queue(max_minutes=10)
    output = small.run("points", target, code=1)
    small.change_queue(max_minutes=60)
    assert "config/platforms/hops.yaml: max_minutes: 10 minutes are too short for deployment tiny-local" in output
    assert "the start of the server (7.7 min)" in output
    assert "Traceback" not in output.partition("too short")[0]


def test_more_gpus_than_a_node_has_are_refused(small: SlurmWorkspace) -> None:
    """A deployment that needs more accelerators than the platform file says is refused while it is planned."""
    small.configure(lambda config: config["deployments"]["tiny-local"].update(tensor_parallel=8))
    output = small.run("points", "-n", code=1)
    small.configure(lambda config: config["deployments"]["tiny-local"].update(tensor_parallel=4))
    assert "8 ranks, but 1 node(s) of hops have 4 H100. Lower the parallelism or raise nodes." in output


def test_sacct_without_accounting_is_refused(small: SlurmWorkspace) -> None:
    """Snakemake would wait for ever for a job's state from accounting that does not exist; Berth says so first."""
    small.change_profile(**{"slurm-status-command": "sacct"})
    output = small.run("points", code=1)
    small.change_profile(**{"slurm-status-command": "squeue"})
    assert "slurm-status-command: sacct, but this Slurm keeps no accounting" in output
    assert "Set it to squeue" in output
    assert small.cluster
    assert not small.cluster.jobs()


def in_allocation(workspace: SlurmWorkspace, minutes: int, *options: str) -> int:
    """The exit code of Snakemake in a job that a person has, where `--executor local` submits nothing."""
    command = shlex.join(workspace.command("points", "--executor", "local", *options))
    done = subprocess.run(
        ["sbatch", "--wait", f"--time={minutes}", "--exclusive", "--output=allocation.log", f"--wrap={command}"],
        cwd=workspace.path,
        env=workspace.environment(),
        check=False,
    )
    return done.returncode


def test_an_allocation_is_used_by_one_server_after_the_other(small: SlurmWorkspace) -> None:
    """Two servers side by side are refused; one in too short an allocation is not started; else both runs follow."""
    small.configure(lambda config: config["experiments"]["local"].update(runs=2))
    assert in_allocation(small, 10, "--cores", "2") == 1
    log = small.path / "allocation.log"
    assert "2 servers would run side by side on this node" in log.read_text()
    assert small.failures() == {}

    assert in_allocation(small, 4) == 1
    failures = [json.loads(path.read_text())["failure"] for path in small.failures().values()]
    assert len(failures) == 2
    assert {failure["kind"] for failure in failures} == {"aborted"}
    assert "No server was started: this job ends in" in failures[0]["cause"]
    assert not list((small.path / "results/logs/server").rglob("server.log"))

    assert in_allocation(small, 10) == 0, log.read_text()[-3000:]
    walls = sorted((record["wall"]["start"], record["wall"]["end"]) for record in records(small))
    assert len(walls) == 2
    assert walls[0][1] < walls[1][0], "two servers ran beside each other"
    assert {record["server"]["job_id"] for record in records(small)} != {None}


def records(workspace: SlurmWorkspace) -> list[dict[str, Any]]:
    """The accepted records."""
    return [json.loads(path.read_text()) for path in workspace.points().values()]
