"""A client or a server that dies costs the point in flight and no other. The real workflow, server and client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from workspace import LEVELS, levels_of, point_starts, run_log, wait_until, words_of

if TYPE_CHECKING:
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm]


def test_refused_point_is_told_and_measured_again(workspace: Workspace) -> None:
    """A point whose client is killed is refused with its reason; the others keep bytes and time stamp; it is next."""
    before = workspace.snapshot()
    deleted = next(path for key, path in workspace.points().items() if key.endswith("/c2"))
    deleted.unlink()
    assert workspace.planned()["point"] == 1
    running = workspace.start()
    wait_until(lambda: point_starts(workspace, 2), "the deleted point starts")
    worker = next(p for p in workspace.processes() if "_bench_worker.py" in " ".join(words_of(p)))
    worker.kill()
    assert running.wait() == 1
    assert "c2 refused (client)" in run_log(workspace)
    failure = json.loads(next(iter(workspace.failures().values())).read_text())
    assert failure["failure"]["kind"] == "client"
    assert workspace.servers() == []

    assert workspace.planned()["point"] == 1
    workspace.run()
    after = workspace.snapshot()
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in after if "/c2." in name}


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
