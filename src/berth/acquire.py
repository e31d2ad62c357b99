"""Models and datasets from where their configuration says: the hub, or a seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.dataset import fetch_sharegpt, generate_sharegpt, write_random
from berth.fsio import write_bytes
from berth.jsonl import copy_jsonl
from berth.model import download_model
from berth.staging import staged_manifest
from berth.tinymodel import generate_model

if TYPE_CHECKING:
    from berth.manifest import Manifest


def acquire_model(model: dict[str, Any], dest: str, manifest: str) -> Manifest:
    """Download or generate a model (the fields of config.Model) into `dest`; `manifest` is written last.

    Another copy of the manifest stays beside `dest`: Snakemake removes the output of a job before it runs it again, and
    without any manifest the files that are there would count as somebody else's.
    """
    kept = staged_manifest(Path(dest))
    if not kept.exists() and Path(manifest).exists():
        write_bytes(kept, Path(manifest).read_bytes())
    made = _make_model(model, Path(dest), kept)
    write_bytes(Path(manifest), kept.read_bytes())
    return made


def _make_model(model: dict[str, Any], dest: Path, manifest: Path) -> Manifest:
    if model["source"] == "generate":
        return generate_model(
            dest=dest,
            manifest_path=manifest,
            seed=model["seed"],
            vocab_size=model["vocab_size"],
            hidden_size=model["hidden_size"],
            layers=model["layers"],
            name=model["repo"],
        )
    return download_model(
        repo=model["repo"],
        revision=model["revision"],
        dest=dest,
        manifest_path=manifest,
        allow_patterns=model["allow_patterns"],
        ignore_patterns=model["ignore_patterns"],
    )


def acquire_dataset(dataset: dict[str, Any], dest: str, receipt: str) -> None:
    """Fetch, generate or copy a dataset (config.Dataset.of_rules) into `dest`; its receipt is written last."""
    if dataset["source"] == "random":
        lengths = {key: dataset[key] for key in ("input_tokens", "output_tokens")}
        write_random(Path(dest), Path(receipt), lengths)
        return
    if dataset["source"] == "jsonl":
        copy_jsonl(
            Path(dataset["path"]),
            Path(dest),
            Path(receipt),
            sha256=dataset["sha256"],
            output_tokens=dataset["output_tokens"],
        )
        return
    if dataset["source"] == "generate":
        generate_sharegpt(
            dest=Path(dest),
            receipt_path=Path(receipt),
            count=dataset["count"],
            seed=dataset["seed"],
            scale=dataset["scale"],
        )
        return
    fetch_sharegpt(
        repo=dataset["repo"],
        filename=dataset["filename"],
        revision=dataset["revision"],
        sha256=dataset["sha256"],
        dest=Path(dest),
        receipt_path=Path(receipt),
    )
