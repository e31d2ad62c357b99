"""Command lines for Podman, Apptainer and a plain process, compared with the paper's figures 4 and 5."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.container import (
    Mount,
    apptainer_argv,
    apptainer_env,
    podman_argv,
    process_argv,
    process_env,
    render_shell,
    stop_argvs,
    without_login_session,
)
from berth.errors import BerthError
from berth.recipes import load_recipe
from berth.resolve import Resolved, resolve

if TYPE_CHECKING:
    from berth.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SCOUT = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
SECRET = "do-not-show-this"


@functools.cache
def load(recipe: str) -> Recipe:
    return load_recipe(ROOT / "config" / "recipes" / f"{recipe}.yaml")


def build(recipe: str = "vllm", **given: Any) -> Resolved:
    place: dict[str, Any] = {
        "accelerator": "cuda",
        "version": "0.9.1",
        "platform_name": "hops",
        "name": f"berth-{recipe}-4711",
        "model_path": Path("/scratch/models/scout"),
        "served_name": SCOUT,
        "host": "0.0.0.0",
        "port": 8000,
        "cache_dir": Path("/scratch/cache"),
        "files_dir": Path("/scratch/files"),
    }
    return resolve(load(recipe), **{**place, **given})


def scout(**given: Any) -> Resolved:
    args = {"max-model-len": 65536, "override-generation-config": '{"attn_temperature_tuning": true}'}
    return build(tensor_parallel=4, deployment_args=args, **given)


def litellm(**given: Any) -> Resolved:
    return build("litellm", version="1.103.0", inputs={"backend_url": "http://node7:8000"}, port=4000, **given)


def figure(number: int) -> list[str]:
    return (GOLDEN / f"paper-figure-{number}.txt").read_text().splitlines()


def differences(number: int) -> list[dict[str, Any]]:
    listed = yaml.safe_load((GOLDEN / "paper-differences.yaml").read_text())
    return [*listed["both"], *listed[f"figure-{number}"]]


@pytest.mark.parametrize("number", [4, 5])
def test_every_difference_from_the_papers_command_is_listed(number: int) -> None:
    """The paper's command and ours differ in exactly the tokens that the list holds, each with a reason."""
    container = scout().container
    ours = podman_argv(container) if number == 4 else apptainer_argv(container, "vllm-cuda.sif")
    # Two spellings of the same flag are one; Podman's -e is --env (Apptainer's is not).
    spellings = {"-e ": "--env=", "--device ": "--device="} if number == 4 else {"--cwd ": "--cwd="}
    paper = figure(number)
    for short, long in spellings.items():
        paper = [token.replace(short, long, 1) if token.startswith(short) else token for token in paper]
    listed = differences(number)
    assert all(item["reason"] for item in listed)
    assert sorted(set(paper) - set(ours)) == sorted(token for item in listed for token in item.get("paper", []))
    assert sorted(set(ours) - set(paper)) == sorted(token for item in listed for token in item.get("ours", []))


def test_no_terminal_and_no_moving_tag() -> None:
    """A batch job has no terminal, and `latest` is another image tomorrow: neither is ever rendered."""
    for resolved in (scout(), scout(accelerator="rocm"), litellm()):
        argv = podman_argv(resolved.container)
        assert not {"-t", "-i", "-ti", "-it", "--tty", "--interactive"} & set(argv)
        assert not any(token.endswith(":latest") for token in argv)


CASES = {
    "hops-scout-podman": lambda: podman_argv(scout(mode="paper").container),
    "hops-scout-apptainer": lambda: apptainer_argv(scout(mode="paper").container, "/images/vllm.sif"),
    "eldorado-scout-podman": lambda: podman_argv(scout(mode="paper", accelerator="rocm", device="MI300A").container),
    "eldorado-scout-apptainer": lambda: apptainer_argv(
        scout(mode="paper", accelerator="rocm", device="MI300A").container, "/images/vllm-rocm.sif"
    ),
    "hops-405b-podman": lambda: podman_argv(
        build(
            served_name="meta-llama/Llama-3.1-405B-Instruct",
            nodes=4,
            tensor_parallel=4,
            pipeline_parallel=4,
            head_address="10.0.0.1",
            node_address="10.0.0.1",
            node_interface="hsn0",
            cluster_port="8001",
        ).container
    ),
    "hops-present-podman": lambda: podman_argv(build(version="0.31.0", tensor_parallel=4).container),
    "local-process": lambda: process_argv(
        build(accelerator="cpu", version="0.32.0", host="127.0.0.1").container, "/envs/vllm"
    ),
    "litellm-podman": lambda: podman_argv(litellm().container),
    "litellm-apptainer": lambda: apptainer_argv(litellm().container, "/images/litellm.sif"),
    "litellm-process": lambda: process_argv(litellm(accelerator="cpu").container, "/envs/litellm"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_command_is_as_reviewed(name: str) -> None:
    """The rendered command is byte for byte the one that was reviewed."""
    assert render_shell(CASES[name]()) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_people_read_is_what_runs(name: str) -> None:
    """A shell splits the rendered text into the very tokens of the command."""
    assert shlex.split(render_shell(CASES[name]()).replace("\\\n", " ")) == CASES[name]()


def test_secrets_are_names_in_every_command() -> None:
    """A secret's value is only in the environment: by name for Podman, as APPTAINERENV_ for Apptainer."""
    container = litellm().container
    secrets = {"LITELLM_MASTER_KEY": SECRET, "BACKEND_API_KEY": SECRET}
    podman, apptainer = podman_argv(container), apptainer_argv(container, "l.sif")
    assert {"--env=LITELLM_MASTER_KEY", "--env=BACKEND_API_KEY"} <= set(podman)
    assert not any("MASTER_KEY" in token for token in apptainer)
    assert apptainer_env(container, secrets) == {
        "APPTAINERENV_LITELLM_MASTER_KEY": SECRET,
        "APPTAINERENV_BACKEND_API_KEY": SECRET,
    }
    assert container.secret_env == ("LITELLM_MASTER_KEY", "BACKEND_API_KEY")
    assert SECRET not in repr(container) + "".join(podman + apptainer)


def test_litellm_config_holds_references_and_no_secrets() -> None:
    """The proxy's file routes the model to its backend, and the keys in it are names of variables."""
    (written,) = litellm().files
    config = yaml.safe_load(written.text)
    (model,) = config["model_list"]
    assert written.path == Path("/scratch/files/config.yaml")
    assert model["model_name"] == SCOUT
    assert model["litellm_params"] == {
        "model": f"hosted_vllm/{SCOUT}",
        "api_base": "http://node7:8000/v1",
        "api_key": "os.environ/BACKEND_API_KEY",
    }
    assert config["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"


def test_a_missing_input_is_told() -> None:
    """A proxy without a backend is refused with what the input is for."""
    with pytest.raises(BerthError, match='input "backend_url" is missing: The root address'):
        build("litellm", version="1.103.0")


def test_values_that_apptainer_would_split_go_by_environment() -> None:
    """--env reads CSV, so that a list of hosts or a second equals sign goes as APPTAINERENV_ instead."""
    container = dataclasses.replace(scout().container, env={"no_proxy": "localhost,.site", "PLAIN": "1"})
    argv = apptainer_argv(container, "v.sif")
    assert "--env=PLAIN=1" in argv
    assert not any("no_proxy" in token for token in argv)
    assert apptainer_env(container, {}) == {"APPTAINERENV_no_proxy": "localhost,.site"}


def test_process_gets_a_clean_environment() -> None:
    """Of the caller's environment only PATH, locale, proxies and certificates pass; home and caches are the run's."""
    container = build(accelerator="cpu", version="0.32.0").container
    caller = {
        "PATH": "/usr/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "https_proxy": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3128",
        "SSL_CERT_FILE": "/etc/site.pem",
        "HOME": "/home/user",
        "PYTHONPATH": "/home/user/lib",
        "LD_PRELOAD": "x.so",
        "VLLM_API_KEY": SECRET,
        "HF_TOKEN": SECRET,
    }
    env = process_env(container, "/envs/vllm", caller, keep=("HF_TOKEN_PATH",))
    assert env["PATH"] == "/envs/vllm/bin:/usr/bin"
    assert env["HOME"] == env["XDG_CACHE_HOME"] == "/scratch/cache"
    assert env["HF_HOME"] == "/scratch/cache/huggingface"
    passed = {name for name in env if caller.get(name) == env[name]}
    assert passed == {"LANG", "LC_ALL", "https_proxy", "HTTPS_PROXY", "SSL_CERT_FILE"}
    assert not {"PYTHONPATH", "LD_PRELOAD", "VLLM_API_KEY", "HF_TOKEN"} & set(env)
    assert SECRET not in env.values()


def test_runtime_must_suit_the_image() -> None:
    """An environment is no container and a container no environment; each error says what to change."""
    environment = build(accelerator="cpu", version="0.32.0").container
    for command in (lambda: podman_argv(environment), lambda: apptainer_argv(environment, "x.sif")):
        with pytest.raises(BerthError, match=r"is an environment, which \w+ cannot run\. Use runtime process"):
            command()
    with pytest.raises(BerthError, match="is a container image, but the platform's runtime is `process`"):
        process_argv(scout().container, "/env")


def test_a_path_that_runtimes_would_split_is_refused() -> None:
    """A colon or comma in a mounted path would mount something else, so it is refused by name."""
    container = dataclasses.replace(scout().container, mounts=(Mount("/data/a:b", "/x"),))
    with pytest.raises(BerthError, match="/data/a:b: a path with a colon or a comma cannot be mounted"):
        podman_argv(container)


def test_shared_memory_where_ipc_is_private() -> None:
    """A service that asks for its own shared memory gets it by size."""
    container = scout().container
    expects = dataclasses.replace(container.expects, ipc="private", shm_gib=32)
    argv = podman_argv(dataclasses.replace(container, expects=expects))
    assert {"--ipc=private", "--shm-size=32g"} <= set(argv)
    assert not any("shm-size" in token for token in podman_argv(container))


def test_stop_asks_kills_and_removes_by_name() -> None:
    """Podman's container is asked, killed and removed under the name that carries the job."""
    container = scout().container
    commands = stop_argvs(container, "podman", grace_s=20.0)
    assert [command[:2] for command in commands] == [("podman", "stop"), ("podman", "kill"), ("podman", "rm")]
    assert "--time=20" in commands[0]
    assert all(command[-1] == "berth-vllm-4711" for command in commands)
    assert stop_argvs(container, "apptainer", grace_s=20.0) == stop_argvs(container, "process", grace_s=20.0) == ()


def test_login_session_is_dropped() -> None:
    """XDG_RUNTIME_DIR of a login session makes Podman fail inside a job."""
    env = {"XDG_RUNTIME_DIR": "/run/user/1", "XDG_SESSION_ID": "1", "XDG_CACHE_HOME": "/c", "PATH": "/bin"}
    assert without_login_session(env) == {"XDG_CACHE_HOME": "/c", "PATH": "/bin"}
