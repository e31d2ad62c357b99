"""The files of a lease in a directory: one per generation, made by an exclusive hard link."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.fsio import fsync_dir, write_json
from berth.holder import Holder

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"lease\.(\d{6,})\.json")
_TEMPORARY = ".lease-*.tmp"
_OLD_TEMPORARY_S = 3600.0


def path(directory: Path, generation: int) -> Path:
    """The file of a generation."""
    return directory / f"lease.{generation:06d}.json"


def generations(directory: Path) -> list[int]:
    """The generations that have a file."""
    return [int(match[1]) for entry in os.scandir(directory) if (match := _NAME.fullmatch(entry.name))]


def highest(directory: Path) -> int:
    """The generation that counts; 0 when the lease was never taken."""
    return max(generations(directory), default=0)


def read(directory: Path, generation: int) -> tuple[Holder | None, int]:
    """(the holder, its heartbeat in any unit); (None, 0) for a file that is gone."""
    file = path(directory, generation)
    try:
        # Opening it makes NFS ask the server, where a mere stat may answer from the cache.
        with file.open("rb") as handle:
            beat = os.fstat(handle.fileno()).st_mtime_ns
            text = handle.read()
    except FileNotFoundError:
        return None, 0
    try:
        return Holder.from_json(json.loads(text)), beat
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BerthError(
            f"{file} is no lease of this version of Berth ({error!r}). If no sweep of this run is going on, delete it."
        ) from error


def link(directory: Path, generation: int, holder: Holder) -> bool:
    """Make the file of a generation; False when another sweep has it, or a higher one."""
    file = path(directory, generation)
    temporary = directory / f".lease-{uuid.uuid4().hex}.tmp"
    write_json(temporary, holder.as_json())
    try:
        try:
            os.link(temporary, file)
        except OSError:
            # An answer of NFS may get lost and the repeated request fail: the number of links tells what happened.
            if _links(temporary) != 2:
                if file.exists():
                    return False
                raise
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(directory)
    # Who looked long ago links a low number that was taken, released and removed meanwhile.
    if highest(directory) == generation:
        return True
    file.unlink(missing_ok=True)
    return False


def _links(file: Path) -> int:
    with file.open("rb") as handle:
        return os.fstat(handle.fileno()).st_nlink


def clean(directory: Path, generation: int) -> None:
    """Remove lower generations, and temporary files of sweeps that were killed while they wrote them."""
    for lower in generations(directory):
        if lower < generation:
            path(directory, lower).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        now = path(directory, generation).stat().st_mtime
        for temporary in directory.glob(_TEMPORARY):
            if now - temporary.stat().st_mtime > _OLD_TEMPORARY_S:
                temporary.unlink()
