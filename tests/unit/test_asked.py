"""A signal that asks the process to end is not forgotten, whatever becomes of its exception."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from berth.pointwatch import PointWatch
from berth.signals import Terminated, raise_if_asked, terminate_as_exception

if TYPE_CHECKING:
    from collections.abc import Callable


class Finalised:
    """Its finaliser is where the signal hits, and Python drops what is raised there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        # The handler runs between two instructions of this frame at the latest.
        for _ in range(1000):
            pass


class Alive:
    """A server and a lease that are well."""

    server: Any = None

    def __init__(self) -> None:
        self.server = self

    def alive(self) -> bool:
        """It is."""
        return True

    @property
    def check_lease(self) -> Callable[[], None]:
        """Nothing is lost."""
        return lambda: None

    def counters_now(self) -> None:
        """There are none."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_that_was_dropped_ends_the_point_at_the_next_look() -> None:
    """TERM in a finaliser, whose exceptions Python ignores: the next look at the running point raises it again."""
    watch = PointWatch(Alive(), lambda _completed, _total: None, stall_s=60.0)
    with terminate_as_exception():
        watch.look()
        Finalised()
        with pytest.raises(Terminated) as caught:
            watch.look()
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_an_error_of_cleaning_up_does_not_hide_that_it_was_asked() -> None:
    """An error that took the place of the signal's exception is no failure of what was broken off."""

    def broken_off() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            raise ValueError

    with terminate_as_exception():
        with pytest.raises(ValueError, match=r"^$"):
            broken_off()
        with pytest.raises(Terminated):
            raise_if_asked()


def test_what_was_asked_of_one_block_is_not_asked_of_the_next() -> None:
    """After the block that was ended, another one goes on."""
    with pytest.raises(Terminated), terminate_as_exception():
        os.kill(os.getpid(), signal.SIGTERM)
    with terminate_as_exception():
        raise_if_asked()
    raise_if_asked()
