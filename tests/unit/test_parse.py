"""Configuration: what is shipped loads, and each kind of bad input gets one clear error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from berth._schema import SCHEMA_DIR
from berth.errors import BerthError
from berth.parse import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    return tmp_path


def error_of(raw: dict[str, Any], root: Path = ROOT) -> str:
    with pytest.raises(BerthError) as caught:
        load_config(raw, root)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    value = yaml.safe_load(path.read_text())
    value.update(changes)
    path.write_text(yaml.safe_dump(value))


def test_shipped_configuration_holds_the_papers_experiments_beside_the_local_one(raw: dict[str, Any]) -> None:
    """The shipped files load and hold three models, three platforms and three experiments of the paper."""
    config = load_config(raw, ROOT)
    assert set(config.experiments) == {"local", "fig9", "fig10", "fig12"}
    assert set(config.platforms) >= {"local", "hops", "eldorado", "goodall"}
    assert config.models["llama-4-scout"].repo == "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    assert config.benchmarks["sharegpt-1000"].concurrency == tuple(2**n for n in range(11))
    assert config.experiments["fig10"].runs == {"scout-w4a16-hops": 5, "scout-w4a16-goodall": 2}
    big = config.deployments["llama31-405b-hops"]
    assert (big.nodes, big.tensor_parallel, big.pipeline_parallel) == (4, 4, 4)


@pytest.mark.parametrize("name", sorted(path.name for path in SCHEMA_DIR.glob("*.schema.yaml")))
def test_every_schema_is_one(name: str) -> None:
    """A schema is valid itself, which is not looked at again each time that it is used."""
    Draft202012Validator.check_schema(yaml.safe_load((SCHEMA_DIR / name).read_text()))


def test_unknown_key_names_the_nearest(raw: dict[str, Any]) -> None:
    """A misspelt key is refused with the file, the key, the nearest key and all that are allowed."""
    raw["benchmarks"]["demo"]["num_promts"] = 5
    text = error_of(raw)
    assert "config/config.yaml" in text
    assert 'benchmarks.demo: unknown key "num_promts". Did you mean "num_prompts"?' in text
    assert "warm_up_prompts" in text


def test_wrong_type_says_what_is_expected(raw: dict[str, Any]) -> None:
    """A text where a number belongs is refused with key, value and type."""
    raw["benchmarks"]["demo"]["num_prompts"] = "many"
    assert "benchmarks.demo.num_prompts: 'many' has the wrong type; integer is expected." in error_of(raw)


def test_missing_key_is_named(raw: dict[str, Any]) -> None:
    """A key that must be there is named where it is missing."""
    del raw["deployments"]["tiny-local"]["version"]
    assert 'deployments.tiny-local: the key "version" is missing' in error_of(raw)


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("model", "tiny-lama", "tiny-llama"), ("recipe", "vlm", "vllm"), ("platform", "hop", "hops")],
)
def test_unknown_name_suggests_the_nearest(raw: dict[str, Any], key: str, value: str, nearest: str) -> None:
    """An unknown model, recipe or platform is refused with the nearest name."""
    raw["deployments"]["tiny-local"][key] = value
    text = error_of(raw)
    assert f'deployments.tiny-local.{key}: there is no {key} "{value}". Did you mean "{nearest}"?' in text


def test_unknown_platform_at_hand_lists_the_known(raw: dict[str, Any]) -> None:
    """The platform that a profile or --config names must have a file."""
    raw["platform"] = "frontier"
    assert 'platform: there is no platform "frontier"' in error_of(raw)
    assert "eldorado, goodall, hops, local" in error_of(raw)


def test_unknown_experiment_in_select(raw: dict[str, Any]) -> None:
    """A selected experiment must exist."""
    raw["select"] = ["fig99"]
    assert 'select: there is no experiment "fig99". Did you mean "fig9"?' in error_of(raw)


def test_parallelism_that_does_not_fit(raw: dict[str, Any]) -> None:
    """Tensor x pipeline parallel beyond nodes x accelerators is refused with the arithmetic."""
    raw["deployments"]["scout-hops"]["pipeline_parallel"] = 2
    text = error_of(raw)
    assert "tensor_parallel 4 x pipeline_parallel 2 = 8 ranks, but 1 node(s) of hops have 4 H100" in text


def test_more_nodes_than_the_platform_gives(raw: dict[str, Any]) -> None:
    """A deployment cannot take more nodes than a job of its platform may."""
    raw["deployments"]["llama31-405b-hops"]["nodes"] = 5
    assert "deployments.llama31-405b-hops.nodes: 5 nodes, but platform hops gives a job at most 4." in error_of(raw)


def test_duplicate_concurrency(raw: dict[str, Any]) -> None:
    """A level that stands twice would be one file for two points."""
    raw["benchmarks"]["demo"]["concurrency"] = [1, 2, 2]
    assert "benchmarks.demo.concurrency: 2 stands twice" in error_of(raw)


@pytest.mark.parametrize("level", [0, -4])
def test_concurrency_below_one(raw: dict[str, Any], level: int) -> None:
    """Concurrency starts at one."""
    raw["benchmarks"]["demo"]["concurrency"] = [1, level]
    assert f"benchmarks.demo.concurrency.1: {level} is too small; 1 is the least" in error_of(raw)


def test_request_rate_is_positive_or_inf(raw: dict[str, Any]) -> None:
    """A rate of zero or a word other than inf is refused."""
    raw["benchmarks"]["demo"]["request_rate"] = 0
    assert "request_rate: 0 is not allowed" in error_of(raw)
    raw["benchmarks"]["demo"]["request_rate"] = "fast"
    assert "request_rate: 'fast' is not allowed" in error_of(raw)


def test_runs_name_every_deployment(raw: dict[str, Any]) -> None:
    """A mapping of runs must name the deployments of the experiment, all and no others."""
    raw["experiments"]["fig10"]["runs"] = {"scout-w4a16-hops": 5}
    assert 'experiments.fig10.runs: "scout-w4a16-goodall" must stand both here and in deployments' in error_of(raw)


def test_branch_instead_of_commit(raw: dict[str, Any], copy: Path) -> None:
    """A branch name is no revision: it may move between two points."""
    edit(copy / "config/models/llama-3.1-405b.yaml", revision="main")
    text = error_of(raw, copy)
    assert "llama-3.1-405b.yaml: revision: 'main' does not match" in text
    assert "full commit" in text


def test_reversed_port_range(raw: dict[str, Any], copy: Path) -> None:
    """A port range runs upwards."""
    edit(copy / "config/platforms/local.yaml", server={"host": "127.0.0.1", "ports": [19000, 18000]})
    assert "config/platforms/local.yaml: server.ports: [19000, 18000] is no range" in error_of(raw, copy)


def test_file_that_is_no_yaml(raw: dict[str, Any], copy: Path) -> None:
    """A file that cannot be parsed is named."""
    (copy / "config/models/broken.yaml").write_text("source: [hub\n")
    assert "broken.yaml: not valid YAML" in error_of(raw, copy)


def test_command_line_texts_for_partial(raw: dict[str, Any]) -> None:
    """`--config partial=true` arrives as a text and means the same as true."""
    assert load_config({**raw, "partial": "true"}, ROOT).partial is True
    assert load_config({**raw, "partial": False}, ROOT).partial is False
    assert "partial" in error_of({**raw, "partial": "maybe"})


@pytest.mark.parametrize(("runtime", "section"), [("apptainer", "podman"), ("podman", "apptainer")])
def test_settings_of_another_runtime_are_refused(raw: dict[str, Any], copy: Path, runtime: str, section: str) -> None:
    """Options that no command would ever get are a mistake, and the message says which runtime they are for."""
    edit(copy / "config/platforms/hops.yaml", runtime=runtime, **{section: {"options": ["--x=1"]}})
    assert f"{section}: it is only for runtime {section}, and runtime is {runtime}" in error_of(raw, copy)


def test_a_disk_that_users_share_may_name_the_user(
    raw: dict[str, Any], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users of one node cannot share a folder of caches or containers."""
    monkeypatch.setenv("LOGNAME", "me")
    file = copy / "config/platforms/hops.yaml"
    paths = {**yaml.safe_load(file.read_text())["paths"], "scratch": "/tmp/$USER"}
    podman = {"storage": "/local/$USER/c", "options": ["--cgroups=disabled"]}
    edit(file, paths=paths, podman=podman, modules=["podman/5"])
    hops = load_config(raw, copy).platforms["hops"]
    assert (hops.scratch_dir, hops.container.storage) == ("/tmp/me", "/local/me/c")
    assert (hops.container.options, hops.modules) == (("--cgroups=disabled",), ("podman/5",))


def test_a_storage_that_podman_would_refuse_is_told_before_any_job(raw: dict[str, Any], copy: Path) -> None:
    """Podman takes no --runroot of more than 50 characters."""
    edit(copy / "config/platforms/hops.yaml", podman={"storage": "/local/" + "x" * 39})
    load_config(raw, copy)
    edit(copy / "config/platforms/hops.yaml", podman={"storage": "/local/" + "x" * 40})
    assert "has 47 characters, and Podman takes 46 at most" in error_of(raw, copy)


@pytest.mark.parametrize(
    ("key", "value"), [("modules", ["-x"]), ("modules", ["a b"]), ("podman", {"options": ["image"]})]
)
def test_words_that_would_become_other_words_are_refused(raw: dict[str, Any], copy: Path, key: str, value: Any) -> None:
    """A module that is an option, or an option that is none, would change what the command means."""
    edit(copy / "config/platforms/hops.yaml", **{key: value})
    assert f"hops.yaml: {key}" in error_of(raw, copy)
