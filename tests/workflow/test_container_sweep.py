"""The whole workflow with a server in a container: image from a registry, sweep under Podman, points accepted.

Registry, Podman and Snakemake are real; `vllm` in the image is the stand-in of tests/slurm. The real vLLM is in
tests/integration/test_sweep_podman.py and test_sweep_apptainer.py.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from registry_server import RegistryServer, need_registry
from workspace import LEVELS, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))
from container_runs import Podman, podman_image, standin_folder

pytestmark = pytest.mark.workflow


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    """Podman with the stand-in's image."""
    need_registry()
    folder = tmp_path / "image"
    folder.mkdir()
    with podman_image(folder, real=False) as found:
        yield found


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    """The recipe's registry."""
    need_registry()
    server = RegistryServer.start_new(tmp_path / "registry")
    yield server
    server.stop()


def test_points_are_measured_in_containers_and_accepted(
    tmp_path: Path, podman: Podman, registry: RegistryServer
) -> None:
    """One command stages the image by its digest and measures every point; then nothing is to be done, nothing left."""
    reference = f"{registry.host}/vllm/standin:v1"
    digest_file = tmp_path / "digest"
    podman("push", "--tls-verify=false", f"--digestfile={digest_file}", podman.image, f"docker://{reference}")
    digest = digest_file.read_text().strip()
    workspace = Workspace.create(tmp_path / "work")
    recipe = workspace.path / "config/recipes/vllm.yaml"
    told = yaml.safe_load(recipe.read_text())
    told["versions"]["0.32.0"]["images"] = {"cpu": {"kind": "container", "reference": reference, "digest": digest}}
    recipe.write_text(yaml.safe_dump(told, sort_keys=False))
    platform = workspace.path / "config/platforms/local.yaml"
    told = yaml.safe_load(platform.read_text())
    mounts = {**podman.mounts, "/standin": standin_folder(tmp_path)}
    # Podman takes no long path here.
    storage = Path(tempfile.mkdtemp(prefix="berth-"))
    program = (f"--root={storage}/storage", f"--runroot={storage}/run")
    told["runtime"] = "podman"
    told["podman"] = {
        "storage": str(storage),
        "options": [f"--volume={source}:{target}:ro" for target, source in mounts.items()],
    }
    platform.write_text(yaml.safe_dump(told, sort_keys=False))
    environment = {name: podman.environ[name] for name in ("CONTAINERS_CONF",)}
    try:
        output = workspace.run("points", **environment)
        points = {
            int(key.rpartition("/c")[2]): json.loads(path.read_text()) for key, path in workspace.points().items()
        }
        assert sorted(points) == list(LEVELS), output[-3000:]
        for record in points.values():
            assert record["server"]["image"] == {"reference": reference, "digest": digest}
            assert record["server"]["command"][:3] == [
                "podman",
                f"--root={storage}/storage",
                f"--runroot={storage}/run",
            ]
        assert set(workspace.planned("points")) == {"points", "total"}
        assert podman(*program, "ps", "--all", "--quiet") == ""
    finally:
        podman(*program, "rmi", "--all", "--force", check=False)
        shutil.rmtree(storage)
