"""The report's tables beside those of the points: comparison, doubts, runs; plain rows, packed for the page."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from berth.columns import PLOTTED, row_entry, row_level
from berth.coordinates import RunId
from berth.report_data import rounded
from berth.report_provenance import hide_secrets
from berth.report_words import THROUGHPUT, groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.report_data import Shown
    from berth.report_words import Group

Row = dict[str, Any]
_NEEDED = (
    *("source", "experiment", "platform", "platform_label", "deployment", "spec", "run", "host", "job_id"),
    *(
        "concurrency",
        "request_rate_req_s",
        "status",
        "reason_codes",
        "failure_kind",
        "failure_cause",
        "duration_s",
        "start",
        "end",
    ),
)


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
    pairs = [(one, other) for one, other in pairs if one.by_rate == other.by_rate]
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
            **_at(one, level),
            "output tokens/s": ours[level],
            "against, tokens/s": theirs[level],
            "ratio": ours[level] / theirs[level],
        }
        for level in sorted(ours.keys() & theirs.keys())
        if np.isfinite(ours[level]) and theirs[level] > 0
    ]


def doubts(each: Shown, provenance: Mapping[str, Any]) -> list[Row]:
    """One row per reason of every point that was flagged, was refused or broke off, with cause, remedy and log.

    Reasons that the configuration accepts are among them.
    """
    rows: list[Row] = []
    for point in _points(each):
        status = point["status"]
        accepted = status == "ok" and point["source"] == "measured" and bool(_text(point["reason_codes"]))
        if status in {"ok", "not_run", "left_out"} and not accepted:
            continue
        told = provenance["doubts"].get(_key(point), {}) if point["source"] == "measured" else {}
        failure = told.get("failure") or {}
        base = {
            "experiment": each.asked.name,
            "platform": _text(point["platform_label"]),
            "run": int(point["run"]),
            **{name: value for name, value in row_entry(row_level(point), None).items() if value is not None},
            "verdict": "accepted" if accepted else "flagged" if status == "flagged" else "refused",
        }
        found = [
            {
                "code": r["code"],
                "found": r["message"] + (" Accepted by the configuration." if r.get("action") == "accept" else ""),
                "value": _number(r.get("value")),
                "threshold": _number(r.get("threshold")),
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
    measured: dict[tuple[str, str, int], list[Row]] = {}
    for point in _points(each):
        if point["source"] == "measured":
            measured.setdefault((point["platform"], point["spec"], int(point["run"])), []).append(point)
    rows = []
    for (platform, spec, run), points in sorted(measured.items()):
        servers = provenance["runs"].get(RunId(each.asked.name, platform, spec, run).key, {}).get("servers", [])
        warm_s = [
            float(event["elapsed_s"])
            for server in servers
            for event in server.get("timeline") or []
            if event["event"] == "warmed_up"
        ]
        statuses = [point["status"] for point in points]
        rows.append(
            {
                "experiment": each.asked.name,
                "platform": _text(points[0]["platform_label"]),
                "deployment": _text(points[0]["deployment"]),
                "spec": spec,
                "run": run,
                "hosts": _all_of(points, "host"),
                "jobs": _all_of(points, "job_id"),
                "servers": len(servers),
                "start to warm, s": warm_s[0] if warm_s else None,
                "points": sum(status in PLOTTED for status in statuses),
                "flagged": statuses.count("flagged"),
                "failed": statuses.count("failed") + statuses.count("crashed"),
                "measured, s": sum(0.0 if pd.isna(p["duration_s"]) else float(p["duration_s"]) for p in points),
                "first": min((text for p in points if (text := _text(p["start"]))), default=""),
                "last": max((text for p in points if (text := _text(p["end"]))), default=""),
            }
        )
    return rows


def _points(each: Shown) -> list[Row]:
    """The rows with what these tables need of them, as plain values: pandas is slow at thousands of single cells."""
    return [{str(name): value for name, value in row.items()} for row in each.rows[list(_NEEDED)].to_dict("records")]


def _all_of(points: Sequence[Row], name: str) -> str:
    return ", ".join(sorted({text for point in points if (text := _text(point[name]))}))


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
    return run.point(row_level(point)).key


def _at(group: Group, level: float) -> Row:
    return {"request_rate_req_s": level} if group.by_rate else {"concurrency": int(level)}


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(hide_secrets(str(value)))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
