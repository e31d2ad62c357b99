"""Sweeps on a real cluster that are disturbed: restarted, killed, told to end, and a second one of a model."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from cluster_site import OnCluster, Site, record_of, told, until
from workspace import levels_of, point_starts, words_of

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


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
    work = site.workspace("killed", image=site.standin, levels=(1, 2, 4))
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
    work = site.workspace("ended", image=site.standin, levels=(1, 2, 4))
    started = work.start("points", **site.environ())
    in_point(work, 2, started)
    for process in (each for each in work.processes() if ".sweep.py" in " ".join(words_of(each))):
        process.send_signal(signal.SIGTERM)
    started.wait()
    assert levels_of(work.spooled()) == [1] or levels_of(work.points()) == [1], told(work)
    assert site.left() == []
