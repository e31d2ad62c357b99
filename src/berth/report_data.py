"""What the report's page draws: the rows of each experiment by column, and its curves as places in these rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from berth._curves import curves, notes
from berth.columns import BY_NAME, LATENCIES, STATISTICS
from berth.figures import KINDS
from berth.frames import combine, read_published
from berth.published import find_figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

# Enough to tell two measurements apart, and half the size of all digits. The table has them all.
_DIGITS = 6
# Columns of the points' tables, in their order; a column without any value is left out.
TABLE = (
    *("source", "platform_label", "deployment", "spec", "run", "host", "job_id", "mode", "concurrency"),
    *("request_rate_req_s", "status"),
    "reason_codes",
    *("output_throughput_tok_s", "request_throughput_req_s", "total_token_throughput_tok_s", "request_goodput_req_s"),
    *(f"{statistic}_{latency}_ms" for latency in LATENCIES for statistic in STATISTICS),
    *("completed", "failed", "duration_s", "total_input_tokens", "total_output_tokens"),
    *(
        "prefix_cache_hit_rate",
        "preemptions",
        "client_cpu_fraction",
        "power_w",
        "energy_j",
        "tokens_per_j",
        "client_loop_lag_p99_ms",
    ),
)


@dataclass(frozen=True)
class Asked:
    """One experiment as the plan has it: kinds of figure, published curves (SET/FIGURE), points not measured yet."""

    name: str
    title: str
    kinds: tuple[str, ...]
    published: tuple[str, ...]
    missing: int = 0
    note: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Asked:
        """The experiment from plain values, as Snakemake hands them on."""
        return cls(
            str(value["name"]),
            str(value["title"]),
            tuple(value["kinds"]),
            tuple(value["published"]),
            int(value.get("missing", 0)),
            str(value.get("note", "")),
        )


@dataclass(frozen=True)
class Shown:
    """One experiment with its rows, measured and published, and the words that belong below its figures."""

    asked: Asked
    rows: pd.DataFrame
    notes: tuple[str, ...]


def shown(table: pd.DataFrame, asked: Asked, published_dir: Path) -> Shown:
    """The rows of an experiment with the published ones that belong beside them.

    Raises:
        BerthError: a published set is wrong or absent.
    """
    parts = [table[table["experiment"] == asked.name]]
    told = []
    for reference in asked.published:
        described, figure = find_figure(published_dir, reference)
        parts.append(read_published(figure.path))
        told.append(f"Published: {described.citation} Licence: {described.licence}.")
    rows = combine(parts)
    return Shown(asked, rows, (*notes(rows), *filter(None, [asked.note]), *told))


def kinds_for_page() -> dict[str, Any]:
    """The kinds of figure with their panels, for the page's script."""
    return {
        name: {
            "label": kind.label,
            "log": kind.log,
            "panels": [{"column": each.column, "title": each.title, "x": each.x} for each in kind.panels],
        }
        for name, kind in KINDS.items()
    }


def for_page(each: Shown) -> dict[str, Any]:
    """An experiment for the page's script: columns of its rows, and curves as indices of rows (-1 at a gap)."""
    columns = {name: packed for name in TABLE if (packed := _packed(each.rows, name)) is not None}
    return {
        "name": each.asked.name,
        "kinds": list(each.asked.kinds),
        "columns": columns,
        "rows": len(each.rows),
        "curves": [
            {
                "label": curve.label,
                "platform": curve.platform,
                "group": curve.group,
                "run": curve.run,
                "axis": curve.axis,
                "levels": [rounded(level) for level in curve.levels],
                "rows": [int(row) for row in curve.rows],
                "marks": [[mark.position, mark.text, mark.crashed, mark.left_out] for mark in curve.marks],
                "skipped": [bool(each) for each in curve.skipped],
            }
            for curve in curves(each.rows)
        ],
    }


def _packed(rows: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """A column: numbers as they are, words as a list of the different ones and an index per row; None if empty."""
    column, series = BY_NAME[name], rows[name]
    if series.isna().all():
        return None
    if column.kind == "text":
        words = sorted({str(word) for word in series.dropna()})
        place = {word: number for number, word in enumerate(words)}
        return {
            "unit": "",
            "words": words,
            "values": [place.get(word, -1) for word in series.fillna("").astype(str)],
        }
    numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
    return {"unit": column.unit, "values": [rounded(value) for value in numbers.tolist()]}


def rounded(value: float) -> float | int | None:
    """The number with six digits, whole numbers whole; None for none."""
    if not np.isfinite(value):
        return None
    if float(value).is_integer() and abs(value) < 10**15:
        return int(value)
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) >= 10**_DIGITS else short
