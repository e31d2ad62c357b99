"""Something small that is done again and again while a block runs."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def every(interval_s: float, action: Callable[[], None], *, name: str) -> Iterator[None]:
    """Call `action` in a thread of this `name`, first after `interval_s`, until the block ends and the call with it."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(interval_s):
            action()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
