"""A deployment that is kept up on this machine, without a scheduler, with the stand-in for vLLM of tests/slurm."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from leaks import SECRETS, Watch, files_with
from workspace import Workspace, wait_until

from berth import services
from berth.termfiles import TermFiles

sys.path.append(str(Path(__file__).resolve().parents[1] / "slurm"))

from slurm_cluster import use_standin

if TYPE_CHECKING:
    from berth.services import Service

pytestmark = pytest.mark.workflow

NAME = "tiny-local"
SETTINGS = {"drain_s": 5, "quick_s": 0, "backoff_s": 0.5, "poll_s": 0.3, "check_s": 0.5}


def ready(results: Path, events: int) -> Service | None:
    """The service, when it is ready and so much has happened to it."""
    found = services.read(results, "local", NAME)
    return found if found and found.ready and len(found.history) >= events else None


def test_a_service_without_scheduler(tmp_path: Path) -> None:
    """A killed job is replaced and its server ended; the next keeper takes over, and ends it at its date.

    `access` finds the way in, and what leads there follows. No secret gets into a file, an output or an argument.
    """
    workspace = Workspace.create(tmp_path / "workspace")
    use_standin(workspace, runs=1, levels=[1], platform="local", accelerators=1)

    def change(config: dict[str, Any]) -> None:
        config["services"] = SETTINGS

    workspace.configure(change)
    results, keys = workspace.path / "results", SECRETS | {"BERTH_KEYS": str(tmp_path / "keys")}
    watch = Watch(workspace.path, SECRETS.values())
    files = TermFiles.of(results, "local", NAME)
    # Whatever ends its job, the server of the first one stays.
    (workspace.path / "standin/bin/stubborn-run2").touch()
    with watch:
        told = serve_and_lose(workspace, results, files, keys)
    assert (tmp_path / "keys/local" / NAME).read_text().strip() == SECRETS["VLLM_API_KEY"]
    assert watch.shown == set()
    assert not [value for value in SECRETS.values() if value in told]
    assert files_with(workspace.path, SECRETS.values()) == []


def serve_and_lose(workspace: Workspace, results: Path, files: TermFiles, keys: dict[str, str]) -> str:
    """Serve, lose the job and the keeper, serve again and end; what the commands printed."""
    serving = workspace.start("serve", "--config", f"deployment={NAME}", **keys)
    try:
        first = wait_until(lambda: ready(results, 0), "ready")
        assert first.endpoint.address == "127.0.0.1"
        assert first.instances[0].ends is None
        report = files.report(1)
        assert report
        server = next(
            process
            for process in workspace.processes()
            if f"--port={first.endpoint.port}" in process.cmdline() and "serve" in process.cmdline()
        )
        shown = workspace.run("access", "--config", f"deployment={NAME}", **keys)
        assert f"ok    direct http://127.0.0.1:{first.endpoint.port}/v1 ({NAME}): one token in" in shown
        assert "WARN  NGINX http://127.0.0.1:19443/v1" in shown
        upstream = results / "access/local" / NAME / "upstream.conf"
        assert f"server 127.0.0.1:{first.endpoint.port} " in upstream.read_text()
        psutil.Process(report.process.pid).kill()
        second = wait_until(lambda: ready(results, 1), "ready again")
        assert second.history[0].kind == "killed"
        assert second.history[0].outage_s is not None
        assert second.endpoint != first.endpoint
        wait_until(lambda: f"server 127.0.0.1:{second.endpoint.port} " in upstream.read_text(), "the upstream follows")
        assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE

        # As a terminal that is closed does, to Snakemake and the keeper.
        os.killpg(serving.pid, signal.SIGHUP)
        serving.wait()
        assert ready(results, 1)
        assert "goes on without a keeper" in (workspace.path / "run.log").read_text()

        told = workspace.run("serve", "--config", f"deployment={NAME}", "until=2s", **keys)
        assert "took over t2" in told
        after = services.read(results, "local", NAME)
        assert after
        assert (after.state, after.history[-1].kind, after.instances) == ("ended", "until", ())
        assert "127.0.0.1:9 down" in upstream.read_text()
        assert not [process for process in workspace.processes() if "serve" in process.cmdline()]
        return shown + told + (workspace.path / "run.log").read_text()
    finally:
        for process in workspace.processes():
            process.kill()
        serving.wait()
