"""What `doctor` learns from a real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from berth._doctor_scheduler import slurm_checks
from berth.config import Slurm

if TYPE_CHECKING:
    from slurm_cluster import Slurm as Cluster

pytestmark = pytest.mark.slurm


def test_doctor_asks_slurm_and_submits_nothing(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partition, jobs that would be taken, jobs that would be refused: each is told, and the queue stays as it was."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    before = slurm("squeue", "--noheader")
    jobs = {
        "fits": {"nodes": 2, "tasks_per_node": 2, "gres": "gpu:4", "runtime": 10, "slurm_partition": "batch"},
        "too-many-gpus": {"nodes": 1, "gres": "gpu:9", "runtime": 10},
        "too-many-nodes": {"nodes": 99, "runtime": 10},
        "foreign": {"nodes": 1, "runtime": 10, "slurm_partition": "no-such"},
    }
    told = list(slurm_checks(Slurm(partition="batch", account="any"), jobs, "sacct", 40))
    assert [result.status for result in told] == ["ok", "FAIL", "ok", "ok", "ok", "FAIL", "FAIL", "FAIL"]
    assert "UP" in told[0].what
    assert "keeps no accounting" in told[1].what
    assert "partition batch is up, 4 nodes, gpu:4" in told[2].what
    assert "would take the job of fits: Job" in told[4].what
    assert "Requested node configuration is not available" in told[5].what
    assert "partition" in told[7].what.lower()
    (unknown,) = [each for each in slurm_checks(Slurm(partition="gpus"), {}, None, None) if each.status == "FAIL"]
    assert unknown.remedy.endswith("one of: batch")
    assert slurm("squeue", "--noheader") == before
