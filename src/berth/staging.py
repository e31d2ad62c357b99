"""A model directory that appears at once: files are gathered in `DEST.partial`, which is then renamed.

Beside each of the two directories lies its manifest, `DEST.manifest.json`; they hold the model's files alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.fsio import fsync_dir, write_bytes
from berth.manifest import tree_problems

if TYPE_CHECKING:
    from berth.manifest import Manifest


def staged_manifest(dest: Path) -> Path:
    """Where the manifest of a staged model lies: beside the directory."""
    return dest.with_name(f"{dest.name}.manifest.json")


def is_staged(dest: Path, manifest: Manifest, manifest_bytes: bytes, *, verify_checksums: bool) -> bool:
    """Whether `dest` is this model, whole.

    Raises:
        BerthError: `dest` is something that Berth did not stage.
    """
    if not dest.exists():
        return False
    known = staged_manifest(dest)
    if known.exists() and known.read_bytes() == manifest_bytes:
        return not tree_problems(dest, manifest, checksums=verify_checksums)
    # A directory without its manifest, or with an older one: killed just before the manifest was written, or foreign.
    if dest.is_dir() and not tree_problems(dest, manifest):
        write_bytes(known, manifest_bytes)
        return True
    if not known.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise BerthError(
            f"{dest} exists, is not this model, and was not staged by Berth, so it is left alone. Move it away, or "
            "choose another directory for models."
        )
    return False


def resume(dest: Path, manifest: Manifest, manifest_bytes: bytes) -> Path:
    """The partial directory, with no file in it that is not whole and verified."""
    partial = dest.with_name(f"{dest.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    # A file has its final name there only when it was verified, by the manifest that lies beside the directory.
    known = staged_manifest(partial)
    trusted = known.exists() and known.read_bytes() == manifest_bytes
    for problem in tree_problems(partial, manifest, checksums=not trusted):
        (partial / problem.path).unlink(missing_ok=True)
    write_bytes(known, manifest_bytes)
    if dest.is_dir():
        wrong = {problem.path for problem in tree_problems(dest, manifest)}
        for entry in manifest.files:
            target = partial / entry.path
            if entry.path not in wrong and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                # Where the file system has no hard links the file is downloaded again.
                with contextlib.suppress(OSError):
                    os.link(dest / entry.path, target)
    return partial


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
