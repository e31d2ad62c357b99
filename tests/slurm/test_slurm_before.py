"""What is told before a sweep of profiles/hops is submitted or started, on a real Slurm.

In the place of vLLM is standin_vllm.py, which adds nothing to what is tested here.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from slurm_cluster import Slurm, SlurmWorkspace, use_standin

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]


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
    """The exit code of Snakemake in an allocation that a person has, where `--executor local` submits nothing."""
    with (workspace.path / "allocation.log").open("w") as log:
        done = subprocess.run(
            [
                "salloc",
                f"--time={minutes}",
                "--exclusive",
                *workspace.command("points", "--executor", "local", *options),
            ],
            cwd=workspace.path,
            env=workspace.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
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
