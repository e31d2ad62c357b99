"""Files that are whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# How much of a file is read, hashed and written at a time. 1 MiB and more has left a core's cache before it is written:
# a copy with its SHA-256 took 1.7 times as long by it, a download 1.2 times.
CHUNK_BYTES = 256 * 1024


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable; a file system that cannot do so is left as it is."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def fsync_file(path: Path) -> None:
    """Make what another program wrote into a file durable.

    Raises:
        OSError: as the file system says.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """An open binary file that becomes `path` when the block ends, and is removed when the block raises.

    Parent directories are made. `mode` is the file's permission from its first byte on.

    Raises:
        OSError: as the file system says (no space, no permission); `path` is then as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a whole file or nothing."""
    with atomic_file(path, mode=mode) as handle:
        handle.write(data)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a whole UTF-8 file or nothing."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o644, indent: int | None = 2) -> None:
    """Write a whole JSON file or nothing: keys in the order given, one newline at the end.

    Without `indent` it is one line, which takes a third of the time: for what has thousands of entries.
    """
    write_text(path, json_text(value, indent=indent), mode=mode)


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """The text that write_json writes."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_json(value: Any) -> str:
    """The same text for equal values: keys sorted, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in lower-case hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in lower-case hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
