"""What a reader of another tool's file found, and the units that it converts. What is absent stays absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from berth.errors import BerthError

# How many milliseconds one of each is; the names that tools write.
_MILLISECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1000.0),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 1.0),
    **dict.fromkeys(("us", "µs", "microsecond", "microseconds"), 1e-3),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-6),
}


@dataclass(frozen=True)
class Reading:
    """One measurement in a file.

    `entry` says which one of the file's; `values` are columns of the tidy table; `result` is what the tool wrote.
    `requests` are lists by the keys of vLLM's client, as the validity gate reads them, and `server_tokens` what the
    server counted as generated. `reasons` are doubts that the tool itself told, as (code, message).
    """

    entry: str
    tool: str | None
    tool_version: str | None
    values: Mapping[str, Any]
    result: Mapping[str, Any]
    concurrency: int | None = None
    requests: Mapping[str, Any] = field(default_factory=dict)
    server_tokens: float | None = None
    incomplete: int = 0
    reasons: tuple[tuple[str, str], ...] = ()


def to_ms(value: float | None, unit: str, where: str) -> float | None:
    """A time in milliseconds.

    Raises:
        BerthError: the unit is not known.
    """
    if unit not in _MILLISECONDS:
        raise BerthError(f'{where}: "{unit}" is no unit of time that Berth knows ({", ".join(_MILLISECONDS)}).')
    return None if value is None else value * _MILLISECONDS[unit]


def finite_number(value: Any) -> float | None:
    """The number, None for what is none: NaN, infinity, null, text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def part_of(value: Any, *keys: str) -> Mapping[str, Any]:
    """A nested object, empty where one of the keys leads to none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that are None."""
    return {name: value for name, value in values.items() if value is not None}
