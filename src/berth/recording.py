"""The record of a point, from what a sweep knows of it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from berth.client import ClientFailed
from berth.coordinates import level_entry
from berth.holder import job_id
from berth.mode import Method, mode_of, point_seed
from berth.record import FIRST_REQUEST, build_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.coordinates import Level
    from berth.errors import BerthError
    from berth.launch import Deployed

NOT_JUDGED = {"verdict": "refused", "reasons": []}


@dataclass(frozen=True)
class Instance:
    """One server of a sweep: its number, its start-up timeline and its command line without secrets.

    `nodes` has name and address of each of its nodes, and `client_node` the client's, where they are not the sweep's.
    """

    number: int
    timeline: list[dict[str, Any]]
    command: Sequence[str]
    nodes: Sequence[dict[str, str]] = ()
    client_node: str = ""

    def begin_measuring(self, phase_start: str | None, up_s: float) -> None:
        """Add to the timeline when the first measured phase began, once, where the client tells it.

        `phase_start` is ISO 8601, and `up_s` how many seconds the server has been up now.
        """
        if phase_start is None or any(entry["event"] == FIRST_REQUEST for entry in self.timeline):
            return
        elapsed_s = up_s - (time.time() - datetime.fromisoformat(phase_start).timestamp())
        self.timeline.append({"event": FIRST_REQUEST, "elapsed_s": round(elapsed_s, 3)})


def failure_of(error: BerthError, log: str) -> dict[str, Any]:
    """The `failure` of a record for what ended a point or a start; errors that say cause and remedy are asked."""
    return {
        "kind": getattr(error, "kind", "client" if isinstance(error, ClientFailed) else "crash"),
        "cause": str(getattr(error, "cause", str(error).splitlines()[0])),
        "remedy": str(getattr(error, "remedy", "Read the log.")),
        "log": log,
    }


def point_record(
    deployed: Deployed,
    level: Level,
    instance: Instance,
    *,
    client: dict[str, Any],
    wall: dict[str, Any],
    version: str | None = None,
    result: dict[str, Any] | None = None,
    server_metrics: dict[str, float | None] | None = None,
    validity: dict[str, Any] | None = None,
    failure: dict[str, Any] | None = None,
    method: Method | None = None,
    power: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of a point that was measured, refused or broken off; `method` as far as it came."""
    request = deployed.request
    method = method or Method(mode_of(request.benchmark), point_seed(request.benchmark, level))
    return build_record(
        point={
            "experiment": request.experiment,
            "platform": request.platform,
            "spec": request.spec,
            "run": request.run,
            **level_entry(level),
            "deployment": request.deployment["name"],
        },
        spec=request.definition,
        server={
            "host": socket.gethostname(),
            "job_id": job_id(),
            "instance": instance.number,
            "image": {"reference": deployed.image["reference"], "digest": deployed.image["digest"]},
            "version": version,
            "command": list(instance.command),
            "timeline": instance.timeline,
            **({"nodes": list(instance.nodes)} if instance.nodes else {}),
        },
        client={**client, **({"node": instance.client_node} if instance.client_node else {})},
        result=result,
        has_requests=result is not None,
        server_metrics=server_metrics,
        validity=validity or NOT_JUDGED,
        wall=wall,
        failure=failure,
        custody=deployed.custody,
        method=method.as_dict(),
        power=power,
    )


def no_client() -> dict[str, Any]:
    """The `client` of a record of a server that never became ready."""
    return {"name": "vllm-bench", "version": None, "mode": "warm", "command": [], "cpu_s": None, "cpu_fraction": None}


def wall_since(started: float) -> dict[str, Any]:
    """The `wall` of a point without a measurement, from `started` (seconds since 1970) until now."""
    now = time.time()
    start, end = (datetime.fromtimestamp(t, UTC).isoformat(timespec="milliseconds") for t in (started, now))
    return {"start": start, "end": end, "duration_s": now - started, "client_duration_s": None}
