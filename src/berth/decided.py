"""What sweeps that stop early have left out and added, as rows of the tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.columns import PLOTTED, row_entry, row_level
from berth.stopping import Asked, Seen, decide

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_OF_RUN = ("source", "experiment", "platform", "platform_label", "deployment", "spec", "run", "mode", "dataset")


def decided_rows(rows: Collection[dict[str, Any]], asked: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row with status "left_out" for each level that a run's sweep did not measure because it had stopped.

    `asked` has `levels`, `stop_when` and `refine` of the experiments whose sweeps decide. Rows at levels that a sweep
    added get `refined` "yes".
    """
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("source") == "measured" and asked.get(row["experiment"], {}).get("levels"):
            runs.setdefault(tuple(row[name] for name in ("experiment", "platform", "spec", "run")), []).append(row)
    return [left for of_run in runs.values() for left in _left_out(of_run, asked[of_run[0]["experiment"]])]


def _left_out(of_run: list[dict[str, Any]], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = Asked(tuple(told["levels"]), told["stop_when"], told["refine"])
    seen = {}
    for row in of_run:
        level = row_level(row)
        if row["status"] in PLOTTED:
            seen[level] = Seen.of(row.get("output_throughput_tok_s"), row)
        if wanted.refine and level not in wanted.levels:
            row["refined"] = "yes"
    known = {row_level(row) for row in of_run}
    shared = {name: of_run[0].get(name) for name in _OF_RUN if of_run[0].get(name) is not None}
    return [
        {**shared, **row_entry(level, None), "status": "left_out", "failure_cause": why}
        for level, why in decide(wanted, seen).left_out.items()
        if level not in known
    ]
