"""From a registry to a measured point, and by the rendered stage.sh, with the real Podman and Apptainer."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from container_programs import apptainer_environment, podman_nodes
from container_runs import PATH, make_root, make_run, standin_folder
from registry_server import RegistryServer, make_image, need_registry

from berth.config import Registry
from berth.container_image import stage_container
from berth.image_request import ImageRequest
from berth.parse import load_config
from berth.recipe import Image
from berth.render import render_files, write_rendered
from berth.rendering import Rendering, renderings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from container_runs import Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    need_registry()
    running = RegistryServer.start_new(tmp_path / "registry")
    yield running
    running.stop()


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of Podman with an empty storage of its own."""
    with podman_nodes(tmp_path, ["node"]) as nodes:
        yield nodes["node"]


def staged_run(
    folder: Path, runtime: str, environ: dict[str, str], server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """A run with the stand-in of vLLM in an image that was staged from a registry and has no digest in its recipe."""
    mounts = make_root(folder / "tree", real=False)
    make_image(folder / "image", "measured", tree=folder / "tree", path=PATH)
    reference = server.push(folder / "image", "vllm/standin:v1")
    request = ImageRequest(
        reference=reference,
        digest="",
        recipe="vllm",
        platform="site",
        runtime=runtime,
        shared=True,
        images_dir=str(folder / "images"),
        scratch_dir=str(folder / "scratch"),
    )
    with monkeypatch.context() as here:
        here.setenv("PATH", environ["PATH"])
        receipt = stage_container(request, folder / "image.json")
    flag = "--volume" if runtime == "podman" else "--bind"
    shared = {**mounts, "/standin": standin_folder(folder)}
    options = [f"{flag}={source}:{target}:ro" for target, source in shared.items()]
    platform: dict[str, Any] = {
        "runtime": runtime,
        "accelerator": {"kind": "cpu", "name": "Dummy", "per_node": 1},
        runtime: {"options": options},
    }
    run = make_run(folder, platform=platform, receipt=receipt, environ=environ, levels=(1, 2), prompts=8, real=False)
    # What the plan says of an image without a digest in its recipe.
    run.request["definition"]["image"]["digest"] = None
    return run


@pytest.mark.parametrize("runtime", ["podman", "apptainer"])
def test_the_digest_that_was_found_is_in_every_point(
    tmp_path: Path, runtime: str, server: RegistryServer, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    """The node gets its image from the shared file system, with the registry gone; another digest later is refused."""
    environ = request.getfixturevalue("podman") if runtime == "podman" else apptainer_environment()
    run = staged_run(tmp_path, runtime, environ, server, monkeypatch)
    receipt = json.loads(Path(run.request["image_receipt"]).read_text())
    server.stop()
    run.finish()
    records = run.spooled()
    assert sorted(records) == [1, 2]
    for record in records.values():
        image = {"reference": receipt["reference"], "digest": receipt["digest"]}
        assert image.items() <= record["server"]["image"].items()
    (run.results / "spool" / run.key / "c2.json").unlink()
    Path(run.request["image_receipt"]).write_text(json.dumps({**receipt, "digest": "sha256:" + "0" * 64}))
    assert run.sweep().wait() == 1
    assert "the digest changed" in run.log.read_text()
    assert sorted(run.spooled()) == [1]


def test_every_node_of_a_job_loads_the_image(
    tmp_path: Path, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's node and the client's own have storages of their own, and each gets the image once, by digest."""
    with podman_nodes(tmp_path, ["head", "client"]) as nodes:
        run = staged_run(tmp_path, "podman", nodes["head"], server, monkeypatch)
        server.stop()
        run.request["deployment"]["client_nodes"] = 1
        run.request["platform_settings"]["hosts"] = [
            {"name": name, "address": "127.0.0.1", "run": ["env", f"CONTAINERS_STORAGE_CONF={tmp_path}/{name}.conf"]}
            for name in nodes
        ]
        run.finish()
        assert sorted(run.spooled()) == [1, 2]
        assert run.spooled()[1]["client"]["node"] == "client"
        digest = json.loads(Path(run.request["image_receipt"]).read_text())["digest"]
        for environ in nodes.values():
            listed = subprocess.run(
                ["podman", "images", "--digests", "--noheading", "--format={{.Digest}}"],
                env=environ,
                capture_output=True,
                text=True,
                check=True,
            )
            assert listed.stdout.split() == [digest]


def rendered(folder: Path, runtime: str, source: RegistryServer, site: RegistryServer, digest: str) -> Path:
    """stage.sh of the paper's deployment with another image, other folders and a registry of the site."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    found = renderings(load_config({**raw, "platform": "hops"}, ROOT), ROOT, (3, 11))["scout-hops"]
    version = found.recipe.version(found.deployment.version)
    image = Image("container", f"{source.host}/vllm/small:v1", digest)
    recipe = dataclasses.replace(
        found.recipe,
        versions={found.deployment.version: dataclasses.replace(version, images={"cuda": image})},
    )
    platform = dataclasses.replace(
        found.platform,
        runtime=runtime,
        registry=Registry(site.host, "hpc", tls_verify=False),
        images_dir=str(folder / "shared"),
        scratch_dir=str(folder / "scratch"),
    )
    rendering: Rendering = dataclasses.replace(found, recipe=recipe, platform=platform)
    write_rendered(folder / "render", render_files(rendering), ())
    return folder / "render/stage.sh"


def test_the_rendered_steps_do_what_the_rules_do(
    tmp_path: Path, server: RegistryServer, podman: dict[str, str]
) -> None:
    """Run by hand, mirror, image and load bring the image under both runtimes, by digest."""
    site = RegistryServer.start_new(tmp_path / "site")
    digest = make_image(tmp_path / "image", "by hand")
    server.push(tmp_path / "image", "vllm/small:v1")

    def run(script: Path, environ: dict[str, str], *steps: str) -> None:
        for step in steps:
            done = subprocess.run(["bash", str(script), step], env=environ, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{step}: {done.stderr}"

    try:
        script = rendered(tmp_path, "podman", server, site, digest)
        run(script, podman, "mirror")
        server.stop()
        run(script, podman, "image", "load")
        name = f"{server.host}/vllm/small@{digest}"
        said = subprocess.run(
            ["podman", "run", "--rm", "--network=none", "--pull=never", name, "cat", "/says"],
            env=podman,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == "by hand"
        shutil.rmtree(tmp_path / "render")
        environ = apptainer_environment()
        run(rendered(tmp_path, "apptainer", server, site, digest), environ, "image")
        (sif,) = (tmp_path / "shared").glob("*.sif")
        said = subprocess.run(
            ["apptainer", "exec", "--fakeroot", "--writable-tmpfs", "--no-home", str(sif), "cat", "/says"],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == "by hand"
    finally:
        site.stop()
