"""Sweeps on a real cluster: two points against the real vLLM, a restart during a point, a sweep that is killed."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from cluster_site import LEVELS, OnCluster, Site, until
from workspace import levels_of, run_log

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


def told(work: OnCluster) -> str:
    """Everything that was printed, for a failing assertion."""
    logs = sorted((work.path / "results/logs").rglob("*.log"))
    return "\n".join([run_log(work)[-4000:], *(f"== {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)])


def record_of(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


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
    steps = ["installed", "scheduled", "image_pulled", "model_downloaded", "container_started", "client_pod_ready"]
    assert [event for event in events if event in steps] == steps
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


def test_a_restart_during_a_point_refuses_it_and_the_next_goes_on(site: Site) -> None:
    """The point's reason is server_restarted, the second server is that container anew, and nothing is downloaded."""
    work = site.workspace("restarted", prompts=400)
    started = work.start("points", **site.environ())
    until(lambda: "concurrency 1: point" in run_log(work) or started.poll() is not None, lambda: told(work))
    before = site.server_pod()
    assert before is not None, told(work)
    site.kill_server()
    started.wait()
    assert levels_of(work.points()) == [2], told(work)
    failure = record_of(next(iter(work.failures().values())))
    assert failure["point"]["concurrency"] == 1
    assert [reason["code"] for reason in failure["validity"]["reasons"]] == ["server_restarted"]
    assert "137" in failure["failure"]["cause"]
    record = record_of(next(iter(work.points().values())))
    assert record["server"]["instance"] == 2
    downloads = "".join(path.read_text() for path in (work.path / "results/logs/server").rglob("download.log"))
    assert "is whole already" in downloads
    assert site.left() == []


def test_what_a_killed_sweep_leaves_is_removed_by_the_next(site: Site) -> None:
    """After SIGKILL the release is still there; the next sweep of the run removes it and measures what is missing."""
    work = site.workspace("killed", prompts=400)
    started = work.start("points", **site.environ())
    until(lambda: "concurrency 1: point" in run_log(work) or started.poll() is not None, lambda: told(work))
    for process in [each for each in work.processes() if "kubectl" not in each.name()]:
        process.send_signal(signal.SIGKILL)
    started.wait()
    left = site.left()
    assert any(name.startswith("Deployment/berth-") for name in left)
    work.configure(lambda config: config["benchmarks"]["demo"].update(concurrency=[1]))
    work.run("--unlock", code=None)
    output = work.run("points", code=None, **site.environ())
    assert levels_of(work.points()) == [1], output[-2000:] + told(work)
    assert "removing what a dead sweep of this run had left" in output
    assert site.left() == []
