"""What measurements cost: the time of each server in its parts, accelerator-hours, and the tokens for them. Pure.

A server is one of a sweep; its points and failures say when it started and what it did. What no record says (the wait
in the queue, the job around the server) comes from the scheduler's accounting, and is None where there is none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from berth.record import FIRST_REQUEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from berth.accounting import JobTime


@dataclass(frozen=True)
class ServerCost:
    """One server: seconds of its parts, what it held, and what it generated in valid points.

    `queue_s` is from submission to the job's start, and holds no accelerator. `image_s` is from there to the start of
    the server's process: checks, the image and the model onto the node. `load_s` is until the server was warm.
    `measured_s` is by the client's clock, `around_s` what its points took beyond that, `failed_s` points that are not
    valid. `idle_s` is between points, and after the last until the job's end where that is known. `energy_j` is what
    valid points took whose power was read, and `energy_tokens` what they generated.
    """

    experiment: str
    platform: str
    spec: str
    run: int
    host: str
    job_id: str | None
    points: int
    nodes: int
    accelerators: int
    queue_s: float | None
    image_s: float | None
    load_s: float
    measured_s: float
    around_s: float
    failed_s: float
    idle_s: float
    output_tokens: int
    energy_j: float | None = None
    energy_tokens: int = 0

    @property
    def tokens_per_j(self) -> float | None:
        """Generated tokens per joule, of the points whose power was read; None where there is none."""
        return self.energy_tokens / self.energy_j if self.energy_j else None

    @property
    def held_s(self) -> float:
        """Seconds in which accelerators were held."""
        return (self.image_s or 0.0) + self.load_s + self.measured_s + self.around_s + self.failed_s + self.idle_s

    @property
    def accelerator_hours(self) -> float:
        """What it cost."""
        return self.accelerators * self.held_s / 3600

    @property
    def tokens_per_accelerator_s(self) -> float | None:
        """Generated tokens per accelerator and measured second; None on a platform without accelerators."""
        return (
            self.output_tokens / (self.accelerators * self.measured_s) if self.accelerators * self.measured_s else None
        )


def server_costs(records: Iterable[Mapping[str, Any]], jobs: Mapping[str, JobTime]) -> list[ServerCost]:
    """One entry per server that records (of points and of failures) name, by run and time."""
    servers: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        point, server = record["point"], record["server"]
        where = (point["experiment"], point["platform"], point["spec"], point["run"])
        # The timeline tells two servers of different sweeps apart, where no job's id does.
        servers[*where, server["host"], server["job_id"], server["instance"], _loaded(record)].append(record)
    found = [_cost(each, jobs) for each in servers.values()]
    return sorted(found, key=lambda cost: (cost.experiment, cost.platform, cost.spec, cost.run))


def _cost(records: list[Mapping[str, Any]], jobs: Mapping[str, JobTime]) -> ServerCost:
    spans = sorted((_time(record["wall"]["start"]), _time(record["wall"]["end"])) for record in records)
    valid = [record for record in records if record["failure"] is None]
    walls = {True: 0.0, False: 0.0}
    for record in records:
        walls[record["failure"] is None] += record["wall"]["duration_s"]
    measured = sum(record["wall"]["client_duration_s"] or 0.0 for record in valid)
    first, server, spec = records[0]["point"], records[0]["server"], records[0]["spec"]
    load = _loaded(records[0])
    begin, end = spans[0][0], spans[-1][1]
    job = jobs.get(server["job_id"] or "")
    idle = max(0.0, end - begin - sum(walls.values()))
    alone = job is not None and server["instance"] == 1
    if job is not None and job.ended is not None:
        idle += max(0.0, job.ended - end)
    powered = [record for record in valid if record.get("power")]
    serve, hardware = spec.get("serve", {}), spec.get("hardware", {})
    used = int(serve.get("tensor_parallel", 1)) * int(serve.get("pipeline_parallel", 1))
    if hardware.get("accelerators_per_node") == 0:
        used = 0
    return ServerCost(
        experiment=first["experiment"],
        platform=first["platform"],
        spec=first["spec"],
        run=first["run"],
        host=server["host"],
        job_id=server["job_id"],
        points=len(valid),
        nodes=job.nodes if job else int(serve.get("nodes", 1)),
        accelerators=job.accelerators if job and job.accelerators is not None else used,
        queue_s=job.started - job.submitted if job and alone else None,
        image_s=max(0.0, begin - load - job.started) if job and alone else None,
        load_s=load,
        measured_s=measured,
        around_s=max(0.0, walls[True] - measured),
        failed_s=walls[False],
        idle_s=idle,
        output_tokens=_tokens(valid),
        energy_j=sum(record["power"]["energy_j"] for record in powered) if powered else None,
        energy_tokens=_tokens(powered),
    )


def _tokens(records: Iterable[Mapping[str, Any]]) -> int:
    return sum(int((record["result"] or {}).get("total_output_tokens") or 0) for record in records)


def _loaded(record: Mapping[str, Any]) -> float:
    """Seconds from the start of the server's process until it was warm."""
    times = [event["elapsed_s"] for event in record["server"]["timeline"] if event["event"] != FIRST_REQUEST]
    return float(max(times, default=0.0))


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
