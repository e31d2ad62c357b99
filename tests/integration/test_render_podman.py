"""The rendered server.sh under the real Podman, with an image made on the spot whose `vllm` is a script."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from berth.container import podman_devices
from berth.gpus import share_of
from berth.parse import load_config
from berth.recipe import Image
from berth.render import render_files, write_rendered
from berth.rendering import renderings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.rendering import Rendering

ROOT = Path(__file__).resolve().parents[2]
VLLM = """#!/bin/bash
echo "in $PWD: $*"
echo "key: ${VLLM_API_KEY:-none}, offline: ${HF_HUB_OFFLINE:-none}"
trap 'echo asked to end; exit 0' TERM
sleep 600 & wait
"""
# What Podman 4.3 needs as root without every capability, on a host with both versions of cgroups.
CONF = """[containers]
default_ulimits=["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime="runc"
events_logger="file"
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which Podman runs containers, and the image's name in it."""
    if shutil.which("podman") is None:
        pytest.skip("Podman is not installed: apt-get install podman")
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(CONF)
    environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
    root = folder / "root"
    for program in ("bash", "sleep"):
        binary = Path(shutil.which(program) or "").resolve()
        listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
        for needed in re.findall(r"(/\S+)", listed):
            (root / needed[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(needed, root / needed[1:])
        (root / "bin").mkdir(exist_ok=True)
        shutil.copy(binary, root / "bin" / program)
    (root / "bin/vllm").write_text(VLLM)
    (root / "bin/vllm").chmod(0o755)
    (root / "vllm-workspace/models").mkdir(parents=True)
    subprocess.run(["tar", "-C", str(root), "-cf", str(folder / "image.tar"), "."], check=True)
    image = f"localhost/berth-test-{uuid.uuid4().hex[:8]}:1"
    made = subprocess.run(
        ["podman", "import", str(folder / "image.tar"), image],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    tried = subprocess.run(
        ["podman", "run", "--rm", "--network=host", "--entrypoint=bash", image, "-c", "exit 0"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode or tried.returncode:
        pytest.skip(f"Podman cannot run a container here: {made.stderr}{tried.stderr}")
    yield {**environment, "IMAGE": image}
    subprocess.run(["podman", "rmi", "--force", image], env=environment, capture_output=True, check=True)


def deployment(folder: Path, image: str) -> Rendering:
    """The paper's deployment on Hops with another image and no accelerator, which this machine has not."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    found = renderings(load_config({**raw, "platform": "hops"}, ROOT), ROOT, (3, 11))["scout-hops"]
    recipe = found.recipe
    version = dataclasses.replace(recipe.versions["0.9.1"], images={"cuda": Image("container", image)})
    recipe = dataclasses.replace(
        recipe,
        versions={**recipe.versions, "0.9.1": version},
        expects=dataclasses.replace(recipe.expects, accelerator=False),
    )
    platform = dataclasses.replace(
        found.platform, models_dir=str(folder / "models"), images_dir=str(folder), scratch_dir=str(folder / "scratch")
    )
    rendering = dataclasses.replace(found, recipe=recipe, platform=platform)
    rendering.model_dir.mkdir(parents=True)
    return rendering


def test_the_script_runs_and_leaves_nothing(podman: dict[str, str], tmp_path: Path) -> None:
    """The container carries the job's number, gets key and settings, is asked to end, and is gone after the script."""
    rendering = deployment(tmp_path, podman["IMAGE"])
    write_rendered(tmp_path / "rendered", render_files(rendering), ())
    job = str(uuid.uuid4().int)[:8]
    log = tmp_path / "log"
    # A folder of a login session that is over is what Podman fails on in a job.
    environment = {**podman, "VLLM_API_KEY": "of-the-test", "SLURM_JOB_ID": job, "XDG_RUNTIME_DIR": "/run/user/none"}

    def containers() -> list[str]:
        listed = subprocess.run(
            ["podman", "ps", "--all", "--format={{.Names}}"], env=podman, capture_output=True, text=True, check=True
        )
        return listed.stdout.split()

    with log.open("wb") as output:
        script = subprocess.Popen(
            ["bash", str(tmp_path / "rendered/server.sh")], env=environment, stdout=output, stderr=output
        )
    while "key:" not in log.read_text() and script.poll() is None:
        time.sleep(0.05)
    assert f"berth-scout-hops-{job}" in containers(), log.read_text()
    script.send_signal(signal.SIGTERM)
    assert script.wait() == 143
    told = log.read_text()
    assert "in /vllm-workspace/models: serve meta-llama/Llama-4-Scout-17B-16E-Instruct" in told
    assert "key: of-the-test, offline: 1" in told
    assert "asked to end" in told
    assert f"berth-scout-hops-{job}" not in containers()


def device(name: str, numbers: str) -> dict[str, object]:
    """One device of a CDI specification: /dev/null under the names of GPUs."""
    nodes = [{"path": f"/dev/nvidia{number}", "type": "c", "major": 1, "minor": 3} for number in numbers]
    return {"name": name, "containerEdits": {"deviceNodes": nodes}}


SPECIFICATION = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [*(device(number, number) for number in "0123"), device("all", "0123")],
}


def test_a_job_gets_its_own_gpus_of_a_shared_node(podman: dict[str, str], tmp_path: Path) -> None:
    """The real Podman passes the two devices of the job by their CDI names, and all four where nothing is told."""
    if os.geteuid() != 0:
        pytest.skip("a CDI specification is put in place for one process, which needs root")
    (tmp_path / "gpus.json").write_text(json.dumps(SPECIFICATION))
    # In a view of its own: the machine's specification, and that of other tests, stay as they are.
    prepare = "mkdir -p /var/run/cdi; mount --bind $0 /var/run/cdi; [ ! -d /etc/cdi ] || mount -t tmpfs none /etc/cdi"
    seen = []
    for environ in ({"SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, {}):
        flags = share_of("podman", "cuda", environ).podman_flags or podman_devices("cuda")
        command = ["podman", "run", "--rm", "--network=host", *flags, "--entrypoint=bash", podman["IMAGE"]]
        command += ["-c", "echo /dev/nvidia*"]
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", f'set -e; {prepare}; exec "$@"', str(tmp_path), *command],
            env=podman,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    assert seen == [["/dev/nvidia2", "/dev/nvidia3"], [f"/dev/nvidia{number}" for number in range(4)]]
