"""A workflow that runs where there is only a loopback, on what a run with a network has brought to the store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import airgap
import yaml

if TYPE_CHECKING:
    from workspace import Workspace

OUTSIDE = ("results/store/local/tiny-llama.json", "results/datasets/sharegpt-like-short/receipt.json")


def why_not() -> str | None:
    """Why there can be no network namespace here; None where there can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    missing = [name for name in ("unshare", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"not on PATH: {', '.join(missing)} (Debian: util-linux, mount, iproute2)"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"no network namespace: {done.stderr.strip()}" if done.returncode else None


@dataclass(frozen=True)
class Gap:
    """What was planned behind the air gap, and what airgap.py saw while it ran."""

    planned: dict[str, int]
    seen: dict[str, Any]


def run_behind_gap(workspace: Workspace, **environment: str) -> Gap:
    """Bring model and dataset to the store with a network, and run all that is left with a loopback only.

    Meanwhile the platform names a proxy that refuses everything: whatever would be fetched by HTTP, and every request
    to the server that did not heed no_proxy, would be in its list.
    """
    workspace.run(*OUTSIDE, **environment)
    platform = workspace.path / "config/platforms/local.yaml"
    shipped = platform.read_text()
    proxy = f"http://127.0.0.1:{airgap.PROXY_PORT}"
    network = {"http_proxy": proxy, "https_proxy": proxy}
    platform.write_text(yaml.safe_dump({**yaml.safe_load(shipped), "network": network}))
    planned = workspace.planned(**environment)
    report = workspace.path / "airgap.json"
    command = ["unshare", "--net", "--mount", sys.executable, airgap.__file__, str(report), *workspace.command()]
    given = workspace.environment(**environment)
    given = {name: value for name, value in given.items() if not name.lower().endswith("_proxy")}
    subprocess.run(command, cwd=workspace.path, env=given, check=True)
    platform.write_text(shipped)
    seen = json.loads(report.read_text())
    report.unlink()
    return Gap(planned, seen)
