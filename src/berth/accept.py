"""The gate between spool and results: a record is checked, copied durably, and only later removed from the spool."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from berth.coordinates import POINT_FILES, level_name, level_words
from berth.errors import BerthError
from berth.fsio import atomic_file, sha256_file, write_json
from berth.record import read_record
from berth.spool import decided

if TYPE_CHECKING:
    from pathlib import Path

    from berth.coordinates import PointId, RunId
    from berth.plan import Plan
    from berth.stopping import Asked

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
        for ending in ("done", "levels.json"):
            for marker in (results / "sweeps").glob(f"{run.id.key}.attempt*.{ending}"):
                marker.unlink(missing_ok=True)
        # Not the points of the plan: a sweep may have added some.
        for record in sorted((results / "spool" / run.id.key).glob(POINT_FILES)):
            for suffix in (".json", REQUESTS_SUFFIX):
                spooled = record.with_name(record.stem + suffix)
                accepted = results / "points" / run.id.key / spooled.name
                if spooled.exists() and accepted.exists() and sha256_file(spooled) == sha256_file(accepted):
                    spooled.unlink()


def write_decision(results: Path, run: RunId, asked: Asked, output: Path) -> None:
    """Say which points of an open run are to be accepted: those that it wants and results do not hold.

    One that was not measured is among them, so that its own job says why.
    """
    decision = decided(results, run, asked)
    missing = [
        level_name(level) for level in decision.wanted if not (results / f"points/{run.point(level).key}.json").exists()
    ]
    for level, why in decision.left_out.items():
        logger.info("%s: %s left out, %s", run.key, level_words(level), why)
    write_json(output, {"levels": missing})
