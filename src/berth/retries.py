"""Requests that are made again: which, how often, and after which pause."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from berth.s3errors import explain, is_passing

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_S = 0.2
_LONGEST_S = 15.0


class Stopped(Exception):  # noqa: N818 - nothing went wrong here
    """Another thread failed or the process was asked to end, so this one gives up."""


@dataclass(frozen=True)
class Retries:
    """`attempts` in a row without progress, with pauses that double and are drawn at random, as AWS advises.

    `stop` ends a pause, and the request that would follow it.
    """

    attempts: int
    stop: threading.Event = field(default_factory=threading.Event)

    def call(self, request: Callable[[], T], progress: Callable[[], int], what: str) -> T:
        """What `request` returns. It is made again after an error that may pass.

        Args:
            request: makes one attempt.
            progress: counts what was moved so far; attempts are counted anew when it has grown.
            what: for the log.

        Raises:
            Exception: the last attempt's, or one that will not pass.
            Stopped: see the class.
        """
        failed, before = 0, progress()
        while True:
            self.check()
            try:
                return request()
            except Exception as error:
                self.check()
                now = progress()
                failed = 1 if now > before else failed + 1
                before = now
                if not is_passing(error) or failed >= self.attempts:
                    raise
                pause_s = random.uniform(0.5, 1) * min(_LONGEST_S, _FIRST_S * 2**failed)
                said = "%s: attempt %d of %d in %.1f s: %s"
                logger.info(said, what, failed + 1, self.attempts, pause_s, explain(error))
                self.stop.wait(pause_s)

    def check(self) -> None:
        """Do nothing, or raise Stopped."""
        if self.stop.is_set():
            raise Stopped
