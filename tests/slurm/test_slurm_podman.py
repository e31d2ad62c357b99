"""Jobs of a real Slurm with server and client in containers of the real Podman: none outlives what it was started for.

The stand-in for vLLM is in the image. The real one in containers: tests/integration/test_sweep_podman.py.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from slurm_cluster import Slurm, SlurmWorkspace, by_run, started, use_standin, wait_until

from berth.fsio import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))
from container_runs import Podman, podman_image, standin_folder

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]

LEVELS = [1, 2]
CANCELLED, NODE_DIED = RUNS = (1, 2)


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    """Podman with the stand-in's image, as jobs find it."""
    folder = tmp_path / "image"
    folder.mkdir()
    with podman_image(folder, real=False) as found:
        monkeypatch.setenv("CONTAINERS_CONF", found.environ["CONTAINERS_CONF"])
        yield found


def use_container(workspace: SlurmWorkspace, podman: Podman, standin: Path) -> None:
    """Let the experiment run in containers of an image that is there already, with its receipt."""
    recipe = workspace.path / "config/recipes/vllm.yaml"
    value = yaml.safe_load(recipe.read_text())
    image = {"kind": "container", "reference": podman.image, "digest": podman.digest}
    value["versions"]["0.32.0"]["images"] = {"cpu": image}
    recipe.write_text(yaml.safe_dump(value, sort_keys=False))
    mounts = {**podman.mounts, "/standin": standin}
    workspace.change_platform(
        runtime="podman",
        accelerator={"kind": "cpu", "name": "CPU", "per_node": 4},
        podman={"options": [f"--volume={source}:{target}:ro" for target, source in mounts.items()]},
    )
    workspace.configure(lambda config: config["deployments"]["tiny-local"].update(tensor_parallel=1))
    write_json(workspace.path / "results/images/hops/vllm-0.32.0.json", podman.receipt())


def clients(podman: Podman) -> dict[int, str]:
    """The jobs whose client's container is there, by run."""
    found: dict[int, Any] = {}
    for name in podman.containers():
        if match := re.fullmatch(r"berth-local-run(\d+)-(\d+)-[0-9a-f]{8}-client", name):
            found[int(match[1])] = match[2]
    return found


def test_a_cancelled_job_leaves_no_container_and_a_dead_nodes_is_ended_by_the_next(
    slurm: Slurm, tmp_path: Path, podman: Podman
) -> None:
    """Scancel takes the containers down; what every process of a job leaves that dies at once, the next sweep ends."""
    workspace = SlurmWorkspace.on(slurm, tmp_path / "workspace")
    use_standin(workspace, runs=len(RUNS), levels=LEVELS)
    standin = standin_folder(tmp_path)
    use_container(workspace, podman, standin)
    held = [standin / f"hold-run{run}" for run in RUNS]
    for file in held:
        file.touch()
    # Deaf to TERM, which a `podman run` may still hand on before it is killed itself; inside no path names the run.
    (standin / "stubborn-no-run").touch()
    with started(workspace) as running:
        # The first point of a run has its client too, but only the second one lasts.
        wait_until(lambda: set(by_run(workspace.spooled())) == set(RUNS), "two first points")
        jobs = slurm.jobs()
        wait_until(lambda: clients(podman) == jobs, "two clients, which carry their jobs")
        node = slurm.node_of(jobs[NODE_DIED])
        slurm("scancel", jobs[CANCELLED])
        slurm.kill_node(node, jobs[NODE_DIED])
        assert running.wait() == 1
    slurm.revive_node(node)
    left = podman.containers()
    assert left
    assert all(f"-run{NODE_DIED}-{jobs[NODE_DIED]}-" in name for name in left)
    for file in held:
        file.unlink()
    output = workspace.run("points")
    assert by_run(workspace.points()) == dict.fromkeys(RUNS, LEVELS), output[-3000:]
    assert podman.containers() == []
    logs = "".join(path.read_text() for path in (workspace.path / "results/logs/sweep").rglob("run2.*.log"))
    assert f"ended what a dead sweep of this run had left: container berth-local-run2-{jobs[NODE_DIED]}-" in logs
    shutil.rmtree(workspace.path)
