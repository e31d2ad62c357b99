"""Is there room? Asked before something large is written."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from pathlib import Path

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def human_bytes(size_bytes: int) -> str:
    """A size for people, in powers of 1000: `812.4 GB`."""
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 999.95 or unit == _UNITS[-1]:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError  # The last unit always returns.


def free_bytes(path: Path) -> int:
    """What this user may still write at `path`, which need not exist yet.

    Quotas that the file system does not report are not seen; they show up as a full disk later.
    """
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def require_space(path: Path, needed_bytes: int, what: str) -> None:
    """Do nothing if `needed_bytes` fit at `path`.

    Raises:
        BerthError: names what needs the room, how much is missing, and where.
    """
    free = free_bytes(path)
    if needed_bytes > free:
        raise BerthError(
            f"{what} needs {human_bytes(needed_bytes)} at {path}, and {human_bytes(free)} are free: "
            f"free {human_bytes(needed_bytes - free)} there, or configure a directory on a larger file system."
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, says that the disk or the quota is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def full_disk_error(path: Path, what: str) -> BerthError:
    """The error for a disk that filled up while `what` was being written at `path`."""
    return BerthError(
        f"The disk (or the quota) at {path} became full while {what} was written; {human_bytes(free_bytes(path))} are "
        "free now. Free some room or configure a directory on a larger file system, then run again: "
        "what is already whole is kept."
    )
