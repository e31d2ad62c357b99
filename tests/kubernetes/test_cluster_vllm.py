"""A sweep of two points on a real cluster, against the real vLLM."""

from __future__ import annotations

import pytest
from cluster_site import LEVELS, OnCluster, Site, record_of, told
from workspace import levels_of

pytestmark = [pytest.mark.kubernetes, pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def measured(site: Site) -> OnCluster:
    """A workspace in which one run was measured."""
    work = site.workspace("measured")
    output = work.run("points", code=None, **site.environ())
    assert levels_of(work.points()) == list(LEVELS), output[-3000:] + told(work)
    return work


def test_a_sweep_measures_its_points_and_leaves_nothing_but_the_model(site: Site, measured: OnCluster) -> None:
    """Records are whole: the image's digest from the pod, its node, and what happened until it was ready."""
    record = record_of(next(iter(measured.points().values())))
    assert record["validity"]["verdict"] in ("accepted", "flagged")
    assert record["result"]["completed"] == 16
    assert record["server"]["image"] == {"reference": site.reference, "digest": site.digest}
    assert record["server"]["nodes"][0]["name"] == "localhost"
    assert record["server_metrics"]["generation_tokens"] > 0
    assert record["client"]["mode"] == "warm"
    events = [entry["event"] for entry in record["server"]["timeline"]]
    steps = ["scheduled", "image_pulled", "model_downloaded", "container_started", "client_pod_ready"]
    assert [event for event in events if event in steps] == steps
    # Helm may return after the cluster has found a node.
    assert events.index("installed") < events.index("container_started")
    assert events.index("container_started") < events.index("health") < events.index("first_request")
    assert site.left() == []
    assert [each["metadata"]["name"] for each in site.cluster.get("persistentvolumeclaims")] != []


def test_no_secret_is_in_what_a_sweep_wrote(site: Site, measured: OnCluster) -> None:
    """The store's secret and the server's key are in no file of the results and of Snakemake."""
    hidden = site.store.environ["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for name in ("results", ".snakemake") for path in (measured.path / name).rglob("*") if path.is_file()]
    assert [path for path in files if hidden in path.read_bytes()] == []
    logs = b"".join(path.read_bytes() for path in files if path.suffix == ".log")
    assert b"Bearer " not in logs


def test_a_server_that_ends_is_told_from_its_log(site: Site) -> None:
    """The cause is the recipe's, from the log of the container, and not that its pod backs off."""
    work = site.workspace("wrong", deployment={"args": {"max-model-len": 99_999_999}})
    output = work.run("points", code=None, **site.environ())
    failure = record_of(next(iter(work.failures().values())))["failure"]
    assert "max-model-len is larger" in failure["cause"], output[-3000:]
    assert failure["log"].endswith("server.log")
