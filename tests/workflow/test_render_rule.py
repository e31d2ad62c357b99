"""`snakemake render` as a person types it, and what it wrote run by hand against the real vLLM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from leaks import SECRETS, Watch, files_with
from shared_starts import vllm_cache_root
from workspace import Workspace, wait_until

from berth.image import default_cache_dir
from berth.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.workflow


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace in which nothing was done yet, and which must leave no process behind."""
    workspace = Workspace.create(tmp_path / "fresh")
    yield workspace
    left = workspace.processes()
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"


def test_render_follows_the_configuration(fresh: Workspace) -> None:
    """It is rendered once, again when a setting changes, and not when nothing did; nothing is downloaded for it."""
    fresh.run("render")
    folder = fresh.path / "results/render/local/tiny-local"
    assert {path.name for path in folder.glob("[!.]*")} == {
        *("server.sh", "client.sh", "stage.sh", "settings.md", "values.json")
    }
    assert not (fresh.path / "results/models").exists()
    assert fresh.planned("render") == {"render": 1, "total": 1}
    fresh.configure(lambda config: config["deployments"]["tiny-local"]["args"].update({"max-model-len": 1024}))
    assert fresh.planned("render") == {"render": 1, "render_deployment": 1, "total": 2}
    fresh.run("render")
    assert "--max-model-len=1024" in (folder / "server.sh").read_text()


@pytest.mark.parametrize("profile", ["hops", "eldorado"])
def test_clusters_are_rendered_where_they_are_not(fresh: Workspace, profile: str) -> None:
    """The shipped clusters are rendered on a machine that has neither their scheduler nor their runtime.

    The executor is the local one: those of the clusters wait half a minute before they let Snakemake end. No secret of
    the caller gets into a file or a command line.
    """
    with Watch(fresh.path, SECRETS.values()) as watch:
        output = fresh.run(
            "render", "--profile", f"profiles/{profile}", "--executor", "local", "--cores", "1", **SECRETS
        )
    assert watch.shown == set()
    assert files_with(fresh.path, SECRETS.values()) == []
    rendered = {path.parent.name for path in (fresh.path / f"results/render/{profile}").glob("*/server.sh")}
    config = json.loads((fresh.path / f"results/render/{profile}/{min(rendered)}/values.json").read_text())
    assert config["platform"] == profile
    if profile == "hops":
        assert rendered == {"scout-hops", "scout-w4a16-hops", "llama31-405b-hops"}
        assert "has no revision, so that nothing can be measured with it" in output


def test_kubernetes_is_rendered_as_values(fresh: Workspace) -> None:
    """The shipped cluster of Kubernetes has values and commands; its manifests follow as soon as helm is on PATH.

    No secret of the caller gets into any of them.
    """
    without = SECRETS | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    if shutil.which("helm", path=without["PATH"]) is None:
        output = fresh.run("render", "--profile", "profiles/goodall", **without)
        assert "no manifests.yaml, because helm is not on PATH" in output
    folder = fresh.path / "results/render/goodall/scout-w4a16-goodall"
    helm = default_cache_dir() / "helm"
    with_helm = without | {"PATH": f"{helm}:{without['PATH']}"}
    if shutil.which("helm", path=with_helm["PATH"]) is not None:
        fresh.run("render", "--profile", "profiles/goodall", **with_helm)
        assert "kind: Deployment" in (folder / "manifests.yaml").read_text()
    assert yaml.safe_load((folder / "values.yaml").read_text())["extraInit"]["s3"]["bucket"] == "huggingface.co"
    assert os.access(folder / "install.sh", os.X_OK)
    assert files_with(fresh.path, SECRETS.values()) == []


def test_a_cluster_that_does_not_answer_is_told_before_the_first_job(
    fresh: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement on Kubernetes is refused before a download, in one sentence that says what to do."""
    monkeypatch.setenv("KUBECONFIG", str(fresh.path / "no-such-kubeconfig"))
    model = fresh.path / "config/models/llama-4-scout-w4a16.yaml"
    model.write_text(model.read_text().replace("revision: null", f"revision: {'a' * 40}"))
    output = fresh.run("--profile", "profiles/goodall", "--config", 'select=["fig10"]', code=1)
    # Where helm is not installed, that is what is missing.
    assert "Kubernetes: the cluster does not answer" in output or "helm" in output
    assert "What to do: " in output
    assert "download_model" not in output.partition("Job stats")[2].partition("localrule")[2]
    assert not (fresh.path / "results/models").exists()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.vllm
def test_rendered_scripts_run_by_hand(fresh: Workspace, image: None) -> None:
    """stage.sh brings model and image, server.sh serves until it is asked to end, client.sh measures a point."""
    port = free_port("127.0.0.1", 20000, 29999)
    platform = fresh.path / "config/platforms/local.yaml"
    platform.write_text(platform.read_text().replace("[18000, 18999]", f"[{port}, {port}]"))
    # The scripts share nothing with other runs; what vLLM looks up at its start is not what is tested here.
    cache = fresh.path / "results/scratch/berth/by-hand/tiny-local/cache"
    cache.mkdir(parents=True)
    (cache / "vllm").symlink_to(vllm_cache_root())
    fresh.run("render", "results/datasets/sharegpt-like-short/receipt.json")
    folder = fresh.path / "results/render/local/tiny-local"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": "/nowhere",
        "VLLM_API_KEY": "key-of-the-test",
    }
    for step in ("model", "image"):
        subprocess.run(["bash", str(folder / "stage.sh"), step], env={**environment, "PYTHONPATH": ""}, check=True)
    with (fresh.path / "server.log").open("wb") as log:
        server = subprocess.Popen(["bash", str(folder / "server.sh")], env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port) or server.poll() is not None, "the rendered server answers")
        assert server.poll() is None, (fresh.path / "server.log").read_text()[-4000:]
        environment["CONCURRENCY"] = "4"
        subprocess.run(["bash", str(folder / "client.sh")], env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    # Python's helpers of a process end a moment after it.
    wait_until(lambda: not fresh.processes(), "nothing of the server is left")
    result = json.loads((fresh.path / "results/scratch/berth/by-hand/tiny-local/c4.json").read_text())
    assert result["completed"] == 16
    assert result["max_concurrency"] == 4
    assert "key-of-the-test" not in (fresh.path / "server.log").read_text()
