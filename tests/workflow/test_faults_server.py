"""A server that dies costs the point in flight and no other. The real workflow, server and client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from workspace import LEVELS, levels_of, point_starts, run_log, wait_until

if TYPE_CHECKING:
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm]


def test_killed_server_is_a_crash_in_log_and_figure(workspace: Workspace) -> None:
    """The server killed in a point: that point has crashed, the next has a new server, the gap is planned."""
    workspace.configure(lambda config: config["benchmarks"]["demo"]["concurrency"].extend([8, 16]))
    before = workspace.snapshot()
    assert workspace.planned()["point"] == 2
    running = workspace.start()
    wait_until(lambda: point_starts(workspace, 8), "the new point starts")
    for server in workspace.servers():
        for process in [*server.children(recursive=True), server]:
            process.kill()
    assert running.wait() == 1
    assert levels_of(workspace.points()) == [*LEVELS, 16]
    failure = json.loads(next(iter(workspace.failures().values())).read_text())
    assert failure["point"]["concurrency"] == 8
    assert failure["failure"]["kind"] == "crash"
    assert "starting the server again (1 of 1)" in run_log(workspace)
    assert ">crash<" in (workspace.path / "results/figures/local/output_throughput.svg").read_text()

    assert workspace.planned()["point"] == 1
    after = workspace.snapshot()
    assert {name: after[name] for name in before} == before
