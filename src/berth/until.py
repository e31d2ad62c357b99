"""Until when a deployment is kept up: a date, or a duration from now."""

from __future__ import annotations

import re
from datetime import datetime

from berth.errors import BerthError

_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:\d+[dhms])+")
_PART = re.compile(r"(\d+)([dhms])")


def parse_until(text: str, now: float) -> float | None:
    """Seconds since the epoch of a text such as 2026-12-01T18:00 (this machine's time zone) or 1d12h; None for "".

    Raises:
        BerthError: it is neither, or it has passed.
    """
    if not text:
        return None
    if _DURATION.fullmatch(text):
        return now + sum(int(count) * _UNITS_S[unit] for count, unit in _PART.findall(text))
    try:
        end = datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise BerthError(
            f"until: {text!r} is neither a date nor a duration. Write --config until=2026-12-01T18:00, or a duration "
            "with units, such as 36h, 90m or 7d12h."
        ) from None
    if end <= now:
        raise BerthError(
            f"until: {text} has passed; it is {datetime.fromtimestamp(now).astimezone():%Y-%m-%dT%H:%M} now. Give a "
            "later date, or leave it out."
        )
    return end
