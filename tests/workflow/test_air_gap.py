"""From the object store on nothing needs a network: the real chain, with the real vLLM, with a loopback only."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import airgap
import pytest
from behind_gap import why_not
from workspace import LEVELS

if TYPE_CHECKING:
    from behind_gap import Gap
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm, pytest.mark.timeout(1200)]

# What libraries say when they look for something on the internet and wait for it.
WAITED = re.compile(
    r"retry|retries|connection (error|refused|timed out)|name resolution|name or service|unreachable|huggingface\.co",
    re.IGNORECASE,
)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_chain_runs_behind_an_air_gap_and_past_the_proxy(measured: Workspace, gap: Gap) -> None:
    """Staging, server, client, figures and report need the loopback only, ask for no name, and pass by the proxy."""
    assert {"stage_model": 1, "stage_image": 1, "sweep": 1, "point": 3}.items() <= gap.planned.items()
    assert not {"download_model", "push_model", "fetch_dataset"} & set(gap.planned)

    seen = gap.seen
    assert seen["code"] == 0, seen["output"][-8000:]
    assert seen["interfaces"] == ["lo"]
    # Both lists work: the resolver asks for a name more than once.
    assert set(seen["probe"]["asked"]) == {airgap.NAME}
    assert seen["probe"]["proxied"] == ["GET http://127.0.0.1:9/probe"]
    # Snakemake's plugin for Slurm runs sinfo where it is installed, which looks for a controller of this site.
    assert set(seen["asked"]) <= {"_slurmctld._tcp"}
    assert seen["proxied"] == []

    records = [json.loads(path.read_text()) for path in measured.points().values()]
    assert sorted(record["point"]["concurrency"] for record in records) == list(LEVELS)
    assert all(record["result"]["completed"] == 16 for record in records)
    # A staged model on the CPU is looked up nowhere with or without them; on GPUs vLLM reports its use.
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"), "1")
    assert all(offline.items() <= record["spec"]["serve"]["env"].items() for record in records)
    assert (measured.path / "results/figures/local/output_throughput.pdf").stat().st_size > 1000
    logs = sorted((measured.path / "results/logs").rglob("*.log"))
    assert {"server.log", "client.log"} <= {path.name for path in logs}
    waited = [line for path in logs for line in path.read_text().splitlines() if WAITED.search(line)]
    assert waited == []
