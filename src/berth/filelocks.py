"""Locks between processes, held on a file and let go when the holder ends, whatever ended it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_POLL_S = 0.2


@contextlib.contextmanager
def exclusive(path: Path, purpose: str, *, timeout_s: float | None = None) -> Iterator[int]:
    """Hold the lock file `path` for the block, after waiting for whoever holds it now.

    The file stays when the lock is let go: removing it would let two processes lock two files of one name.
    The block gets the lock's file descriptor: a child that inherits it (`pass_fds`) keeps the lock until it too has
    ended, which is why this is flock itself and not a library over it.

    Args:
        path: the lock file; its directory is made.
        purpose: what the holder does ("staging of DIR"), for the log and the error.
        timeout_s: seconds to wait; None waits for as long as it takes.

    Raises:
        BerthError: the time is over, or the file system cannot lock or write here.
    """
    with _opened(path) as fd:
        _acquire(fd, path, purpose, timeout_s)
        yield fd


@contextlib.contextmanager
def shared(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file `path` for the block together with others that share it; see exclusive().

    Raises:
        BerthError: the file system cannot lock or write here.
    """
    with _opened(path) as fd:
        _acquire(fd, path, purpose, None, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def unless_held(path: Path) -> Iterator[bool]:
    """True, with the lock held for the block, where nobody holds the lock file `path`; False, at once, elsewhere.

    Raises:
        BerthError: the file system cannot lock or write here.
    """
    with _opened(path) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _cannot_lock(path, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, purpose: str, timeout_s: float | None, how: int = fcntl.LOCK_EX) -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    told = False
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                logger.info("Another process holds %s (%s); waiting for it", path, purpose)
                told = True
        except OSError as error:
            raise _cannot_lock(path, error) from error
        else:
            return
        if deadline is not None and time.monotonic() >= deadline:
            raise BerthError(
                f"{path}: another process still holds this lock ({purpose}) after {timeout_s:g} s. Wait for it to end "
                f"or end it; the lock then frees itself. `fuser {path}` names the holder."
            )
        time.sleep(_POLL_S)


def _cannot_lock(path: Path, error: OSError) -> BerthError:
    return BerthError(
        f"{path}: cannot lock this file ({error.strerror or error}). Choose a directory that you may write, on a file "
        "system with file locks (Lustre needs the mount option flock)."
    )
