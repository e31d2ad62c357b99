"""A model directory that appears at once: files are gathered in `DEST.partial`, which is then renamed.

Beside each of the two directories lies its manifest, `DEST.manifest.json`; they hold the model's files alone.
`.DEST.unsynced` names the start of the kernel (boot id) under which files were written without waiting for the disk.
After another start, by a power failure perhaps, they may be less than they were: their checksums are compared once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.fsio import fsync_dir, write_bytes, write_text
from berth.manifest import read_manifest, sha256_files, tree_problems
from berth.storeplan import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from berth.manifest import FileEntry, Manifest

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Kernels write what changed to the disk after half a minute; this is long after.
_SYNCED_AFTER_S = 3600.0


def staged_manifest(dest: Path) -> Path:
    """Where the manifest of a staged model lies: beside the directory."""
    return dest.with_name(f"{dest.name}.manifest.json")


def partial_of(dest: Path) -> Path:
    """Where files are gathered before `dest` appears."""
    return dest.with_name(f"{dest.name}.partial")


def is_staged(dest: Path, manifest: Manifest, manifest_bytes: bytes, *, verify_checksums: bool) -> bool:
    """Whether `dest` is this model, whole.

    Raises:
        BerthError: `dest` is something that Berth did not stage.
    """
    if not dest.exists():
        return False
    known = staged_manifest(dest)
    if known.exists() and known.read_bytes() == manifest_bytes:
        doubtful = not _kept_by_this_kernel(dest)
        right = not tree_problems(dest, manifest, checksums=verify_checksums or doubtful)
        if right and doubtful:
            _marker(dest).unlink()
        return right
    # Without its manifest, or with an older one beside that of a partial directory that is gone: killed just before the
    # manifest was written, or foreign. Where an older one is all there is, reading everything would tell nothing new.
    partial = partial_of(dest)
    unfinished = not known.exists() or (staged_manifest(partial).exists() and not partial.exists())
    if unfinished and dest.is_dir() and not tree_problems(dest, manifest):
        write_bytes(known, manifest_bytes)
        return True
    if not known.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise BerthError(
            f"{dest} exists, is not this model, and was not staged by Berth, so it is left alone. Move it away, or "
            "choose another directory for models."
        )
    return False


def resume(dest: Path, manifest: Manifest, manifest_bytes: bytes, *, durable: bool = True) -> Path:
    """The partial directory, with no file in it that is not whole and verified, but for those that are on their way.

    What `dest` has already, under whatever name, is linked and not fetched. `durable` says that the files to come will
    be on the disk before they get their names.
    """
    partial = partial_of(dest)
    partial.mkdir(parents=True, exist_ok=True)
    # A file has its final name there only when it was verified, by the manifest that lies beside the directory.
    known = staged_manifest(partial)
    trusted = known.exists() and known.read_bytes() == manifest_bytes and _kept_by_this_kernel(dest)
    on_their_way = {name for entry in manifest.files for name in _unfinished(entry.path)}
    for problem in tree_problems(partial, manifest, checksums=not trusted):
        if problem.path not in on_their_way:
            (partial / problem.path).unlink(missing_ok=True)
    if not durable:
        write_text(_marker(dest), _boot_id())
    write_bytes(known, manifest_bytes)
    if dest.is_dir():
        for entry, found in _kept(dest, [e for e in manifest.files if not (partial / e.path).exists()]):
            target = partial / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            # Where the file system has no hard links the file is downloaded again.
            with contextlib.suppress(OSError):
                os.link(dest / found, target)
    return partial


def would_move(dest: Path, manifest: Manifest) -> dict[str, Any]:
    """What a stage would fetch: action "dry_run", moved, skipped {objects, bytes}, files. Sizes are compared alone."""
    have = set()
    for folder in (dest, partial_of(dest)):
        known = staged_manifest(folder)
        for entry in read_manifest(known).files if known.exists() else ():
            with contextlib.suppress(OSError):
                if (folder / entry.path).stat().st_size == entry.size_bytes:
                    have.add(entry.sha256)
    moved = [entry for entry in manifest.files if entry.sha256 not in have]
    return {
        "action": "dry_run",
        "moved": counted([entry.size_bytes for entry in moved]),
        "skipped": counted([entry.size_bytes for entry in manifest.files if entry.sha256 in have]),
        "files": [entry.path for entry in moved],
    }


def _unfinished(path: str) -> tuple[str, str]:
    """The names of a file that is on its way, and of the map of its parts (see downloads.py)."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}.part", f"{folder}{slash}.{name}.part.map"


def _kept(dest: Path, wanted: Sequence[FileEntry]) -> Iterator[tuple[FileEntry, str]]:
    """Those of `wanted` that `dest` has, each with the path there, which may be the one that it had before.

    Every file that may be one of them is read, because a byte may have changed since it was staged; a file that the
    manifest of `dest` tells is another one is not.
    """
    known = staged_manifest(dest)
    had: tuple[FileEntry, ...] = ()
    if known.exists():
        with contextlib.suppress(BerthError):
            had = read_manifest(known).files
    told = {entry.path: entry for entry in had}
    by_content: dict[str, list[str]] = {}
    for entry in had:
        by_content.setdefault(entry.sha256, []).append(entry.path)

    def sized(path: str) -> int | None:
        with contextlib.suppress(OSError):
            return (dest / path).stat().st_size
        return None

    candidates = {}
    for entry in wanted:
        paths = [path for path in by_content.get(entry.sha256, ()) if sized(path) == entry.size_bytes]
        # Not as its manifest says: somebody has changed it, perhaps into what is wanted.
        changed = entry.path not in told or told[entry.path].size_bytes != entry.size_bytes
        if changed and sized(entry.path) == entry.size_bytes:
            paths.insert(0, entry.path)
        candidates[entry] = paths
    found = sha256_files(dest, list(dict.fromkeys(path for paths in candidates.values() for path in paths)))
    for entry, paths in candidates.items():
        right = next((path for path in paths if found[path] == entry.sha256), None)
        if right is not None:
            yield entry, right


def _marker(dest: Path) -> Path:
    return dest.with_name(f".{dest.name}.unsynced")


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return "unknown"


def _kept_by_this_kernel(dest: Path) -> bool:
    """Whether nothing can have been lost of what was written without waiting for the disk."""
    marker = _marker(dest)
    try:
        if marker.read_text() != _boot_id():
            return False
        if time.time() - marker.stat().st_mtime > _SYNCED_AFTER_S:
            marker.unlink()
    except FileNotFoundError:
        return True
    return True


def appear(partial: Path, dest: Path, manifest_bytes: bytes) -> None:
    """Give the verified directory its final name."""
    for folder, _, _ in os.walk(partial):
        fsync_dir(Path(folder))
    old = dest.with_name(f".{dest.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if dest.exists():
        dest.rename(old)
    partial.rename(dest)
    fsync_dir(dest.parent)
    shutil.rmtree(old, ignore_errors=True)
    write_bytes(staged_manifest(dest), manifest_bytes)
    staged_manifest(partial).unlink(missing_ok=True)
