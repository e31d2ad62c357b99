"""The gate between spool and results: a record is checked, copied durably, and only later removed from the spool."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.fsio import atomic_file, sha256_file
from berth.record import read_record

if TYPE_CHECKING:
    from pathlib import Path

    from berth.coordinates import PointId
    from berth.plan import Plan

logger = logging.getLogger(__name__)

REQUESTS_SUFFIX = ".requests.json.gz"


def accept_point(results: Path, point: PointId) -> None:
    """Copy a spooled record and its per-request lists into results; both are whole or absent.

    The copy in the spool stays until the workflow ends (`end_run`): a Snakemake that is killed at this moment may
    delete the output of a job that it saw running.

    Raises:
        BerthError: the point was not measured, or was refused, with its cause and remedy.
    """
    spooled = results / "spool" / f"{point.key}.json"
    if not spooled.exists():
        raise BerthError(_why_not(results, point))
    record = read_record(spooled, key=point.key)
    if record["validity"]["verdict"] == "refused":
        raise BerthError(f"{spooled}: a refused record lies among the accepted ones; delete it.")
    target = results / "points" / f"{point.key}.json"
    if record["requests_file"] is not None:
        _copy(spooled.with_name(record["requests_file"]), target.with_name(record["requests_file"]))
    _copy(spooled, target)
    for reason in record["validity"]["reasons"]:
        action = "accepted" if reason.get("action") == "accept" else "flagged"
        logger.warning("%s %s: %s: %s", point.key, action, reason["code"], reason["message"])


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, atomic_file(target) as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)


def _why_not(results: Path, point: PointId) -> str:
    path = results / "failures" / f"{point.key}.json"
    again = "The next run measures it again."
    if not path.exists():
        return (
            f"{point.key} was not measured: the sweep of this run ended before it. "
            f"Its log is {results}/logs/sweep/{point.run.key}.*.log. {again}"
        )
    record = read_record(path, key=point.key)
    failure = record["failure"]
    codes = ", ".join(reason["code"] for reason in record["validity"]["reasons"])
    return (
        f"{point.key} refused ({failure['kind']}{': ' + codes if codes else ''}): {failure['cause']} "
        f"Remedy: {failure['remedy']} Details: {path}, {results}/{failure['log']}. {again}"
    )


def end_run(plan: Plan) -> None:
    """Remove what a finished workflow leaves behind: markers, and spooled copies of accepted points.

    A spooled file goes only when results hold the same bytes.
    """
    results = plan.root / plan.config.results
    for run in plan.runs.values():
        for marker in (results / "sweeps").glob(f"{run.id.key}.attempt*.done"):
            marker.unlink(missing_ok=True)
        for point in run.points:
            for suffix in (".json", REQUESTS_SUFFIX):
                spooled = results / "spool" / f"{point.key}{suffix}"
                accepted = results / "points" / f"{point.key}{suffix}"
                if spooled.exists() and accepted.exists() and sha256_file(spooled) == sha256_file(accepted):
                    spooled.unlink()
