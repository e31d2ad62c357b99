"""Models and datasets from where their configuration says: the hub, or a seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.dataset import fetch_sharegpt, generate_sharegpt
from berth.model import download_model
from berth.tinymodel import generate_model

if TYPE_CHECKING:
    from berth.manifest import Manifest


def acquire_model(model: dict[str, Any], dest: str, manifest: str) -> Manifest:
    """Download or generate a model (the fields of config.Model) into `dest`; its manifest is written last."""
    if model["source"] == "generate":
        return generate_model(
            dest=Path(dest),
            manifest_path=Path(manifest),
            seed=model["seed"],
            vocab_size=model["vocab_size"],
            hidden_size=model["hidden_size"],
            layers=model["layers"],
            name=model["repo"],
        )
    return download_model(
        repo=model["repo"],
        revision=model["revision"],
        dest=Path(dest),
        manifest_path=Path(manifest),
        allow_patterns=model["allow_patterns"],
        ignore_patterns=model["ignore_patterns"],
    )


def acquire_dataset(dataset: dict[str, Any], dest: str, receipt: str) -> None:
    """Fetch or generate a dataset (the fields of config.Dataset) into `dest`; its receipt is written last."""
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
