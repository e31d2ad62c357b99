"""The chain of custody of points that a real server was measured with, through the real Snakemake."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm, pytest.mark.timeout(1200)]


def test_measured_points_hold_until_a_byte_changes(workspace: Workspace) -> None:
    """From the seed over the embedded store to the point every link is ok; a changed number in a record is found."""
    key, path = min(workspace.points().items())
    record = json.loads(path.read_text())
    staged = json.loads((workspace.path / "results/staged/local/tiny-llama.json").read_text())
    assert record["custody"]["model"] == {"manifest_sha256": staged["manifest"]["sha256"], "copy": "shared"}
    before = workspace.snapshot()

    workspace.run("custody", "--config", f"point={path.relative_to(workspace.path)}")
    report = json.loads((workspace.path / f"results/custody/{key}.json").read_text())
    verdicts = {link["link"]: link["verdict"] for link in report["chains"][0]["links"]}
    assert verdicts.pop("point in the store") == "cannot be checked"
    assert set(verdicts.values()) == {"ok"}
    assert workspace.snapshot() == before

    path.write_text(path.read_text().replace('"num_prompts": 16', '"num_prompts": 17', 1))
    told = workspace.run("custody", code=1)
    assert f"point {key}: record: " in told
    assert "changed after it was written" in told
