"""A measured point with its verdict: the record that results keep, or the failure that they keep instead."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.ceilings import fraction_of
from berth.coordinates import Rate
from berth.reading import finite_number
from berth.recording import point_record
from berth.validity import Observed, judge, policy_of

if TYPE_CHECKING:
    from berth.clean import Idle
    from berth.coordinates import Level
    from berth.launch import Deployed
    from berth.measurement import Measurement
    from berth.metrics import Difference
    from berth.mode import Method
    from berth.power import Sampling
    from berth.recording import Instance
    from berth.serve import ServerDied
    from berth.sweep import SweepRequest
    from berth.validity import Judgement


@dataclass(frozen=True)
class Point:
    """A point that can be believed."""

    record: dict[str, Any]
    requests: dict[str, Any]
    client_duration_s: float
    told: str


class PointFailed(Exception):  # noqa: N818  # What happened, as in the record.
    """A point that was refused or broke off: its record, and the server's death where that was the cause."""

    def __init__(
        self, record: dict[str, Any], requests: dict[str, Any] | None, cause: str, death: ServerDied | None
    ) -> None:
        super().__init__(cause)
        self.record, self.requests, self.cause, self.death = record, requests, cause, death


def judged(
    deployed: Deployed,
    level: Level,
    instance: Instance,
    measured: Measurement,
    counted: Difference | None,
    *,
    method: Method,
    idle: Idle | None,
    clock_step_s: float,
    engine_version: str | None,
    power: Sampling | None = None,
) -> Point:
    """The point, if it can be believed. `clock_step_s` is by how much the wall clock of Berth's side was set meanwhile.

    Raises:
        PointFailed: it is refused.
    """
    benchmark = deployed.request.benchmark
    client = measured.client_section()
    node = instance.client_node or socket.gethostname()
    ceiling = fraction_of(Path(deployed.request.results), deployed.request.platform, node, client, measured.result)
    if ceiling is not None:
        client["ceiling_fraction"] = round(ceiling, 4)
    steps = [step for step in (measured.clock_step_s, clock_step_s) if step is not None]
    step_s = max(steps, key=abs)
    lag = measured.loop_lag
    policy = policy_of(benchmark["validity"])
    judgement = judge(
        Observed(
            result=measured.result,
            requests=measured.requests,
            concurrency=in_flight(deployed.request, level),
            num_prompts=benchmark["num_prompts"],
            request_rate=level if isinstance(level, Rate) else benchmark["request_rate"],
            # With a limit, a rate is a wish; so is a concurrency at a rate.
            offered=isinstance(level, Rate) and benchmark["max_concurrency"] is None,
            server_metrics=counted.server_metrics if counted else None,
            restarted=counted.restarted if counted else False,
            cpu_fraction=client["cpu_fraction"],
            loop_lag_p99_ms=lag["p99_ms"] if lag else None,
            ceiling_fraction=ceiling,
            clock_step_s=step_s,
            server_clock_step_s=counted.clock_step_s if counted else None,
            busy=idle.busy if idle else "",
            busy_requests=idle.requests if idle else None,
        ),
        policy.thresholds,
        policy.actions,
    )
    failure = refusal(judgement, deployed) if judgement.verdict == "refused" else None
    record = point_record(
        deployed,
        level,
        instance,
        client=client,
        wall={
            **measured.wall_section(),
            "clock_step_s": round(step_s, 6),
            "server_clock_step_s": counted.clock_step_s if counted else None,
        },
        version=engine_version,
        result=measured.result,
        server_metrics=counted.server_metrics if counted else None,
        validity=judgement.as_dict(),
        failure=failure,
        method=method,
        power=power.section(
            (measured.phase_start, measured.phase_end),
            measured.client_duration_s,
            finite_number(measured.result.get("total_output_tokens")),
        )
        if power
        else None,
    )
    if failure:
        raise PointFailed(record, measured.requests, failure["cause"], None)
    throughput = measured.result.get("output_throughput")
    told = f"{throughput:.1f} output tokens/s" if isinstance(throughput, float) else "measured"
    flags = ", ".join(
        f"{reason.code} {'accepted' * (reason.action == 'accept')}".strip() for reason in judgement.reasons
    )
    return Point(record, measured.requests, measured.client_duration_s or 0.0, told + (f", {flags}" if flags else ""))


def in_flight(request: SweepRequest, level: Level) -> int:
    """The most requests that a point can have in flight."""
    if isinstance(level, int):
        return level
    return int(request.benchmark["max_concurrency"] or request.benchmark["num_prompts"])


def refusal(judgement: Judgement, deployed: Deployed) -> dict[str, Any]:
    """The `failure` of the record of a refused point."""
    codes = ", ".join(dict.fromkeys(reason.code for reason in judgement.refusing))
    return {
        "kind": "invalid",
        "cause": " ".join(reason.message for reason in judgement.refusing),
        "remedy": f"docs/validity.md explains {codes}.",
        "log": deployed.log_name(deployed.client_log),
    }
