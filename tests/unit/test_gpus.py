"""Accelerators of a node that is shared: each runtime gets those of the job, by the exact command."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.container import podman_argv, podman_devices, process_env
from berth.devices import cdi_specification
from berth.gpus import cdi_names, numbers_on_node, share_of, shares_node
from berth.parse import load_config
from berth.recipes import load_recipe
from berth.render import render_files
from berth.rendering import Rendering, renderings
from berth.resolve import client_container, resolve

ROOT = Path(__file__).resolve().parents[2]
# What a job of Slurm with --gres=gpu:2 has, as seen on the real one, where another job has 0 and 1.
JOB = {
    "SLURM_JOB_GPUS": "2,3",
    "CUDA_VISIBLE_DEVICES": "2,3",
    "ROCR_VISIBLE_DEVICES": "2,3",
    "GPU_DEVICE_ORDINAL": "2,3",
}
# The same where the site confines devices: numbers count within the job, but for Slurm's own.
CONFINED = {**JOB, **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"), "0,1")}


def container_of(accelerator: str, flags: tuple[str, ...]) -> Any:
    return resolve(
        load_recipe(ROOT / "config/recipes/vllm.yaml"),
        accelerator=accelerator,
        version="0.9.1",
        platform_name="hops",
        model_path=Path("/models/m"),
        served_name="org/m",
        host="0.0.0.0",
        port=8000,
        cache_dir=Path("/cache"),
        files_dir=Path("/files"),
        device_flags=flags,
    ).container


def rendering(platform: str, runtime: str = "podman") -> Rendering:
    """A deployment on two of the four accelerators of a node."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    name = {"hops": "scout-w4a16-hops", "eldorado": "scout-eldorado"}[platform]
    raw["deployments"][name]["tensor_parallel"] = 2
    config = load_config({**raw, "platform": platform, "config_dir": str(ROOT / "config")}, ROOT)
    found = renderings(config, ROOT, (3, 11))[name]
    return replace(found, platform=replace(found.platform, runtime=runtime))


@pytest.mark.parametrize("environ", [JOB, CONFINED], ids=["not confined", "confined"])
def test_podman_gets_one_cdi_device_for_each_gpu_of_the_job(environ: dict[str, str]) -> None:
    """Podman's container is outside the job's control group, so the numbers are the node's, and nothing says `all`."""
    share = share_of("podman", "cuda", environ)
    argv = podman_argv(container_of("cuda", share.podman_flags))
    devices = [word for word in argv if "nvidia.com" in word]
    assert devices == ["--device=nvidia.com/gpu=2", "--device=nvidia.com/gpu=3"]
    # Inside, the two count as 0 and 1: a variable with the node's numbers would hide both.
    assert not any("VISIBLE_DEVICES" in word for word in argv)
    assert share.env == {}


@pytest.mark.parametrize("environ", [JOB, CONFINED], ids=["not confined", "confined"])
def test_podman_names_accelerators_of_rocm_by_a_variable(environ: dict[str, str]) -> None:
    """/dev/kfd reaches every accelerator, so that the variable chooses; it is the one that Ray and vLLM heed."""
    argv = podman_argv(container_of("rocm", share_of("podman", "rocm", environ).podman_flags))
    assert "--env=HIP_VISIBLE_DEVICES=2,3" in argv
    assert {"--device=/dev/kfd", "--device=/dev/dri", "--group-add=video"} <= set(argv)


def test_apptainer_and_processes_get_the_schedulers_own_variables() -> None:
    """Both stay in the job's control group, where the numbers that the scheduler wrote are right as they are."""
    env = share_of("apptainer", "cuda", {**CONFINED, "HOME": "/root"}).env
    assert env == {name: "0,1" for name in CONFINED if not name.startswith("SLURM")}
    process = process_env(container_of("cuda", ()), "/env", {**CONFINED, "CUDA_HOME": "/cuda"})
    assert {name: process.get(name) for name in env} == env
    assert "CUDA_HOME" not in process
    assert share_of("process", "cuda", CONFINED).env == {}


@pytest.mark.parametrize(
    ("environ", "numbers"),
    [
        ({}, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5a,GPU-7b"}, ("GPU-5a", "GPU-7b")),
        ({"SLURM_JOB_GPUS": "0-2", "SLURM_STEP_GPUS": "1,2"}, ("1", "2")),
        ({"SLURM_JOB_GPUS": "0-2"}, ("0", "1", "2")),
    ],
)
def test_numbers_are_read_from_what_the_scheduler_says(environ: dict[str, str], numbers: tuple[str, ...]) -> None:
    """A step's own come first, ranges and UUIDs are understood, and without any of it nothing is known."""
    assert numbers_on_node("cuda", environ) == numbers


def test_a_whole_node_is_passed_as_before() -> None:
    """A deployment that uses all accelerators of its nodes names none of them, and neither does one outside a job."""
    assert not shares_node(4, 1, 4)
    assert not shares_node(16, 4, 4)
    assert shares_node(2, 1, 4)
    assert share_of("podman", "cuda", {}).podman_flags == ()
    assert "--device=nvidia.com/gpu=all" in podman_argv(container_of("cuda", ()))
    assert podman_devices("none") == ()


def test_a_client_that_needs_no_device_gets_none() -> None:
    """The job's devices are for what computes on them."""
    recipe = load_recipe(ROOT / "config/recipes/vllm.yaml")
    server = container_of("cuda", share_of("podman", "cuda", JOB).podman_flags)
    client = client_container(recipe, replace(server, accelerator="none"), version="0.9.1", name="c")
    assert not any("nvidia.com" in word for word in podman_argv(client))


def argv_of(script: str, environ: dict[str, str]) -> list[str]:
    """The words that the rendered command gets, as bash makes them."""
    start = script.index("# The job may own only some")
    body = script[start : script.index("\nmkdir -p")]
    command = script[script.index("podman run") :].partition(" &\n")[0]
    text = f"set -euo pipefail\nNAME=n\n{body}\nprintf '%s\\n' {command}"
    env = {"PATH": "/usr/bin:/bin", **environ}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_rendered_script_passes_the_jobs_own(tmp_path: Path) -> None:
    """Run by bash, server.sh names the devices of the job, and all of them outside one."""
    script = render_files(rendering("hops"))["server.sh"]
    for environ, wanted in ((JOB, ["2", "3"]), (CONFINED, ["2", "3"]), ({}, ["all"])):
        found = [word for word in argv_of(script, environ) if "nvidia.com" in word]
        assert found == [f"--device=nvidia.com/gpu={number}" for number in wanted]
    assert "salloc --nodes=1 --gres=gpu:2" in script


def test_the_rendered_script_for_rocm_sets_the_variable() -> None:
    """On a cluster of AMD's accelerators the same script names them by the variable, or not at all."""
    script = render_files(rendering("eldorado"))["server.sh"]
    words = argv_of(script, JOB)
    assert "--env=HIP_VISIBLE_DEVICES=2,3" in words
    assert "--device=/dev/kfd" in words
    assert not any("HIP_VISIBLE" in word for word in argv_of(script, {}))
    assert "--gpus-per-node=2" in script


def test_the_rendered_script_for_apptainer_hands_the_variables_over() -> None:
    """What --cleanenv would drop goes as APPTAINERENV_ under the name that the scheduler gave."""
    script = render_files(rendering("hops", "apptainer"))["server.sh"]
    start = script.index("# The job may own only some")
    body = script[start : script.index("\nmkdir -p", start)]
    env = {"PATH": "/usr/bin:/bin", **CONFINED}
    text = f"set -euo pipefail\n{body}\nenv | grep ^APPTAINERENV_ | sort"
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == [
        f"APPTAINERENV_{name}=0,1" for name in ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES")
    ]


def test_a_specification_without_the_jobs_gpu_is_told(tmp_path: Path) -> None:
    """Before the server starts: a CDI specification that lacks one of the job's devices names it and what it has."""
    (tmp_path / "gpus.json").write_text(
        json.dumps({"kind": "nvidia.com/gpu", "devices": [{"name": "all"}, {"name": "2"}]})
    )
    names = cdi_names(share_of("podman", "cuda", JOB).podman_flags)
    assert names == ("2", "3")
    assert cdi_names(()) == ("all",)
    result = cdi_specification((str(tmp_path),), names)
    assert result.status == "FAIL"
    assert "no specification of nvidia.com/gpu=2,3" in result.what
    assert "has no device `3` but all, 2" in result.what
    assert cdi_specification((str(tmp_path),), ("2",)).status == "ok"
