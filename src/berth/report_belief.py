"""What the report says about spread over runs, and about comparisons that were run with `snakemake compare`."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from berth.analysis import StatisticsSettings
from berth.columns import row_level
from berth.errors import BerthError
from berth.report_words import THROUGHPUT, groups
from berth.stats import mean_of, pooled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from berth.report_data import Shown

Row = dict[str, Any]

CONFIDENCE = StatisticsSettings().confidence
_SCHEMA = 1
# Of the points that are slower than allowed, so many are named.
_MOST = 20


def spread(each: Shown) -> list[Row]:
    """Output throughput of every group with several runs, level by level; valid points alone count."""
    rows: list[Row] = []
    for group in groups(each.rows):
        values = group.each(THROUGHPUT)
        for place, level in enumerate(group.levels):
            known = values[:, place][np.isfinite(values[:, place])].tolist()
            if len(known) < 2:
                continue
            mean = mean_of(known, CONFIDENCE)
            rows.append(
                {
                    "experiment": each.asked.name,
                    "curve": group.name,
                    **({"request_rate_req_s": level} if group.by_rate else {"concurrency": int(level)}),
                    "runs": mean.n,
                    "mean, tokens/s": mean.mean,
                    "least": min(known),
                    "most": max(known),
                    "interval from": mean.low,
                    "interval to": mean.high,
                    "CV, %": None if mean.cv is None else 100 * mean.cv,
                }
            )
    return rows


def agreements(rows: Sequence[Row]) -> list[Row]:
    """Per curve the CV pooled over its levels, the largest CV, and the number of runs."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        curves.setdefault((row["experiment"], row["curve"]), []).append(row)
    told = []
    for (experiment, curve), found in curves.items():
        known = [row for row in found if row["CV, %"] is not None]
        together = pooled([(row["runs"], row["CV, %"]) for row in known])
        if together is None:
            continue
        worst = max(known, key=lambda row: float(row["CV, %"]))
        told.append(
            {
                "experiment": experiment,
                "curve": curve,
                "runs": max(row["runs"] for row in known),
                "cv": together[0],
                "worst_cv": worst["CV, %"],
                "worst_at": row_level(worst),
            }
        )
    return told


def verdicts(paths: Iterable[Path]) -> list[Row]:
    """What each comparison.json of `snakemake compare` found.

    Raises:
        BerthError: a file cannot be read, or is of another version.
    """
    return [_verdict(path) for path in paths]


def _verdict(path: Path) -> Row:
    try:
        value = json.loads(path.read_text())
        if value["schema"] != _SCHEMA:
            raise BerthError(f"{path}: of schema {value['schema']!r}, not {_SCHEMA}. Run the comparison again.")
        counts = Counter(str(point["verdict"]) for point in value["points"])
        worse = [
            f"{point['curve']} at {point['concurrency']}, {point['metric']}: {point['verdict']}"
            + (f", {point['ratio']:.3g} of the reference" if point["ratio"] is not None else "")
            for point in value["points"]
            if point["regression"]
        ]
        return {
            "ours": str(value["ours"]["name"]),
            "theirs": str(value["theirs"]["name"]),
            "passed": bool(value["passed"]),
            "counts": ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())),
            "worse": worse[:_MOST],
            "more": max(0, len(worse) - _MOST),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BerthError(
            f"{path}: no readable comparison ({error!r}). Delete it, or run the comparison again."
        ) from None
