"""From the object store on nothing needs a network: the real chain, with the real vLLM, with a loopback only."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import airgap
import pytest
import yaml
from workspace import LEVELS, Workspace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.workflow, pytest.mark.vllm, pytest.mark.timeout(900)]

OUTSIDE = ("results/store/local/tiny-llama.json", "results/datasets/sharegpt-like-short/receipt.json")
INSIDE = ("points", "results/figures/local/output_throughput.pdf")
# What libraries say when they look for something on the internet and wait for it.
WAITED = re.compile(
    r"retry|retries|connection (error|refused|timed out)|name resolution|name or service|unreachable|huggingface\.co",
    re.IGNORECASE,
)


def why_not() -> str | None:
    """Why there can be no network namespace here; None where there can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    missing = [name for name in ("unshare", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"not on PATH: {', '.join(missing)} (Debian: util-linux, mount, iproute2)"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"no network namespace: {done.stderr.strip()}" if done.returncode else None


def set_network(workspace: Workspace, network: dict[str, Any]) -> None:
    file = workspace.path / "config/platforms/local.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "network": network}))


def inside(workspace: Workspace) -> dict[str, Any]:
    """Run the workflow where there is only a loopback, and say what was seen."""
    report = workspace.path / "airgap.json"
    command = ["unshare", "--net", "--mount", sys.executable, airgap.__file__, str(report), *workspace.command(*INSIDE)]
    given = {name: value for name, value in workspace.environment().items() if not name.lower().endswith("_proxy")}
    subprocess.run(command, cwd=workspace.path, env=given, check=True)
    seen: dict[str, Any] = json.loads(report.read_text())
    return seen


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_chain_runs_behind_an_air_gap_and_past_the_proxy(image: None, tmp_path: Path) -> None:
    """Staging, server, client and figures need the loopback only, ask for no name, and send nothing to the proxy.

    The platform names a proxy that refuses everything: whatever would be fetched by HTTP, and every request to the
    server that did not heed no_proxy, would be in its list.
    """
    workspace = Workspace.create(tmp_path / "workspace")
    workspace.run(*OUTSIDE)
    proxy = f"http://127.0.0.1:{airgap.PROXY_PORT}"
    set_network(workspace, {"http_proxy": proxy, "https_proxy": proxy})
    planned = workspace.planned(*INSIDE)
    assert {"stage_model": 1, "stage_image": 1, "sweep": 1, "point": 3}.items() <= planned.items()
    assert not {"download_model", "push_model", "fetch_dataset"} & set(planned)

    seen = inside(workspace)
    assert seen["code"] == 0, seen["output"][-8000:]
    assert seen["interfaces"] == ["lo"]
    # Both lists work: the resolver asks for a name more than once.
    assert set(seen["probe"]["asked"]) == {airgap.NAME}
    assert seen["probe"]["proxied"] == ["GET http://127.0.0.1:9/probe"]
    # Snakemake's plugin for Slurm runs sinfo where it is installed, which looks for a controller of this site.
    assert set(seen["asked"]) <= {"_slurmctld._tcp"}
    assert seen["proxied"] == []

    records = [json.loads(path.read_text()) for path in workspace.points().values()]
    assert sorted(record["point"]["concurrency"] for record in records) == list(LEVELS)
    assert all(record["result"]["completed"] == 16 for record in records)
    # A staged model on the CPU is looked up nowhere with or without them; on GPUs vLLM reports its use.
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"), "1")
    assert all(offline.items() <= record["spec"]["serve"]["env"].items() for record in records)
    assert (workspace.path / "results/figures/local/output_throughput.pdf").stat().st_size > 1000
    logs = sorted((workspace.path / "results/logs").rglob("*.log"))
    assert {"server.log", "client.log"} <= {path.name for path in logs}
    waited = [line for path in logs for line in path.read_text().splitlines() if WAITED.search(line)]
    assert waited == []
