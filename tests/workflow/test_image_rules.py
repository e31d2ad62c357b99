"""The rules of images as a person types them, with a real registry, skopeo and Apptainer."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml
from container_programs import apptainer_environment
from registry_server import RegistryServer, make_image, need_registry
from workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.workflow

IMAGE = "results/images/local/vllm-0.32.0.json"
MIRROR = "results/mirrored/local/vllm-0.32.0.json"


@pytest.fixture
def registries(tmp_path: Path) -> Iterator[tuple[RegistryServer, RegistryServer]]:
    """The recipe's registry and the site's."""
    need_registry()
    both = tuple(RegistryServer.start_new(tmp_path / name) for name in ("source", "site"))
    yield both
    for each in both:
        each.stop()


def container_workspace(path: Path, reference: str, digest: str, site: str) -> Workspace:
    """A workspace whose local platform runs the recipe's container image under Apptainer."""
    workspace = Workspace.create(path)
    recipe = workspace.path / "config/recipes/vllm.yaml"
    told = yaml.safe_load(recipe.read_text())
    image = {"kind": "container", "reference": reference} | ({"digest": digest} if digest else {})
    told["versions"]["0.32.0"]["images"]["cpu"] = image
    recipe.write_text(yaml.safe_dump(told, sort_keys=False))
    platform = workspace.path / "config/platforms/local.yaml"
    told = yaml.safe_load(platform.read_text())
    told["runtime"] = "apptainer"
    told["paths"]["images"] = str(path / "shared")
    if site:
        told["registry"] = {"host": site, "prefix": "mirror", "tls_verify": False}
    platform.write_text(yaml.safe_dump(told, sort_keys=False))
    return workspace


def test_an_image_is_mirrored_and_staged_once(
    tmp_path: Path, registries: tuple[RegistryServer, RegistryServer]
) -> None:
    """The dry run lists both rules, the run leaves both receipts, and afterwards nothing is to be done."""
    source, site = registries
    environment = {"PATH": apptainer_environment()["PATH"]}
    digest = make_image(tmp_path / "image", "the image")
    reference = source.push(tmp_path / "image", "vllm/small:v1")
    workspace = container_workspace(tmp_path / "work", reference, digest, site.host)
    planned = workspace.planned()
    assert (planned["mirror_image"], planned["stage_image"]) == (1, 1)
    workspace.run(IMAGE, **environment)
    mirrored, staged = (json.loads((workspace.path / name).read_text()) for name in (MIRROR, IMAGE))
    assert mirrored["destination"] == f"{site.host}/mirror/vllm/small:v1"
    assert staged["digest"] == mirrored["digest"] == digest
    assert staged["pulled_from"] == f"{site.host}/mirror/vllm/small@{digest}"
    assert workspace.planned(IMAGE) == {}
    # What another checkout has staged is found, and neither registry is asked.
    for each in registries:
        each.stop()
    (workspace.path / IMAGE).unlink()
    assert "is there already" in workspace.run(IMAGE, **environment)
    assert json.loads((workspace.path / IMAGE).read_text()) == staged


def test_without_a_registry_of_the_site_nothing_is_mirrored(
    tmp_path: Path, registries: tuple[RegistryServer, RegistryServer]
) -> None:
    """The image then comes from where the recipe says, its digest is found and kept, and a tag that moves is told."""
    source, _ = registries
    environment = {"PATH": apptainer_environment()["PATH"]}
    digest = make_image(tmp_path / "image", "the image")
    reference = source.push(tmp_path / "image", "vllm/small:v1")
    workspace = container_workspace(tmp_path / "work", reference, "", "")
    assert "mirror_image" not in workspace.planned()
    workspace.run(IMAGE, **environment)
    staged = json.loads((workspace.path / IMAGE).read_text())
    assert (staged["digest"], staged["reference"]) == (digest, reference)
    shutil.rmtree(tmp_path / "image")
    moved = make_image(tmp_path / "image", "another")
    source.push(tmp_path / "image", "vllm/small:v1")
    (workspace.path / IMAGE).unlink()
    output = workspace.run(IMAGE, code=1, **environment)
    assert digest in output
    assert f"digest: {moved}" in output
    assert "Traceback" not in output
