"""Recipes: read, refused, and resolved for the paper's platforms and this machine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.decide import Site, decide
from berth.diagnose import diagnose
from berth.errors import BerthError
from berth.recipes import load_recipe
from berth.resolve import client_container, resolve

if TYPE_CHECKING:
    from berth.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "config" / "recipes"
LOCKS = ROOT / "src" / "berth" / "locks"
GOLDEN = ROOT / "tests" / "golden"
PLACE: dict[str, Any] = {
    "model_path": Path("/scratch/models/scout"),
    "served_name": "org/scout",
    "host": "0.0.0.0",
    "port": 8000,
    "cache_dir": Path("/scratch/cache"),
    "files_dir": Path("/scratch/files"),
}


@pytest.fixture(scope="module")
def vllm() -> Recipe:
    return load_recipe(RECIPES / "vllm.yaml")


@pytest.fixture
def raw() -> dict[str, Any]:
    """The smallest whole recipe, to be spoilt."""
    return {
        "description": "echo",
        "entrypoint": "echo",
        "arguments": ["${model}"],
        "expects": {
            "user": "any",
            "network": "host",
            "ipc": "host",
            "accelerator": False,
            "workdir": "/",
            "cache": {"dir": "/cache", "env": {}},
        },
        "versions": {"1.0": {"images": {"cuda": {"kind": "container", "reference": "registry.example/echo:1.0"}}}},
        "flags": [{"kind": "value", "names": ["size"]}, {"kind": "switch", "until": "1.0", "names": ["old"]}],
        "ready": {"health": "/h", "models": "/m", "completion": "/c"},
    }


def write(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "echo.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    """Every shipped recipe loads, and every lock that it names is in the package."""
    recipe = load_recipe(path)
    locks = {image.lock for version in recipe.versions.values() for image in version.images.values() if image.lock}
    assert recipe.name == path.stem
    assert all((LOCKS / lock).exists() for lock in locks)


def _spoil(raw: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split("/")
    at = raw
    for part in parts:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("entrypont", "x", 'unknown key "entrypont". Did you mean "entrypoint"?'),
        ("expects/user", "nobody", "expects.user: 'nobody' is not allowed. Use one of: root, any."),
        ("args", {"size": {"value": 1}}, 'args.size: the key "reason" is missing'),
        ("env", {"A": {"value": 1, "reason": "r"}}, "env.A.value: 1 has the wrong type"),
        ("versions/1.0/images/cuda", {"kind": "container"}, "versions.1.0.images.cuda"),
        ("versions/1.0/images/cuda/reference", "echo", "versions.1.0.images.cuda.reference: 'echo' does not match"),
        ("failures", [{"pattern": "a(b", "cause": "c", "remedy": "r"}], "failures.0.pattern: 'a(b' is no regular"),
        ("arguments", ["${modle}"], "${modle} in '${modle}' has no value. Did you mean \"model\"?"),
        ("arguments", ["$"], "has a lone dollar sign"),
    ],
)
def test_a_bad_recipe_is_refused(raw: dict[str, Any], tmp_path: Path, path: str, value: Any, told: str) -> None:
    """One error names the file, the key, the value and what is allowed."""
    _spoil(raw, path, value)
    file = write(tmp_path, raw)
    with pytest.raises(BerthError) as error:
        load_recipe(file)
    assert str(file) in str(error.value)
    assert told in str(error.value)


def test_a_secret_has_no_value_in_a_recipe(raw: dict[str, Any], tmp_path: Path) -> None:
    """A recipe that gives a value to one of its own secrets is refused, wherever it does so."""
    raw["secrets"] = {"server_key": "ECHO_KEY"}
    for place in ("env", "versions/1.0/env", "accelerators/cuda/env"):
        spoilt = copy.deepcopy(raw)
        _spoil(spoilt, place, {"ECHO_KEY": {"value": "abc", "reason": "r"}})
        with pytest.raises(BerthError, match=r"env\.ECHO_KEY: a secret has no value"):
            load_recipe(write(tmp_path, spoilt))


def test_a_service_needs_no_python(raw: dict[str, Any], tmp_path: Path) -> None:
    """A new YAML file is enough for a container."""
    recipe = load_recipe(write(tmp_path, raw))
    resolved = resolve(
        recipe, accelerator="cuda", version="1.0", platform_name="p", deployment_args={"size": 3}, **PLACE
    )
    assert resolved.container.args == ("org/scout", "--size=3")
    assert resolved.container.accelerator == "none"


def test_an_edited_recipe_is_read_again(raw: dict[str, Any], tmp_path: Path) -> None:
    """Recipes are kept between calls, but never in spite of an edit; a missing one is told by name."""
    first = load_recipe(write(tmp_path, raw))
    raw["description"] = "echo, but longer"
    assert first.description == "echo"
    assert load_recipe(write(tmp_path, raw)).description == "echo, but longer"
    with pytest.raises(BerthError, match=r"none\.yaml: no such file"):
        load_recipe(tmp_path / "none.yaml")


def test_later_layers_win_and_say_so(raw: dict[str, Any], tmp_path: Path) -> None:
    """Recipe < version < accelerator < version on it < mode < device < platform < deployment, each told as replaced."""
    layer = {"args": {"size": {"value": 0, "reason": "why"}}}
    raw |= layer
    raw["versions"]["1.0"] |= layer | {"accelerators": {"cuda": layer}}
    raw |= {"accelerators": {"cuda": layer}, "modes": {"clean": layer}, "devices": {"H100": layer}}
    recipe = load_recipe(write(tmp_path, raw))
    order = ["recipe", "version 1.0", "accelerator cuda", "version 1.0 on cuda", "mode clean", "device H100"]
    order += ["platform hops", "deployment"]
    given: dict[str, Any] = {
        "device": "H100",
        "mode": "clean",
        "site": Site(args={"size": 7}, reason="site"),
        "deployment_args": {"size": 8},
        "deployment_reason": "mine",
    }
    decision = decide(recipe, accelerator="cuda", version="1.0", platform_name="hops", **given)
    (told,) = decision.explanations
    assert (told.value, told.reason) == (8, "mine")
    assert [*told.replaced, told.source] == order


def test_null_removes_a_setting(vllm: Recipe) -> None:
    """Null in a deployment removes a flag and a variable, and the explanation stays."""
    decision = decide(
        vllm,
        accelerator="cuda",
        version="0.9.1",
        platform_name="hops",
        deployment_args={"disable-log-requests": None},
        deployment_env={"OMP_NUM_THREADS": None},
    )
    assert "disable-log-requests" not in decision.args
    assert "OMP_NUM_THREADS" not in decision.env
    removed = {told.name for told in decision.explanations if told.value is None}
    assert removed == {"disable-log-requests", "OMP_NUM_THREADS"}


@pytest.mark.parametrize(
    ("version", "args", "told"),
    [
        ("0.31.0", {"disable-log-requests": True}, 'does not know the flag "disable-log-requests" (until 0.31.0)'),
        ("0.9.1", {"nnodes": 2}, 'does not know the flag "nnodes" (since 0.31.0)'),
        ("0.9.1", {"max-modellen": 1}, 'no version knows the flag "max-modellen". Did you mean "max-model-len"?'),
        ("0.9.1", {"api-key": "abc"}, "The key goes by environment"),
        ("0.9.1", {"max-model-len": True}, "max-model-len: true is not allowed; this flag takes a value"),
        ("0.9.1", {"enforce-eager": "yes"}, "enforce-eager: 'yes' is not allowed. Use true or false."),
    ],
)
def test_a_wrong_flag_is_refused(vllm: Recipe, version: str, args: dict[str, Any], told: str) -> None:
    """A flag that the version lacks, a misspelt one, a secret one and a value of the wrong kind are told apart."""
    with pytest.raises(BerthError) as error:
        decide(vllm, accelerator="cuda", version=version, platform_name="hops", deployment_args=args)
    assert told in str(error.value)
    assert "deployment" in str(error.value)


def test_a_secret_in_a_deployment_is_refused_without_its_value(vllm: Recipe) -> None:
    """A key in a deployment's environment is named and not repeated."""
    with pytest.raises(BerthError, match=r"env\.VLLM_API_KEY: this is a secret") as error:
        decide(
            vllm,
            accelerator="cuda",
            version="0.9.1",
            platform_name="hops",
            deployment_env={"VLLM_API_KEY": "do-not-show"},
        )
    assert "do-not-show" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"version": "0.9.2"}, 'there is no version "0.9.2". Did you mean "0.9.1"?'),
        ({"accelerator": "cpu", "version": "0.9.1"}, 'there is none for "cpu". It has: cuda, rocm.'),
        ({"mode": "papr"}, 'mode: "papr" is not allowed. Did you mean "paper"?'),
        ({"inputs": {"backend": "x"}}, 'has no input "backend"'),
    ],
)
def test_a_wrong_choice_is_refused(vllm: Recipe, given: dict[str, Any], told: str) -> None:
    """Version, accelerator, mode and inputs that the recipe does not have are refused with what it has."""
    with pytest.raises(BerthError) as error:
        resolve(vllm, **{"accelerator": "cuda", "version": "0.9.1", "platform_name": "hops", **PLACE, **given})
    assert told in str(error.value)


def test_mi300a_leaves_memory_to_its_host(vllm: Recipe) -> None:
    """The device sets 0.7 with its reason, and ROCm's variables hold for 0.9.1 alone."""
    old, new = (
        decide(vllm, accelerator="rocm", version=version, platform_name="eldorado", device="MI300A")
        for version in ("0.9.1", "0.31.0")
    )
    told = next(told for told in old.explanations if told.name == "gpu-memory-utilization")
    assert (told.value, told.source) == (0.7, "device MI300A")
    assert "HBM" in told.reason
    assert (old.env["VLLM_USE_V1"], old.env["VLLM_USE_TRITON_FLASH_ATTN"]) == ("1", "0")
    assert "VLLM_USE_V1" not in new.env


def test_environment_is_that_of_the_published_scripts(vllm: Recipe) -> None:
    """In paper mode the variables are exactly those of the paper's scripts: nine of the figures, one of the scripts."""
    decision = decide(vllm, accelerator="cuda", version="0.9.1", platform_name="hops", mode="paper")
    assert decision.env == {
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ENABLE_HF_TRANSFER": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_DISABLE_COMPILE_CACHE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    assert decision.args["seed"] == 12345


def test_clean_mode_turns_the_prefix_cache_off(vllm: Recipe) -> None:
    """A toggle set to false becomes --no-..., in the spelling of the service."""
    resolved = resolve(vllm, accelerator="cuda", version="0.31.0", platform_name="hops", mode="clean", **PLACE)
    assert "--no-enable-prefix-caching" in resolved.container.args


def test_several_nodes_use_ray_or_vllm_itself(vllm: Recipe) -> None:
    """0.9.1 takes Ray; later versions say how many nodes, which one, and where the first is; workers are headless."""
    four: dict[str, Any] = {
        "nodes": 4,
        "tensor_parallel": 4,
        "pipeline_parallel": 4,
        "head_address": "10.0.0.1",
        "node_address": "10.0.0.2",
    }
    where: dict[str, Any] = {"accelerator": "cuda", "platform_name": "hops", **PLACE, **four}
    ray = resolve(vllm, version="0.9.1", **where).container
    assert {"--distributed-executor-backend=ray", "--pipeline-parallel-size=4"} <= set(ray.args)
    assert ray.env["VLLM_HOST_IP"] == "10.0.0.2"
    head, worker = (resolve(vllm, version="0.31.0", node_rank=rank, **where).container for rank in (0, 1))
    assert {"--nnodes=4", "--node-rank=0", "--master-addr=10.0.0.1"} <= set(head.args)
    assert "--headless" not in head.args
    assert {"--headless", "--node-rank=1"} <= set(worker.args)


def test_resolving_is_deterministic(vllm: Recipe) -> None:
    """The order in which a user writes flags does not change the command."""
    given = {"max-model-len": 8, "dtype": "half", "seed": 1}
    one, two = (
        resolve(vllm, accelerator="cuda", version="0.9.1", platform_name="p", deployment_args=args, **PLACE).container
        for args in (given, dict(reversed(given.items())))
    )
    assert one == two


def test_client_runs_in_the_servers_image(vllm: Recipe) -> None:
    """The client is the image's Python with the client's key, and has devices only where its import needs them."""
    for accelerator, devices in (("cuda", "none"), ("rocm", "rocm")):
        server = resolve(vllm, accelerator=accelerator, version="0.9.1", platform_name="p", **PLACE).container  # type: ignore[arg-type]
        client = client_container(vllm, server, version="0.9.1", name="bench")
        assert (client.image, client.entrypoint, client.secret_env) == (server.image, "python3", ("OPENAI_API_KEY",))
        assert client.accelerator == devices


def test_known_failures_name_cause_and_remedy(vllm: Recipe) -> None:
    """Each row of the table is found in a line as the real programs print it, and is the row that is told for it."""
    lines = yaml.safe_load((GOLDEN / "vllm-failures.yaml").read_text())
    told = set()
    for line in lines:
        found = diagnose(line["line"], known_failures=vllm.failures, returncode=1)
        assert line["told"] in found.cause, line["line"]
        told.add(found.cause)
    assert told == {failure.cause for failure in vllm.failures}


@pytest.mark.parametrize(
    "line",
    [
        "WARNING 11-24 Address already in use. Retrying with a new port.",
        "INFO:     Application startup complete.",
        'INFO:     127.0.0.1:55 - "POST /v1/completions HTTP/1.1" 200 OK',
        "INFO 11-24 [ray_utils.py:468] Waiting for creating a placement group of specs for 10 seconds.",
    ],
)
def test_a_healthy_line_is_no_known_failure(vllm: Recipe, line: str) -> None:
    """Lines of a healthy server match no row, so that they never hide the real cause."""
    assert "The log names no error" in diagnose(line, known_failures=vllm.failures, returncode=0).cause
