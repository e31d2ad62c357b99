"""Until when a deployment is kept up."""

from __future__ import annotations

from datetime import datetime

import pytest

from berth.errors import BerthError
from berth.until import parse_until

NOW = datetime(2026, 11, 24, 12, 0).timestamp()  # noqa: DTZ001  # Local time, as a user means it.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("36h", 36 * 3600), ("1d12h", 36 * 3600), ("90m", 5400), ("20s", 20), ("2026-11-25", 12 * 3600)],
)
def test_durations_and_dates(text: str, seconds: int) -> None:
    """A duration counts from now, and a date is of this machine's time zone."""
    assert parse_until(text, NOW) == NOW + seconds


def test_nothing_is_no_end() -> None:
    """Without a text there is no end."""
    assert parse_until("", NOW) is None


def test_time_zone_is_taken() -> None:
    """A date with an offset means the same moment everywhere."""
    moment = datetime.fromisoformat("2026-12-01T18:00+02:00").timestamp()
    assert parse_until("2026-12-01T18:00+02:00", NOW) == moment


@pytest.mark.parametrize("text", ["tomorrow", "90", "12:00", "1w"])
def test_other_texts_are_refused(text: str) -> None:
    """A text that is neither is one error with examples of both."""
    with pytest.raises(BerthError, match="2026-12-01T18:00, or a duration"):
        parse_until(text, NOW)


def test_a_past_date_is_refused() -> None:
    """A date that has passed would end the service at once."""
    with pytest.raises(BerthError, match="has passed"):
        parse_until("2026-11-24T11:59", NOW)
