"""How threads share files out among themselves. The files are stand-ins that count how often they are looked at."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

import pytest

from berth.crew import Crew

if TYPE_CHECKING:
    from berth.engine import Session


class NoSession:
    """A connection that is only closed."""

    def close(self) -> None:
        pass


class Counted:
    """A file of some parts, which takes no time."""

    def __init__(self, parts: int, barrier: threading.Barrier | None = None) -> None:
        self.size_bytes = parts
        self.looked, self.threads = 0, set[int]()
        self._left, self._lock, self._barrier = parts, threading.Lock(), barrier

    @property
    def untaken(self) -> int:
        self.looked += 1
        return self._left

    def step(self, session: Session) -> None:
        del session
        with self._lock:
            if not self._left:
                return
            self._left -= 1
        self.threads.add(threading.get_ident())
        if self._barrier is not None:
            self._barrier.wait(60)


def work(jobs: list[Counted], threads: int) -> None:
    Crew(lambda: cast("Session", NoSession()), threads, threading.Event()).work(jobs)


@pytest.mark.parametrize("count", [100, 3000])
def test_the_looks_at_a_file_do_not_grow_with_their_number(count: int) -> None:
    """Every file is done, and no file is looked at again for each of the others."""
    jobs = [Counted(1) for _ in range(count)]
    work(jobs, 4)
    assert all(len(job.threads) == 1 for job in jobs)
    # One that a thread is in is looked at by the others whenever they are done with theirs.
    assert sum(job.looked for job in jobs) < 20 * count


def test_who_is_done_helps_with_the_largest_file() -> None:
    """A file of many parts gets a second thread when there is no other file left."""
    # Two must be in it at the same time, or it would never go on.
    large = Counted(2, threading.Barrier(2))
    work([Counted(1), large], 2)
    assert len(large.threads) == 2
