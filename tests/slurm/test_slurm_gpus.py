"""Two jobs on one node of the real Slurm: each is told its own GPUs, as Podman's flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from workspace import wait_until

if TYPE_CHECKING:
    from slurm_cluster import Slurm

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
ASK = "import os; from berth.gpus import share_of; print(*share_of('podman', 'cuda', os.environ).podman_flags)"


def test_two_jobs_on_one_node_share_its_gpus(slurm: Slurm, tmp_path: Path) -> None:
    """Each of two jobs with two GPUs of one node names two CDI devices, and no device is named twice."""
    answers = [tmp_path / "first", tmp_path / "second"]
    # Both run until both have answered, so that they are on the node at the same time.
    both = " && ".join(f"[ -s {path} ]" for path in answers)
    node = slurm("sinfo", "--noheader", "--Node", "--format=%N").split()[0]
    for path in answers:
        script = f'PYTHONPATH={ROOT / "src"} {sys.executable} -c "{ASK}" > {path}; until {both}; do sleep 0.1; done'
        slurm(
            "sbatch", "--parsable", f"--nodelist={node}", "--ntasks=1", "--gres=gpu:2", "--time=2",
            f"--output={path}.log", "--wrap", script,
        )  # fmt: skip
    wait_until(lambda: all(path.exists() and path.read_text().strip() for path in answers), "both jobs have answered")
    named = [path.read_text().split() for path in answers]
    assert [len(each) for each in named] == [2, 2]
    assert sorted(flag for each in named for flag in each) == [
        f"--device=nvidia.com/gpu={number}" for number in range(4)
    ]
