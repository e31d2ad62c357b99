"""Sweeps on a real cluster: two points against the real vLLM, a restart during a point, a sweep that is killed."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from cluster_site import LEVELS, OnCluster, Site, until
from workspace import levels_of, point_starts, run_log, words_of

if TYPE_CHECKING:
    import subprocess
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


@pytest.fixture(scope="module")
def restarted(site: Site) -> OnCluster:
    """A workspace in which the server's container was killed during the second of three points."""
    work = site.workspace("restarted", image=site.standin, levels=(1, 2, 4))
    started = work.start("points", **site.environ())
    in_point(work, 2, started)
    site.kill_server()
    started.wait()
    return work


def in_point(work: OnCluster, level: int, started: subprocess.Popen[bytes]) -> None:
    """Return when a level is measured."""
    until(lambda: point_starts(work, level) or started.poll() is not None, lambda: told(work))
    assert started.poll() is None, told(work)


def test_a_restart_during_a_point_refuses_it_and_the_next_goes_on(site: Site, restarted: OnCluster) -> None:
    """The point's reason is server_restarted, and the next is measured by the container that came after."""
    assert levels_of(restarted.points()) == [1, 4], told(restarted)
    failure = record_of(next(iter(restarted.failures().values())))
    assert failure["point"]["concurrency"] == 2
    assert [reason["code"] for reason in failure["validity"]["reasons"]] == ["server_restarted"]
    assert "137" in failure["failure"]["cause"]
    instances = [record_of(path)["server"]["instance"] for path in restarted.points().values()]
    assert sorted(instances) == [1, 2]
    assert site.left() == []


def test_a_kept_model_is_not_downloaded_again(site: Site, restarted: OnCluster) -> None:
    """The second sweep of a model finds it whole on its claim; both used the same one."""
    work = site.workspace("again", image=site.standin, levels=(1,))
    work.run("points", **site.environ())
    downloads = [path.read_text() for path in (work.path / "results/logs/server").rglob("download.log")]
    assert "is whole already" in downloads[0]
    claims = [each["metadata"]["name"] for each in site.cluster.get("persistentvolumeclaims")]
    assert len([name for name in claims if name.startswith("berth-model-tiny-llama-")]) == 1


def test_what_a_killed_sweep_leaves_is_removed_by_the_next(site: Site) -> None:
    """After SIGKILL the release is still there; the next sweep of the run removes it and measures what is missing."""
    work = site.workspace("killed", image=site.standin, levels=(1, 2))
    started = work.start("points", **site.environ())
    in_point(work, 2, started)
    for process in work.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()
    started.wait()
    assert any(name.startswith("Deployment/berth-") for name in site.left())
    work.configure(lambda config: config["benchmarks"]["demo"].update(concurrency=[1, 4]))
    work.run("--unlock", code=None)
    output = work.run("points", code=None, **site.environ())
    assert levels_of(work.points()) == [1, 4], output[-2000:] + told(work)
    assert "removing what a dead sweep of this run had left" in output
    assert site.left() == []


def test_a_sweep_that_is_told_to_end_takes_its_release_with_it(site: Site) -> None:
    """TERM: nothing is left on the cluster, and the finished point is kept."""
    work = site.workspace("ended", image=site.standin, levels=(1, 2))
    started = work.start("points", **site.environ())
    in_point(work, 2, started)
    for process in (each for each in work.processes() if ".sweep.py" in " ".join(words_of(each))):
        process.send_signal(signal.SIGTERM)
    started.wait()
    assert levels_of(work.spooled()) == [1] or levels_of(work.points()) == [1], told(work)
    assert site.left() == []
