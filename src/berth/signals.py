"""TERM, INT and HUP as one exception, and blocks that they cannot interrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_asked: int | None = None


class Terminated(BaseException):
    """The process was asked to end. It is no Exception, so that no `except Exception` keeps the work going."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"asked to end by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The exit code that shells give to a process ended by this signal."""
        return 128 + self.signum


@contextlib.contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    """Install a handler for the signals that are not ignored (nohup ignores HUP), and put the old ones back."""
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    changed = {signum: old for signum, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for signum in changed:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, old in changed.items():
            signal.signal(signum, old)


@contextlib.contextmanager
def terminate_as_exception() -> Iterator[None]:
    """Raise Terminated in the main thread at the first TERM, INT or HUP; later ones are ignored until the block ends.

    Call it in the main thread, around everything that must be cleaned up, and raise_if_asked() in what waits inside.
    """
    global _asked  # noqa: PLW0603 - a signal is for the whole process, as its handler is.
    before, _asked = _asked, None

    def handler(signum: int, _frame: object) -> None:
        global _asked  # noqa: PLW0603
        if _asked is None:
            _asked = signum
            raise Terminated(signum)

    try:
        with _handlers(handler):
            yield
    finally:
        _asked = before


def raise_if_asked() -> None:
    """Return unless the process was asked to end in this terminate_as_exception() block.

    The exception that the signal raised may be lost: Python drops what is raised in a finaliser, and an error of
    cleaning up takes its place. What was asked for must not be forgotten with it.

    Raises:
        Terminated: it was asked.
    """
    if _asked is not None:
        raise Terminated(_asked)


def announce() -> None:
    """Tell the shell of a batch step which process to end when the scheduler warns it: workflow/scripts/batch-step.sh.

    Call it where TERM is handled already.
    """
    if path := os.environ.get("BERTH_BATCH_PID"):
        Path(path).write_text(f"{os.getpid()}\n")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold TERM, INT and HUP back until the block has ended; the first of them is then delivered.

    In a thread other than the main one it does nothing: Python delivers signals to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    try:
        with _handlers(lambda signum, _frame: pending.append(signum)):
            yield
    finally:
        if pending:
            signal.raise_signal(pending[0])
