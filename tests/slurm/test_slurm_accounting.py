"""A sweep on a real Slurm with accounting by slurmdbd, where a job's state is asked of sacct as in profiles/hops."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from slurm_cluster import INSTALL, PROGRAMS, Slurm, SlurmWorkspace, missing_programs, use_standin

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slurm, pytest.mark.slurmdbd, pytest.mark.workflow]


@pytest.fixture
def accounted() -> Iterator[Slurm]:
    """One node, with accounting."""
    missing = missing_programs(*PROGRAMS, "slurmdbd", "mariadbd", "mariadb-install-db")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}. {INSTALL} slurmdbd mariadb-server")
    with tempfile.TemporaryDirectory(prefix="berth-slurm-") as folder:
        cluster = Slurm.start(Path(folder), nodes=1, accounting=True)
        yield cluster
        cluster.stop()


def test_states_come_from_sacct(accounted: Slurm, tmp_path: Path) -> None:
    """With accounting the profile needs no change: the job's end is seen by sacct, which knows the job afterwards."""
    workspace = SlurmWorkspace.on(accounted, tmp_path / "workspace")
    workspace.change_profile(**{"slurm-status-command": "sacct"})
    use_standin(workspace, runs=1, levels=[1])
    workspace.run("points")
    assert len(workspace.points()) == 1
    states = accounted("sacct", "-X", "-n", "-P", "--starttime=now-1hour", "--format=State,AllocNodes").split()
    assert states == ["COMPLETED|1"]
