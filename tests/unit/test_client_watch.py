"""What the benchmark client sees of itself: a busy event loop, and a clock that was set."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from berth import _client_watch
from berth._client_watch import LoopLag, clock_offset_s

if TYPE_CHECKING:
    import pytest


def test_an_event_loop_that_is_blocked_is_seen() -> None:
    """A block of the loop is the largest lag, and weighs as much as all wake-ups that it swallowed."""
    lag = LoopLag()

    async def blocked() -> None:
        lag.start()
        await asyncio.sleep(0.1)
        time.sleep(0.5)  # noqa: ASYNC251  # What is to be seen.
        await asyncio.sleep(0.1)
        lag.stop()

    asyncio.run(blocked())
    told = lag.report()
    assert told is not None
    # Most of the time the loop was blocked, for a quarter of a second on average.
    assert told["max_ms"] > 450
    assert told["p99_ms"] > 400
    assert told["mean_ms"] > 100


def test_a_block_until_the_end_counts() -> None:
    """A loop that never came to its next wake-up is not one without lag."""
    lag = LoopLag()

    async def blocked() -> None:
        lag.start()
        time.sleep(0.3)  # noqa: ASYNC251  # As above.
        lag.stop()

    asyncio.run(blocked())
    told = lag.report()
    assert told is not None
    assert told["max_ms"] > 250


def test_without_a_loop_nothing_is_known() -> None:
    """Where no loop runs, and before anything was seen, there is no report; a second start forgets the first."""
    lag = LoopLag()
    lag.start()
    lag.stop()
    assert lag.report() is None


def test_a_clock_that_is_set_moves_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset is constant while the clock runs, and moves by what it is set (a clock of the test's own)."""

    class Clock:
        step_s = 0.0
        monotonic = staticmethod(time.monotonic)

        @classmethod
        def time(cls) -> float:
            return time.time() + cls.step_s

    before = clock_offset_s()
    assert abs(clock_offset_s() - before) < 0.1
    monkeypatch.setattr(_client_watch, "time", Clock)
    Clock.step_s = 3.0
    assert abs(clock_offset_s() - before - 3.0) < 0.1
