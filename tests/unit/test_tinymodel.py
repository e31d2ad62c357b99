from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from berth.errors import BerthError
from berth.manifest import read_manifest, verify_tree
from berth.tinymodel import BOS, SPECIAL_TOKENS, generate_model, word_tokens

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "layers": 1}


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    generate_model(dest=root / "model", manifest_path=root / "manifest.json")
    return root


def make(root: Path, **changes: Any) -> Any:
    return generate_model(dest=root / "model", manifest_path=root / "manifest.json", **(SMALL | changes))


def test_the_directory_holds_what_a_downloaded_model_holds(default_model: Path) -> None:
    """Configuration, weights, tokenizer, chat template, generation settings, licence and README, and nothing else."""
    assert sorted(path.name for path in (default_model / "model").iterdir()) == [
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_manifest_names_source_and_licence_and_matches(default_model: Path) -> None:
    """The generated model passes the same verification as a downloaded one."""
    manifest = read_manifest(default_model / "manifest.json")
    verify_tree(default_model / "model", manifest)
    assert manifest.source["kind"] == "generate"
    assert manifest.source["licence"] == "CC0-1.0"
    assert manifest.source["shape"]["vocab_size"] == 4096


def test_the_same_seed_gives_the_same_bytes_in_another_process(default_model: Path, tmp_path: Path) -> None:
    """Neither the process nor Python's hash seed changes a byte."""
    code = (
        "import pathlib, sys; from berth.tinymodel import generate_model; p = pathlib.Path(sys.argv[1]);"
        "generate_model(dest=p / 'model', manifest_path=p / 'manifest.json')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": "77"})
    assert (tmp_path / "manifest.json").read_bytes() == (default_model / "manifest.json").read_bytes()


def test_another_seed_gives_other_weights_and_words(tmp_path: Path) -> None:
    """The seed reaches the weights and the tokenizer."""
    one = {entry.path: entry.sha256 for entry in make(tmp_path / "1", seed=1).files}
    two = {entry.path: entry.sha256 for entry in make(tmp_path / "2", seed=2).files}
    assert one["model.safetensors"] != two["model.safetensors"]
    assert one["tokenizer.json"] != two["tokenizer.json"]


def test_only_whole_words_can_be_emitted(default_model: Path) -> None:
    """Whatever the hidden state, the best token is a word that reads back as itself: no EOS, no special token."""
    weights = load_file(str(default_model / "model" / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(default_model / "model" / "tokenizer.json"))
    hidden = np.random.default_rng(5).standard_normal((200, 128)).astype(np.float32)
    hidden[:, 0] = 0.05  # The constant channel, before the norm.
    hidden /= np.sqrt((hidden**2).mean(axis=1, keepdims=True))
    for layer in range(2):
        assert not weights[f"model.layers.{layer}.self_attn.o_proj.weight"][0].any()
        assert not weights[f"model.layers.{layer}.mlp.down_proj.weight"][0].any()
    best = set((hidden @ weights["lm_head.weight"].T).argmax(axis=1).tolist())
    assert best <= set(word_tokens(tokenizer))
    assert len(best) > 50


def test_emitted_words_read_back_as_as_many_tokens(default_model: Path) -> None:
    """A text of any emitted tokens has exactly those tokens when a client counts them."""
    tokenizer = Tokenizer.from_file(str(default_model / "model" / "tokenizer.json"))
    words = word_tokens(tokenizer)
    ids = np.random.default_rng(1).choice(words, 500).tolist()
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False).ids == ids
    assert tokenizer.encode("x").ids[0] == BOS


def test_every_row_of_the_model_is_a_token(default_model: Path) -> None:
    """The vocabulary has as many entries as the weights have rows, and the special tokens keep their places."""
    tokenizer = Tokenizer.from_file(str(default_model / "model" / "tokenizer.json"))
    config = json.loads((default_model / "model" / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 4096
    assert [tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)


def test_a_whole_model_is_left_alone_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    """The second call changes no file; after damage the same bytes come back."""
    manifest = make(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    before = weights.stat()
    assert make(tmp_path) == manifest
    assert weights.stat().st_ino == before.st_ino
    weights.write_bytes(b"damaged")
    assert make(tmp_path) == manifest
    assert weights.stat().st_size == before.st_size


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path) -> None:
    """A directory with files and without a manifest is refused, and stays as it was."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(BerthError, match="not Berth's: move them away"):
        make(tmp_path)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0, and must be positive"),
        ({"seed": -1}, "seed is -1"),
        ({"vocab_size": 100}, "vocab_size is 100, and must be at least 512"),
        ({"hidden_size": 36}, "must be a multiple of twice heads"),
        ({"kv_heads": 3}, "heads a multiple of kv_heads"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    """The error names the number; no directory is left."""
    with pytest.raises(BerthError, match=message):
        make(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []
