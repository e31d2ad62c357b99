"""The private Slurm itself: that nothing of it outlives the tests."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest
from slurm_cluster import Slurm, folder_for_slurm, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slurm


def of(folder: Path) -> list[str]:
    """Command lines of the processes that belong to a cluster."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = process.info["cmdline"] or []
        places = [*command, *(process.info["environ"] or {}).values()]
        if any(str(folder) in place for place in places):
            found.append(" ".join(command))
    return found


def test_a_cluster_goes_with_its_owner(slurm: Slurm) -> None:
    """After SIGKILL of the process that owns a cluster its daemons, its jobs and its folder are gone."""
    owner = subprocess.Popen(["sleep", "600"])
    with folder_for_slurm() as folder:
        cluster = Slurm.start(folder, nodes=1, owner=owner.pid)
        cluster("sbatch", "--output=/dev/null", "--wrap=sleep 600")
        wait_until(lambda: "R" in cluster("squeue", "--noheader", "--format=%t"), "the job runs")
        assert any("slurmd" in command for command in of(folder))
        owner.kill()
        owner.wait()
        wait_until(lambda: not of(folder) and not folder.exists(), "nothing is left", 60)
    assert "UP" in slurm("scontrol", "ping")
