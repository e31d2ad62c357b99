"""A model directory from one file system to another: every file verified on its way, whole or absent."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import filelocks, staging
from berth.disk import require_space
from berth.errors import BerthError
from berth.fsio import CHUNK_BYTES, write_json
from berth.manifest import read_manifest

if TYPE_CHECKING:
    from berth.manifest import FileEntry, Manifest

# A parallel file system gives one reader a part of its speed, and one core hashes slower than an NVMe writes.
_AT_ONCE = 4


def copy_model(source: Path, dest: Path, manifest: Manifest, manifest_bytes: bytes) -> int:
    """Copy the files of a manifest; `dest` appears at once when all are right. Returns the bytes that were copied.

    Files go to DEST.partial first, where an interrupted copy goes on. Call it with a lock on `dest` held.

    Raises:
        BerthError: a file of the source is missing or not what the manifest says.
        OSError: the disk.
    """
    partial = staging.resume(dest, manifest, manifest_bytes, durable=True)
    missing = [entry for entry in manifest.files if not (partial / entry.path).exists()]
    stop = threading.Event()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # The largest first, so that none is left alone at the end.
        todo = sorted(missing, key=lambda entry: -entry.size_bytes)
        running = [pool.submit(_copy, source, partial, entry, stop) for entry in todo]
        try:
            for each in running:
                each.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    staging.appear(partial, dest, manifest_bytes)
    return sum(entry.size_bytes for entry in missing)


def stage_unpacked(unpacked: dict[str, Any], *, dest: Path, receipt_path: Path) -> dict[str, Any]:
    """Stage a model that a bundle brought: as store.stage_model does from a store, with a receipt of the same form.

    `unpacked` is the bundle's receipt: `files` is the folder with the files, `manifest` the key of the manifest beside.

    Raises:
        BerthError: a file that was unpacked has changed, no room, or something else is at `dest`.
    """
    started = time.monotonic()
    dest = dest.absolute()
    manifest_path = Path(unpacked["manifest"]["key"])
    manifest, manifest_bytes = read_manifest(manifest_path), manifest_path.read_bytes()
    copied_bytes = 0
    with filelocks.exclusive(dest.with_name(f".{dest.name}.lock"), f"staging of {dest}"):
        if not staging.is_staged(dest, manifest, manifest_bytes, verify_checksums=False):
            require_space(dest.parent, manifest.total_bytes, f"Staging {dest}")
            copied_bytes = copy_model(Path(unpacked["files"]), dest, manifest, manifest_bytes)
    receipt = {
        "schema": 1,
        "action": "stage",
        "source": manifest.source,
        "manifest": {**unpacked["manifest"], "sha256": hashlib.sha256(manifest_bytes).hexdigest()},
        "total_bytes": manifest.total_bytes,
        "dest": str(dest),
        "files": [{"path": e.path, "size": e.size_bytes, "sha256": e.sha256} for e in manifest.files],
        "moved": {"bytes": copied_bytes},
        "duration_s": round(time.monotonic() - started, 3),
    }
    write_json(receipt_path, receipt)
    return receipt


def _copy(source: Path, folder: Path, entry: FileEntry, stop: threading.Event) -> None:
    path = folder / entry.path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with (source / entry.path).open("rb") as reader, temporary.open("wb") as writer:
            while (chunk := reader.read(CHUNK_BYTES)) and not stop.is_set():
                writer.write(chunk)
                digest.update(chunk)
                size_bytes += len(chunk)
            writer.flush()
            os.fsync(writer.fileno())
    except FileNotFoundError:
        raise _damaged(source, entry, "is missing") from None
    if stop.is_set():
        return
    found = digest.hexdigest()
    if (size_bytes, found) != (entry.size_bytes, entry.sha256):
        temporary.unlink()
        raise _damaged(
            source,
            entry,
            f"has {size_bytes} bytes and SHA-256 {found} instead of {entry.size_bytes} and {entry.sha256}",
        )
    temporary.replace(path)


def _damaged(source: Path, entry: FileEntry, problem: str) -> BerthError:
    return BerthError(
        f"{source / entry.path} {problem}, so it changed after it was staged. Delete it and the receipt of its "
        "staging, so that it is staged again; `custody` says what else has changed."
    )
