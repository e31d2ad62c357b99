"""Several threads that move the parts of many files, each with a connection of its own."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol

from berth.retries import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from berth.engine import Session


class Job(Protocol):
    """One file on its way. Several threads may work on it."""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""

    @property
    def untaken(self) -> int:
        """Parts that nobody has begun."""

    def step(self, session: Session) -> None:
        """Move one part, if one is left; whoever moved the last one also finishes the file."""


class Crew:
    """Works on jobs until all are done: every thread stays with its file, and helps with another when it is done.

    Largest files come first, so that the last thread to end does not begin late.
    """

    def __init__(self, connect: Callable[[], Session], threads: int, stop: threading.Event) -> None:
        self._connect, self._threads, self._stop = connect, threads, stop
        self._lock = threading.Lock()
        self._untouched: deque[Job] = deque()
        self._begun: list[Job] = []
        self._busy: dict[int, int] = {}

    def work(self, jobs: Sequence[Job]) -> None:
        """Return when every job is done.

        Raises:
            Exception: the first one of any thread; the others then stop at their next chunk.
        """
        self._untouched = deque(sorted(jobs, key=lambda job: -job.size_bytes))
        self._begun, self._busy = [], {}
        count = min(self._threads, sum(job.untaken for job in jobs))
        if not count:
            return
        with ThreadPoolExecutor(count) as pool:
            futures = [pool.submit(self._serve) for _ in range(count)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if any(not future.done() or future.exception() for future in futures):
                    self._stop.set()
        errors = [error for future in futures if (error := future.exception())]
        for error in errors:
            if not isinstance(error, Stopped):
                raise error
        if errors:
            raise errors[0]

    def _serve(self) -> None:
        session = self._connect()
        try:
            while (job := self._pick()) is not None:
                try:
                    while job.untaken:
                        job.step(session)
                finally:
                    with self._lock:
                        self._busy[id(job)] -= 1
        finally:
            session.close()

    def _pick(self) -> Job | None:
        """The next file that nobody has begun; when there is none, the one on which the fewest threads work."""
        with self._lock:
            # As many as there are threads at most: of 10,000 files all are looked at once, and not once for each.
            self._begun = [job for job in self._begun if job.untaken or self._busy[id(job)]]
            if self._untouched:
                job = self._untouched.popleft()
                self._begun.append(job)
            else:
                candidates = [job for job in self._begun if job.untaken]
                if not candidates:
                    return None
                job = min(candidates, key=lambda job: self._busy[id(job)])
            self._busy[id(job)] = self._busy.get(id(job), 0) + 1
            return job
