"""The report's tables beside those of the points: comparison, doubts, runs; plain rows, packed for the page."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from berth.columns import PLOTTED
from berth.coordinates import RunId
from berth.report_data import rounded
from berth.report_provenance import hide_secrets
from berth.report_words import THROUGHPUT, groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.report_data import Shown
    from berth.report_words import Group

Row = dict[str, Any]


def comparison(each: Shown) -> list[Row]:
    """Output throughput of every measured group against every published one, level by level, means over their runs.

    Where nothing was measured, the published groups are compared with each other.
    """
    found = groups(each.rows)
    measured = [group for group in found if group.source != "published"]
    published = [group for group in found if group.source == "published"]
    pairs = [(one, other) for one in measured for other in published] or [
        (one, other) for other, one in combinations(published, 2)
    ]
    return [row for one, other in pairs for row in _compared(each.asked.name, one, other)]


def _compared(experiment: str, one: Group, other: Group) -> list[Row]:
    ours, theirs = (
        dict(zip(group.levels.tolist(), group.mean(THROUGHPUT).tolist(), strict=True)) for group in (one, other)
    )
    return [
        {
            "experiment": experiment,
            "curve": one.name,
            "against": other.name,
            "concurrency": int(level),
            "output tokens/s": ours[level],
            "against, tokens/s": theirs[level],
            "ratio": ours[level] / theirs[level],
        }
        for level in sorted(ours.keys() & theirs.keys())
        if np.isfinite(ours[level]) and theirs[level] > 0
    ]


def doubts(each: Shown, provenance: Mapping[str, Any]) -> list[Row]:
    """One row per reason of every point that was flagged, was refused or broke off, with cause, remedy and log."""
    rows: list[Row] = []
    for number, status in enumerate(each.rows["status"]):
        if status in {"ok", "not_run"}:
            continue
        point = each.rows.iloc[number]
        told = provenance["doubts"].get(_key(point), {}) if point["source"] == "measured" else {}
        failure = told.get("failure") or {}
        base = {
            "experiment": each.asked.name,
            "platform": _text(point["platform_label"]),
            "run": int(point["run"]),
            "concurrency": int(point["concurrency"]),
            "verdict": "flagged" if status == "flagged" else "refused",
        }
        found = [
            {
                "code": r["code"],
                "found": r["message"],
                "value": _number(r["value"]),
                "threshold": _number(r["threshold"]),
            }
            for r in told.get("reasons") or []
        ]
        if not found:
            codes = _text(point["reason_codes"]) or _text(point["failure_kind"])
            code = codes or ("crash" if status == "crashed" else "failed")
            found = [{"code": each_code, "found": _text(point["failure_cause"])} for each_code in code.split(";")]
        more = {"remedy": failure.get("remedy", ""), "log": failure.get("log", "")}
        if status == "crashed" or failure.get("kind") == "crash":
            more["cause of the end"] = failure.get("cause") or _text(point["failure_cause"])
        rows += [{**base, **reason, **more} for reason in found]
    return rows


def runs(each: Shown, provenance: Mapping[str, Any]) -> list[Row]:
    """One row per measured run: where and when, what served it, how many points of each status."""
    measured = each.rows[each.rows["source"] == "measured"]
    rows = []
    for key, points in measured.groupby(["platform", "spec", "run"], sort=True):
        platform, spec, run = str(key[0]), str(key[1]), int(str(key[2]))
        noted = provenance["runs"].get(RunId(each.asked.name, platform, spec, run).key, {})
        servers = noted.get("servers", [])
        started = [
            max(
                (float(event["elapsed_s"]) for event in server.get("timeline") or [] if event["event"] == "warmed_up"),
                default=None,
            )
            for server in servers
        ]
        rows.append(
            {
                "experiment": each.asked.name,
                "platform": _text(points["platform_label"].iloc[0]),
                "deployment": _text(points["deployment"].iloc[0]),
                "spec": spec,
                "run": run,
                "hosts": ", ".join(sorted({str(host) for host in points["host"].dropna()})),
                "jobs": ", ".join(sorted({str(job) for job in points["job_id"].dropna()})),
                "servers": len(servers),
                "start to warm, s": next((value for value in started if value is not None), None),
                "points": int(points["status"].isin(PLOTTED).sum()),
                "flagged": int((points["status"] == "flagged").sum()),
                "failed": int(points["status"].isin(["failed", "crashed"]).sum()),
                "measured, s": float(points["duration_s"].fillna(0).sum()),
                "first": _text(points["start"].dropna().min() if points["start"].notna().any() else None),
                "last": _text(points["end"].dropna().max() if points["end"].notna().any() else None),
            }
        )
    return rows


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows by column for the page's script, in the form that `report_data.for_page` has; empty columns are left out."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        if all(cell is None or cell == "" for cell in cells):
            continue
        if any(isinstance(cell, str) for cell in cells):
            texts = ["" if cell is None else str(cell) for cell in cells]
            words = sorted(set(texts) - {""})
            place = {word: number for number, word in enumerate(words)}
            columns[name] = {"unit": "", "words": words, "values": [place.get(text, -1) for text in texts]}
        else:
            values = [None if cell is None else rounded(float(cell)) for cell in cells]
            columns[name] = {"unit": "", "values": values}
    return {"columns": columns, "rows": len(rows)}


def _key(point: Any) -> str:
    run = RunId(str(point["experiment"]), str(point["platform"]), str(point["spec"]), int(point["run"]))
    return run.point(int(point["concurrency"])).key


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(hide_secrets(str(value)))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
