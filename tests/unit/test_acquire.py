"""A model is made again when its definition changes, also without its manifest, and never over other files."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from berth.acquire import acquire_model
from berth.config import Model
from berth.errors import BerthError
from berth.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

MODEL = Model(name="tiny", source="generate", repo="berth/tiny-llama", seed=0)


def acquire(folder: Path, model: Model) -> None:
    acquire_model(asdict(model), str(folder / "files"), str(folder / "manifest.json"))


def test_removed_manifest_and_another_seed_make_another_model(tmp_path: Path) -> None:
    """Snakemake removes the manifest before it runs the rule again; the model of the new seed replaces the old one."""
    acquire(tmp_path, MODEL)
    old = (tmp_path / "files/model.safetensors").read_bytes()
    (tmp_path / "manifest.json").unlink()
    acquire(tmp_path, replace(MODEL, seed=1))
    assert read_manifest(tmp_path / "manifest.json").source["shape"]["seed"] == 1
    assert (tmp_path / "files/model.safetensors").read_bytes() != old


def test_removed_manifest_of_the_same_model_comes_back(tmp_path: Path) -> None:
    """The same definition gives the same manifest again and leaves the files alone."""
    acquire(tmp_path, MODEL)
    before = (tmp_path / "manifest.json").read_bytes()
    stamp = (tmp_path / "files/model.safetensors").stat().st_mtime_ns
    (tmp_path / "manifest.json").unlink()
    acquire(tmp_path, MODEL)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert (tmp_path / "files/model.safetensors").stat().st_mtime_ns == stamp


def test_files_of_somebody_else_are_refused(tmp_path: Path) -> None:
    """Files that no manifest of Berth describes are left as they are."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/config.json").write_text("{}")
    with pytest.raises(BerthError, match="not Berth's"):
        acquire(tmp_path, MODEL)
    assert (tmp_path / "files/config.json").read_text() == "{}"
    assert not (tmp_path / "manifest.json").exists()
