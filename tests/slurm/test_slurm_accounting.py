"""Two runs on a real Slurm with accounting by slurmdbd, where a job's state is asked of sacct as in profiles/hops."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

from berth.accounting import jobs_of_slurm
from berth.record import read_record

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slurm, pytest.mark.slurmdbd, pytest.mark.workflow]

UNTOUCHED, KILLED = RUNS = (1, 2)
LEVELS = [1, 2]


def states(cluster: Slurm) -> list[str]:
    """What the accounting knows of the jobs: state, nodes, account, partition and QOS, the oldest first."""
    fields = "--format=State,AllocNodes,Account,Partition,QOS"
    return cluster("sacct", "-X", "-n", "-P", "--starttime=now-1hour", fields).splitlines()


def test_two_runs_with_accounting(accounted: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs side by side in the account of the platform file; one is killed by its walltime, and then resumed.

    Its server is deaf to TERM, so that the sweep that was warned cannot end in time: Slurm kills everything.
    """
    workspace = SlurmWorkspace.on(accounted, tmp_path / "workspace")
    workspace.change_profile(**{"slurm-status-command": "sacct"})
    use_standin(workspace, runs=len(RUNS), levels=LEVELS)
    workspace.configure(lambda config: config["sweep"].update(stop_grace_s=300))
    workspace.change_queue(account="research", partition="batch", qos="normal", warn_s=45)
    set_standin(workspace, hold=[KILLED], stubborn=[KILLED])
    with started(workspace) as running:
        wait_until(lambda: in_second_point(workspace, [KILLED]), "the second point of run 2")
        assert set(accounted.jobs()) == set(RUNS) or by_run(workspace.spooled())[UNTOUCHED] == LEVELS
        accounted.shorten(accounted.jobs()[KILLED])
        assert running.wait() == 1
    assert "SLURM status is: 'TIMEOUT" in workspace.output()
    assert servers(workspace) == []
    assert by_run(workspace.points()) == {UNTOUCHED: LEVELS}
    assert by_run(workspace.spooled())[KILLED] == LEVELS[:1]
    assert sorted(states(accounted)) == ["COMPLETED|1|research|batch|normal", "TIMEOUT|1|research|batch|normal"]

    # The costs of jobs are read from the real sacct; their ids are in the records.
    ids = {record["server"]["job_id"] for record in map(read_record, workspace.points().values())}
    for name, value in accounted.environment.items():
        monkeypatch.setenv(name, value)
    jobs = jobs_of_slurm(ids)
    assert set(jobs) == ids
    assert all(job.ended and job.submitted <= job.started <= job.ended for job in jobs.values())

    kept = next(workspace.path.glob(f"results/spool/**/run{KILLED}/c1.json")).read_bytes()
    set_standin(workspace, hold=(), stubborn=())
    workspace.run("points")
    assert by_run(workspace.points()) == dict.fromkeys(RUNS, LEVELS)
    assert next(workspace.path.glob(f"results/points/**/run{KILLED}/c1.json")).read_bytes() == kept
    assert len(states(accounted)) == len(RUNS) + 1
