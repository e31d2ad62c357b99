"""What the record of a point says of the model that was served and the dataset that was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.fsio import sha256_file
from berth.staging import staged_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def custody_of(
    model_receipt: str, model: Mapping[str, Any], dataset: Mapping[str, Any], model_dir: Path
) -> dict[str, Any]:
    """The `custody` of the records of a run, from its receipts and from the manifest beside the model's directory.

    Raises:
        BerthError: the directory holds another model than its receipt says.
    """
    staged = model.get("manifest", {}).get("sha256")
    beside = staged_manifest(model_dir)
    found = sha256_file(beside) if beside.exists() else staged
    if staged and found != staged:
        raise BerthError(
            f"{model_dir} holds another model or revision than {model_receipt} says: the SHA-256 of {beside} "
            f"is {found} and not {staged}. Somebody staged into the same folder since. Delete the receipt, so that the "
            "model is staged again, and give every revision that is served at a time a folder of its own."
        )
    return {"model": {"manifest_sha256": found, "copy": "shared"}, "dataset": {"sha256": dataset.get("sha256")}}


def same_source(identity: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    """Whether a manifest's source is the model of a definition (config.Model.identity)."""
    if source.get("repo") != identity["repo"]:
        return False
    if "generated" in identity:
        shape = source.get("shape", {})
        return all(shape.get(key) == value for key, value in identity["generated"].items())
    return bool(source.get("revision") == identity["revision"])
