"""Staging on Kubernetes: models and images stay where pods take them from, and the receipts say what that is."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from berth import s3
from berth.errors import BerthError
from berth.fsio import write_json
from berth.references import Reference
from berth.store import manifest_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.image_request import ImageRequest


def note_model(*, store: Mapping[str, Any], prefix: str, dest: str, pushed: Path, receipt: Path) -> dict[str, Any]:
    """Write the receipt of a model that pods bring onto their volume; `dest` is its folder in them.

    Nothing is moved. The manifest in the store must still be the one of the receipt `pushed`; the Job of each release
    compares every file with it.

    Raises:
        BerthError: the store does not answer, or holds another model.
    """
    place = s3.Store(store["bucket"], store["endpoint_url"], store["region"], store["addressing_style"])
    data, mode = s3.read_object(place, manifest_key(prefix))
    told = json.loads(pushed.read_text())
    digest = hashlib.sha256(data).hexdigest()
    if digest != told["manifest"]["sha256"]:
        raise BerthError(
            f"{place}: {manifest_key(prefix)} is no longer what was pushed: the store has another revision of this "
            f"model. Delete {pushed}, so that it is pushed again."
        )
    value = {
        **{key: told[key] for key in ("schema", "endpoint", "bucket", "prefix", "source", "manifest", "total_bytes")},
        "action": "stage",
        "verified_by": "the download Job of each release, file by file, before its server starts",
        "dest": dest,
        "checksum_mode": mode,
    }
    write_json(receipt, value)
    return value


def note_image(request: ImageRequest, receipt: Path, mirrored: Path | None) -> dict[str, Any]:
    """Write the receipt of an image that nodes pull themselves; its digest is "" where only a pod will tell it."""
    place, digest, index = Reference.parse(request.reference), request.digest, ""
    if request.site is not None:
        place = place.moved_to(request.site["host"], request.site["prefix"])
    if mirrored is not None:
        told = json.loads(mirrored.read_text())
        digest, index = told["digest"], told["index_digest"]
    value = {
        "schema": 1,
        "kind": "container",
        "runtime": "kubernetes",
        "reference": request.reference,
        "digest": digest,
        "index_digest": index,
        "pulled_from": place.at(digest) if digest else str(place),
        "path": "",
        "archive": "",
        "sha256": None,
        "size_bytes": None,
        "platform": "linux/amd64",
    }
    write_json(receipt, value)
    return value
