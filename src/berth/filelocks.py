"""Locks between processes, held on a file and let go when the holder ends, whatever ended it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import filelock

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, *, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock file `path` for the block, after waiting for whoever holds it now.

    The file stays when the lock is let go: removing it would let two processes lock two files of one name.

    Args:
        path: the lock file; its directory is made.
        purpose: what the holder does ("staging of DIR"), for the log and the error.
        timeout_s: seconds to wait; negative waits for as long as it takes.

    Raises:
        BerthError: the time is over, or the file system cannot lock or write here.
    """
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("Another process holds %s (%s); waiting for it", path, purpose)
            lock.acquire(timeout=timeout_s)
    except filelock.Timeout:
        raise BerthError(
            f"{path}: another process still holds this lock ({purpose}) after {timeout_s:g} s. Wait for it to end, or "
            f"end it; the lock then frees itself. `fuser {path}` names the holder."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise BerthError(
            f"{path}: cannot lock this file ({error}). Choose a directory that you may write on a file system with "
            "file locks (Lustre needs the mount option flock)."
        ) from error
    try:
        yield
    finally:
        lock.release()
