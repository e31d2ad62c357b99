"""What the rule `costs` does: what measurements have cost, and what the missing ones will, as a page, CSV and JSON."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from berth.accounting import jobs_of_slurm
from berth.costs import ServerCost, server_costs
from berth.fsio import write_json, write_text
from berth.markdown import number, table
from berth.next_costs import NextJob, next_jobs
from berth.plan import make_plan
from berth.record import finite, read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from berth.config import Config
    from berth.coordinates import Level

logger = logging.getLogger(__name__)

_DERIVED = ("held_s", "accelerator_hours", "tokens_per_accelerator_s", "tokens_per_j")


def report_costs(config: Config, root: Path) -> Path:
    """Write the costs of all experiments of the configuration, or of `experiment` alone; their folder.

    Raises:
        BerthError: a record cannot be read, or a missing point does not fit into the site's longest job.
    """
    plan = make_plan(config, root)
    results = root / config.results
    wanted = f"{config.experiment}/" if config.experiment else ""
    # A failure whose point was measured later took its time all the same.
    records = [
        read_record(results / folder / f"{key}.json")
        for folder, keys in (("points", plan.existing), ("failures", plan.failures))
        for key in sorted(keys)
        if key.startswith(wanted)
    ]
    jobs = jobs_of_slurm(record["server"]["job_id"] or "" for record in records)
    spent = server_costs(records, jobs)
    coming = [job for job in next_jobs(plan) if job.run.startswith(wanted)]
    folder = results / "costs"
    page = _page(spent, coming, plan.unmeasurable)
    write_text(folder / "costs.md", page)
    write_text(folder / "spent.csv", _csv(spent))
    write_json(folder / "costs.json", finite(_as_json(spent, coming)))
    logger.info("%s", page)
    logger.info("Written: %s/costs.md, spent.csv, costs.json", folder)
    return folder


def _page(spent: Sequence[ServerCost], coming: Sequence[NextJob], unmeasurable: Sequence[str]) -> str:
    parts = ["# Costs\n", "## What the missing points will cost\n"]
    if coming:
        rows = [
            [
                job.run,
                _range(job.levels),
                str(job.nodes),
                str(job.accelerators),
                _time(job.start_s),
                _time(job.points_s),
                number(job.accelerator_hours, 3),
                _time(job.asked_s),
                number(job.most_accelerator_hours, 3),
            ]
            for job in coming
        ]
        header = ["run", "levels", "nodes", "accelerators", "start", "points", "accelerator-hours"]
        parts.append(table([*header, "time limit", "at most"], rows))
        total = sum(job.accelerator_hours for job in coming)
        node_hours = sum(job.nodes * (job.start_s + job.points_s) for job in coming) / 3600
        parts.append(
            f"{len(coming)} job{'s' if len(coming) > 1 else ''}: {number(total, 3)} accelerator-hours, "
            f"{number(node_hours, 3)} node-hours, predicted from earlier records of the same spec, else from published "
            "curves (docs/costs.md). The wait in the queue is not predicted.\n"
        )
    else:
        parts.append("Nothing is missing that this platform can measure.\n")
    parts += [f"Not counted, because it cannot be measured: {reason}\n" for reason in unmeasurable]
    parts.append("## What was spent\n")
    if not spent:
        return "\n".join([*parts, "No point was measured yet.\n"])
    header = [
        "server",
        "job",
        "points",
        "accelerators",
        "queue",
        "image",
        "load",
        "measured",
        "around",
        "failed",
        "idle",
    ]
    rows = [
        [
            f"{each.experiment}/{each.platform}/{each.spec}/run{each.run}",
            each.job_id or "",
            str(each.points),
            str(each.accelerators),
            *(_time(seconds) for seconds in (each.queue_s, each.image_s, each.load_s, each.measured_s)),
            *(_time(seconds) for seconds in (each.around_s, each.failed_s, each.idle_s)),
            number(each.accelerator_hours, 3),
            number(each.tokens_per_accelerator_s, 4),
            number(each.tokens_per_j, 4),
        ]
        for each in spent
    ]
    parts.append(table([*header, "accelerator-hours", "tokens per accelerator-second", "tokens per joule"], rows))
    return "\n".join([*parts, _total(spent)])


def _total(spent: Sequence[ServerCost]) -> str:
    held = sum(each.held_s * max(each.accelerators, 1) for each in spent)
    measured = sum(each.measured_s * max(each.accelerators, 1) for each in spent)
    hours = sum(each.accelerator_hours for each in spent)
    nodes = sum(each.nodes * each.held_s for each in spent) / 3600
    share = f" {100 * measured / held:.0f} % of the time was measurement." if held else ""
    missing = sum(each.queue_s is None for each in spent)
    unknown = f" Queue and image of {missing} servers are not known: no accounting has their jobs." if missing else ""
    return (
        f"{len(spent)} servers: {number(hours, 3)} accelerator-hours, {number(nodes, 3)} node-hours.{share}{unknown}\n"
    )


def _csv(spent: Sequence[ServerCost]) -> str:
    handle = io.StringIO()
    names = [field.name for field in fields(ServerCost)]
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow([*names, *_DERIVED])
    for each in spent:
        writer.writerow([getattr(each, name) for name in (*names, *_DERIVED)])
    return handle.getvalue()


def _as_json(spent: Sequence[ServerCost], coming: Sequence[NextJob]) -> dict[str, Any]:
    return {
        "schema": 1,
        "spent": [{**asdict(each), **{name: getattr(each, name) for name in _DERIVED}} for each in spent],
        "missing": [{**asdict(job), "accelerator_hours": job.accelerator_hours} for job in coming],
    }


def _range(levels: Sequence[Level]) -> str:
    return ", ".join(map(str, levels))


def _time(seconds: float | None) -> str:
    """Seconds as h:mm:ss; "" for what is not known."""
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
