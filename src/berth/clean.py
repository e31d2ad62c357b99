"""What mode clean asks of a server before a point: that nobody else's work is on it, and an empty prefix cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.probe import ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from berth.metrics import Snapshot

# Somebody who asks one thing after another has moments without a request: twice nothing, this far apart, is idle.
SETTLE_S = 0.5
_POLL_S = 0.25


class CacheNotReset(BerthError):  # noqa: N818  # What happened.
    """A server did not reset its prefix cache; `cause` and `remedy` go into the record of the point."""

    kind = "invalid"

    def __init__(self, cause: str) -> None:
        self.cause = cause
        self.remedy = "See docs/method.md on mode clean; a server without a prefix cache needs no reset."
        super().__init__(f"{cause}\nWhat to do: {self.remedy}")


@dataclass(frozen=True)
class Idle:
    """How long a server was waited for, and what it still did at the end: a sentence and a number, or neither."""

    waited_s: float
    busy: str = ""
    requests: float | None = None


def wait_until_idle(
    read: Callable[[], Snapshot | None],
    *,
    limit_s: float,
    should_stop: Callable[[], object],
    settle_s: float = SETTLE_S,
) -> Idle | None:
    """Wait until no request runs or waits on a server and no counter has moved for `settle_s`, for at most `limit_s`.

    `read` gives the counters now, None where they cannot be read; `should_stop` may raise. None: the server does not
    tell, so that it is not known.
    """
    started = time.monotonic()
    quiet: tuple[float, dict[str, float | None]] | None = None
    while True:
        should_stop()
        snapshot = read()
        now = time.monotonic()
        if snapshot is None or (snapshot.running is None and snapshot.waiting is None):
            return None
        if snapshot.busy:
            quiet = None
        elif quiet is None or quiet[1] != snapshot.counters:
            quiet = now, snapshot.counters
        elif now - quiet[0] >= settle_s:
            return Idle(now - started)
        if now - started > limit_s:
            told = f"{snapshot.busy:.0f} requests are on it" if snapshot.busy else "requests come and go"
            return Idle(
                now - started,
                f"The server has other work: after {now - started:.0f} s of waiting {told}.",
                snapshot.busy,
            )
        time.sleep(_POLL_S)


def reset_prefix_cache(base_url: str, path: str, *, key: str = "", timeout_s: float = 30.0) -> None:
    """Empty the prefix cache of an idle vLLM server.

    Raises:
        CacheNotReset: it has no such call, does not answer, or says that blocks of the cache are in use.
    """
    answer = ask(base_url, path, timeout_s=timeout_s, api_key=key or None, body={})
    # 0.9.1 answers nothing and 200; later versions say whether they did it.
    emptied = not answer.text.strip() or (isinstance(said := answer.json(), dict) and said.get("success") is True)
    if answer.status != HTTPStatus.OK or not emptied:
        raise CacheNotReset(f"POST {base_url}{path} answers {answer}: the prefix cache was not reset.")
