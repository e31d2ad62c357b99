"""What the sections of the report's page say, as plain values for its template."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from berth.columns import row_level
from berth.figures import KINDS
from berth.mode import mode_of
from berth.report_words import alternative, meanings, summary
from berth.validity import FLAGGING, REFUSING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.coordinates import Level
    from berth.report_data import Shown


def counts(each_shown: Sequence[Shown]) -> dict[str, int]:
    """How many points there are of each kind."""
    by_status = dict.fromkeys(("ok", "flagged", "failed", "crashed", "not_run", "left_out", "published", "imported"), 0)
    for each in each_shown:
        for source, status in zip(each.rows["source"], each.rows["status"], strict=True):
            if source == "measured":
                by_status[str(status)] += 1
            elif source in by_status:
                by_status[str(source)] += 1
    return {
        "measured": by_status["ok"] + by_status["flagged"],
        "flagged": by_status["flagged"],
        "failed": by_status["failed"] + by_status["crashed"],
        "missing": sum(each.asked.missing for each in each_shown),
        "published": by_status["published"],
        "imported": by_status["imported"],
    }


def span(each_shown: Sequence[Shown]) -> tuple[str, str]:
    """The days of the first and the last measurement, "" where there is none."""
    starts = [str(text) for each in each_shown for text in each.rows["start"].dropna()]
    ends = [str(text) for each in each_shown for text in each.rows["end"].dropna()]
    return (min(starts)[:10], max(ends)[:10]) if starts and ends else ("", "")


def section(each: Shown, origin: Mapping[str, Any], profiles: Mapping[str, str]) -> dict[str, Any]:
    """One experiment: its words, figures, definitions, and how to measure it again. `profiles` are by platform."""
    asked = each.asked
    measured = each.rows[each.rows["source"] == "measured"]
    definitions = []
    for spec in sorted({str(spec) for spec in measured["spec"].dropna()}):
        of_spec = {
            key: run for key, run in origin["runs"].items() if key.startswith(f"{asked.name}/") and f"/{spec}/" in key
        }
        servers = [server for run in of_spec.values() for server in run["servers"]]
        full = origin["definitions"].get(spec, {})
        definitions.append(
            {
                "spec": spec,
                "full": json.dumps(full, indent=2, ensure_ascii=False),
                "deployments": sorted({str(run["deployment"]) for run in of_spec.values()}),
                "facts": _facts(full, servers),
                "server": _command(server.get("command") for server in servers),
                "client": _command((server.get("client") or {}).get("command") for server in servers),
            }
        )
    platforms = sorted({str(name) for name in measured["platform"].dropna()})
    select = shlex.quote(f"select={json.dumps([asked.name])}")
    again = [f"snakemake --profile {profiles.get(name, 'profiles/NAME')} --config {select}" for name in platforms]
    return {
        "name": asked.name,
        "title": asked.title,
        "missing": asked.missing,
        "summary": summary(each),
        "notes": each.notes,
        "figures": [
            {
                "kind": kind,
                "label": _title(kind),
                "words": alternative(each, KINDS[kind].panels[0], _panel_name(kind)),
            }
            for kind in asked.kinds
        ],
        "definitions": definitions,
        "again": again or [f"snakemake --profile profiles/local html_report --config {select}"],
        "measured": bool(platforms),
        "published": list(asked.published),
    }


def _title(kind: str) -> str:
    over = {"concurrency": "", "request_rate_req_s": " over request rate"}.get(
        KINDS[kind].panels[0].x, " against median latency"
    )
    return f"{KINDS[kind].label}{over}"


def _panel_name(kind: str) -> str:
    """What a figure shows first."""
    panel = KINDS[kind].panels[0]
    return f"{KINDS[kind].label}, {panel.title.lower()}" if panel.title else KINDS[kind].label


def _facts(full: Mapping[str, Any], servers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What defines the measurement, for people: name and value."""
    model, image, serve, hardware, bench = (
        full.get(name) or {} for name in ("model", "image", "serve", "hardware", "benchmark")
    )
    dataset = bench.get("dataset")
    versions = sorted({str(server["version"]) for server in servers if server.get("version")})
    clients = sorted({f"{(c := server['client']).get('name')} {c.get('version') or ''}".strip() for server in servers})
    digests = sorted({str((server.get("image") or {}).get("digest")) for server in servers if server.get("image")})
    split = f"tensor {serve.get('tensor_parallel')}, pipeline {serve.get('pipeline_parallel')}"
    nodes = int(serve.get("nodes") or 1)
    facts = [
        ("Model", str(model.get("repo"))),
        ("Revision", str(model.get("revision") or "none: generated from a seed")),
        ("Engine", f"{serve.get('recipe')} {', '.join(versions) or serve.get('version')}"),
        ("Image", str(image.get("reference"))),
        ("Image digest", ", ".join(digests) or str(image.get("digest"))),
        ("Parallelism", f"{split}, {nodes} node{'s' if nodes > 1 else ''}"),
        ("Accelerators", f"{hardware.get('accelerator')}, {hardware.get('accelerators_per_node')} per node"),
        ("Dataset", str(dataset.get("name") if isinstance(dataset, dict) else dataset)),
        ("Prompts per point", str(bench.get("num_prompts"))),
        ("Seed, request rate", f"{bench.get('seed')}, {bench.get('request_rate')}"),
        ("Mode", mode_of(bench)),
        ("Client", ", ".join(clients)),
    ]
    return [(name, value) for name, value in facts if value]


def _command(commands: Any) -> str:
    """The first of the commands as a person would type it; "" where there is none."""
    return next((shlex.join(map(str, words)) for words in commands if words), "")


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per pair of curves the range of the ratio."""
    pairs: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["experiment"], row["curve"], row["against"]), []).append(row)
    return [
        {
            "experiment": experiment,
            "curve": curve,
            "against": against,
            "levels": len(found),
            "low": _ratio(min(found, key=lambda row: float(row["ratio"]))),
            "high": _ratio(max(found, key=lambda row: float(row["ratio"]))),
        }
        for (experiment, curve, against), found in pairs.items()
    ]


def _ratio(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"ratio": row["ratio"], "at": str(row_level(row))}


_WORST_FIRST = ("refused", "flagged", "accepted")


def findings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The doubts by their code, those that refuse first, with what each means."""
    known, order = meanings(), [*REFUSING, *FLAGGING]
    by_code: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_code.setdefault(row["code"], []).append(row)
    told = []
    for code in sorted(by_code, key=lambda code: (code in FLAGGING, order.index(code) if code in order else -1, code)):
        found = by_code[code]
        where: dict[str, list[Level]] = {}
        for row in found:
            where.setdefault(f"{row['experiment']}, {row['platform']} run {row['run']}", []).append(row_level(row))
        told.append(
            {
                "code": code,
                "verdict": next(each for each in _WORST_FIRST if any(row["verdict"] == each for row in found)),
                "count": len({(r["experiment"], r["platform"], r["run"], row_level(r)) for r in found}),
                "meaning": known.get(code),
                "where": [f"{name}: at {', '.join(map(str, sorted(set(levels))))}" for name, levels in where.items()],
                "example": str(found[0].get("found") or found[0].get("cause of the end") or ""),
            }
        )
    return told
