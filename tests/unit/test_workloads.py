"""Datasets beside ShareGPT: random tokens of fixed lengths, and a user's own lines of JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.acquire import acquire_dataset
from berth.bench import bench_argv, settings_of
from berth.errors import BerthError
from berth.fsio import sha256_file
from berth.jsonl import read_lines
from berth.parse import load_config
from berth.recipes import load_recipe
from berth.spec import define

if TYPE_CHECKING:
    from berth.config import Config, Dataset

ROOT = Path(__file__).resolve().parents[2]
# The definitions of the shipped experiments before there were other workloads: their points must stay theirs.
SPECS = {
    "tiny-local": "88d19c8305",
    "scout-hops": "c6ad5ae05a",
    "scout-eldorado": "4d3ab1565c",
    "scout-w4a16-hops": "cfae7b22a4",
    "scout-w4a16-goodall": "0d5ee218d8",
    "llama31-405b-hops": "3a323bc853",
}
BENCHMARK = {"num_prompts": 8, "seed": 7, "request_rate": "inf", "temperature": 0, "ignore_eos": True}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    return tmp_path


def configured(root: Path, dataset: str, **changes: Any) -> Config:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["benchmarks"]["demo"] |= {"dataset": dataset, **changes}
    return load_config(raw, root)


def spec_of(config: Config, root: Path, deployment: str = "tiny-local") -> str:
    return define(config, config.deployments[deployment], config.benchmarks["demo"], root).id


def argv_of(dataset: Dataset, version: str = "0.32.0") -> list[str]:
    settings = settings_of(
        BENCHMARK,
        base_url="http://127.0.0.1:8000",
        served_model="tiny",
        tokenizer=Path("/models/tiny"),
        dataset_path=Path("/data") / dataset.file,
        client=load_recipe(ROOT / "config/recipes/vllm.yaml").client(version),
        dataset=dataset.identity,
    )
    return bench_argv(settings, 4, Path("/s/c4.json"))


def test_definitions_of_before_stay_what_they_were() -> None:
    """The shipped experiments have the specs that they had before this version: their points are not measured again."""
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()), ROOT)
    for experiment in config.experiments.values():
        for name in experiment.deployments:
            benchmark = config.benchmarks[experiment.benchmark]
            found = define(config, config.deployments[name], benchmark, ROOT, allow_unpinned=True)
            assert found.id == SPECS[name], name


def test_what_fetches_a_dataset_of_before_is_told_the_same() -> None:
    """The parameters of the rule have no key that the kind of dataset does not use: Snakemake fetches nothing again."""
    config = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()), ROOT)
    told = config.datasets["sharegpt-like"].of_rules
    assert set(told) == {
        *("name", "source", "description", "repo", "filename", "revision", "sha256", "count", "seed", "scale")
    }


def test_random_prompts_have_fixed_lengths(copy: Path) -> None:
    """The client draws them by lengths alone; the lengths are part of the spec, and answers do not end early."""
    config = configured(copy, "random-512-128")
    dataset = config.datasets["random-512-128"]
    argv = argv_of(dataset)
    assert "--dataset-path" not in argv
    assert argv[argv.index("--dataset-name") + 1] == "random"
    assert argv[argv.index("--random-input-len") + 1] == "512"
    assert argv[argv.index("--random-output-len") + 1] == "128"
    assert config.benchmarks["demo"].ignore_eos
    path = copy / "config/datasets/random-512-128.yaml"
    path.write_text(path.read_text().replace("512", "256"))
    assert spec_of(config, copy) != spec_of(configured(copy, "random-512-128"), copy)
    acquire_dataset(dataset.of_rules, str(copy / "d/random.json"), str(copy / "d/receipt.json"))
    receipt = json.loads((copy / "d/receipt.json").read_text())
    assert receipt["source"] == {"kind": "random", "input_tokens": 512, "output_tokens": 128}
    assert receipt["sha256"] == sha256_file(copy / "d/random.json")


def test_a_users_own_lines_are_copied_as_the_client_reads_them(copy: Path) -> None:
    """Each line of the copy has prompt and length alone, so that pandas in the client has nothing to guess."""
    config = configured(copy, "own-prompts")
    dataset = config.datasets["own-prompts"]
    source = copy / dataset.path
    assert dataset.sha256 == sha256_file(source)
    argv = argv_of(dataset)
    assert argv[argv.index("--dataset-name") + 1] == "custom"
    assert argv[argv.index("--dataset-path") + 1] == "/data/prompts.jsonl"
    assert argv[argv.index("--custom-output-len") + 1] == "-1"
    assert "--skip-chat-template" in argv
    told = dataset.of_rules | {"path": str(source)}
    acquire_dataset(told, str(copy / "d/prompts.jsonl"), str(copy / "d/receipt.json"))
    lines = [json.loads(line) for line in (copy / "d/prompts.jsonl").read_text().splitlines()]
    assert all(set(line) == {"prompt", "output_tokens"} for line in lines)
    assert lines[1]["output_tokens"] == 64
    assert json.loads((copy / "d/receipt.json").read_text())["source"]["lines"] == len(lines) == 8


def test_an_edited_file_is_another_dataset(copy: Path) -> None:
    """The SHA-256 of the file is part of the spec: another line is another measurement."""
    before = spec_of(configured(copy, "own-prompts"), copy)
    with (copy / "config/datasets/own-prompts.jsonl").open("a") as file:
        file.write('{"prompt": "One more."}\n')
    assert spec_of(configured(copy, "own-prompts"), copy) != before


def test_a_file_that_is_not_there_is_told_before_anything_starts(copy: Path) -> None:
    """Without the file there is no definition; with its SHA-256 there is one, and points can be drawn."""
    digest = sha256_file(copy / "config/datasets/own-prompts.jsonl")
    before = spec_of(configured(copy, "own-prompts"), copy)
    (copy / "config/datasets/own-prompts.jsonl").unlink()
    with pytest.raises(BerthError, match=r"own-prompts.yaml: path: .*own-prompts.jsonl cannot be read"):
        configured(copy, "own-prompts")
    with (copy / "config/datasets/own-prompts.yaml").open("a") as file:
        file.write(f"sha256: {digest}\n")
    assert spec_of(configured(copy, "own-prompts"), copy) == before


def test_a_client_with_one_length_for_all_lines_is_refused(copy: Path) -> None:
    """The client of 0.9.1 would give every line the same length: that is no measurement of this file."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["benchmarks"]["sharegpt-1000"]["dataset"] = "own-prompts"
    config = load_config(raw, copy)
    with pytest.raises(BerthError, match=r"the benchmark client of vllm 0\.9\.1 cannot send a file with an output"):
        define(config, config.deployments["scout-hops"], config.benchmarks["sharegpt-1000"], copy, allow_unpinned=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a"}\nno\n', r"x.jsonl:2: not JSON"),
        ('{"prompt": "a"}\n["a"]\n', r'x.jsonl:2: no "prompt" with a text'),
        ('{"text": "a"}\n', r'x.jsonl:1: no "prompt" with a text'),
        ('{"prompt": 7}\n', r'x.jsonl:1: no "prompt" with a text'),
        ('{"prompt": "a", "output_tokens": "9"}\n', r"x.jsonl:1: output_tokens: '9' is not allowed"),
        ('{"prompt": "a", "output_tokens": 0}\n', r"x.jsonl:1: output_tokens: 0 is not allowed"),
        ("\n\n", r"x.jsonl: no line"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(tmp_path: Path, text: str, told: str) -> None:
    """Each line is checked: the error says file, line, and what a line looks like."""
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(BerthError, match=told):
        read_lines(path, sha256_file(path), 256)
    with pytest.raises(BerthError, match="it is another file"):
        read_lines(path, "0" * 64, 256)


def test_keys_of_another_kind_are_refused(copy: Path) -> None:
    """A random dataset has no file, and a file of one's own no seed."""
    path = copy / "config/datasets/random-512-128.yaml"
    path.write_text(path.read_text() + "path: a.jsonl\n")
    with pytest.raises(BerthError, match=r"random-512-128.yaml"):
        configured(copy, "random-512-128")


def test_the_examples_load() -> None:
    """Each benchmark of config/examples is valid, beside the shipped configuration."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    examples = yaml.safe_load((ROOT / "config/examples/workloads.yaml").read_text())
    for key in ("benchmarks", "experiments"):
        raw[key] |= examples[key]
    raw["select"] = examples["select"]
    assert set(load_config(raw, ROOT).select) == set(examples["experiments"])
