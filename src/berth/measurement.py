"""One measured point, as the client gave it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from berth.clienttool import VLLM_BENCH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def client_section(
    command: list[str],
    mode: str,
    version: str | None,
    cpu_s: float | None,
    cpu_fraction: float | None,
    *,
    name: str = VLLM_BENCH,
    loop_lag: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The `client` of a point record; `loop_lag` is how late its event loop woke, where it can tell."""
    return {
        "name": name,
        "version": version,
        "mode": mode,
        "command": command,
        "cpu_s": cpu_s,
        "cpu_fraction": cpu_fraction,
        **({"loop_lag": dict(loop_lag)} if loop_lag else {}),
    }


@dataclass(frozen=True)
class Measurement:
    """One measured point.

    `result` is the client's own JSON without its per-request lists, which are in `requests`. `start`, `end` and
    `duration_s` are Berth's, from the call to the result read; `client_duration_s` is what the client measured. `cpu_s`
    are the client's CPU seconds in its measured phase, None in process mode: there they cannot be told from those
    of its start-up. `phase_start` and `phase_end` bound that phase (ISO 8601, UTC), None in process mode of vLLM's.
    `loop_lag` has mean_ms, p99_ms and max_ms of how late its event loop woke in that phase; `clock_step_s` is by how
    much its wall clock was set in it. Both are None where the client cannot tell. Of another client `result` has vLLM's
    names for what is equal in meaning; `not_given` are those that it cannot give.
    """

    result: dict[str, Any]
    requests: dict[str, Any]
    command: list[str]
    mode: Literal["warm", "process"]
    version: str | None
    cpu_s: float | None
    start: str
    end: str
    duration_s: float
    client_duration_s: float | None
    phase_start: str | None
    phase_end: str | None
    log: Path
    name: str = VLLM_BENCH
    not_given: tuple[str, ...] = ()
    loop_lag: Mapping[str, float] | None = None
    clock_step_s: float | None = None

    @property
    def lost_s(self) -> float | None:
        """Wall seconds of the point beyond those that the client measured."""
        return None if self.client_duration_s is None else self.duration_s - self.client_duration_s

    def client_section(self) -> dict[str, Any]:
        """The `client` of a point record."""
        fraction = self.cpu_s / self.client_duration_s if self.cpu_s is not None and self.client_duration_s else None
        section = client_section(
            self.command, self.mode, self.version, self.cpu_s, fraction, name=self.name, loop_lag=self.loop_lag
        )
        return {**section, **({"not_given": list(self.not_given)} if self.not_given else {})}

    def wall_section(self) -> dict[str, Any]:
        """The `wall` of a point record."""
        return {
            "start": self.start,
            "end": self.end,
            "duration_s": self.duration_s,
            "client_duration_s": self.client_duration_s,
        }
