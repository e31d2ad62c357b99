"""An image as a folder on the shared file system: manifest and blobs as the registry has them, for Podman to load.

It is the folder of `skopeo copy ... dir:`, which keeps the manifest's bytes and so the digest; an archive in one file
(docker-archive, oci-archive) would get another one.
"""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

from berth import registry
from berth.disk import require_space
from berth.errors import BerthError
from berth.fsio import fsync_dir, fsync_file, sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.registry import Access, Found

logger = logging.getLogger(__name__)

RECEIPT = "berth.json"


def whole_archive(folder: Path, *, checksums: bool) -> dict[str, Any] | None:
    """The receipt of an image whose blobs are all there with their sizes or, if asked for, their digests; else None."""
    try:
        receipt: dict[str, Any] = json.loads((folder / RECEIPT).read_text())
        manifest = json.loads((folder / "manifest.json").read_text())
        blobs = [manifest["config"], *manifest["layers"]]
        files = {folder / each["digest"].partition(":")[2]: each["size"] for each in blobs}
        same = all(file.stat().st_size == size for file, size in files.items())
        same = same and (not checksums or all(sha256_file(file) == file.name for file in files))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if same else None


def make_archive(folder: Path, place: str, found: Found, access: Access, receipt: Mapping[str, Any]) -> None:
    """Copy REGISTRY/NAME@DIGEST into a folder that appears at once, with its receipt in it.

    Call it with the lock on the folder held.

    Raises:
        BerthError: no room, skopeo is not there, or what the registry answered.
    """
    require_space(folder.parent, found.size_bytes, f"The image {place}")
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        registry.copy(place, f"dir:{partial}", access, None)
        for file in sorted(partial.iterdir()):
            fsync_file(file)
        write_json(partial / RECEIPT, receipt)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        fsync_dir(folder.parent)
    except OSError as error:
        where = error.filename or folder
        raise BerthError(f"{where}: {error.strerror or error}. Staging {folder} writes there.") from error
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
