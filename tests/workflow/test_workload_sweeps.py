"""Rates, a user's own prompts, early stop and refinement through the real workflow, on the stand-in for vLLM.

The stand-in takes a second for any point, so that its throughput is saturated from the first level on and its knee is
the lowest level.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from workspace import Workspace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slurm"))

from slurm_cluster import use_standin

STOP = {"saturated": {"gain": 0.2, "points": 2}}
LEVELS = [4, 8, 16, 32, 64]
# Not every figure: the two experiments have fifteen, and drawing them takes longer than all else here.
TABLE = "results/tidy/points.parquet"
FIGURES = ["results/figures/deciding/output_throughput.svg", "results/figures/rates/goodput_over_rate.svg"]
WANTED = [TABLE, *FIGURES]


def files(workspace: Workspace) -> dict[str, tuple[bytes, int]]:
    """Bytes and time stamp of every record, by experiment and name."""
    folder = workspace.path / "results/points"
    return {
        f"{path.relative_to(folder).parts[0]}/{path.stem}": (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*/*/*/run*/[cq]*.json"))
    }


def benchmark(workspace: Workspace, name: str, **changes: Any) -> None:
    """Change a benchmark; None takes a key away."""

    def change(config: dict[str, Any]) -> None:
        value = config["benchmarks"][name] | changes
        config["benchmarks"][name] = {key: each for key, each in value.items() if each is not None}

    workspace.configure(change)


def table(workspace: Workspace) -> pd.DataFrame:
    return pd.read_parquet(workspace.path / TABLE)


def configured(path: Path) -> Workspace:
    """One experiment over rates with a user's own prompts, and one over concurrency that stops early."""
    workspace = Workspace.create(path)
    use_standin(workspace, runs=1, levels=LEVELS, platform="local", accelerators=1)

    def change(config: dict[str, Any]) -> None:
        demo = config["benchmarks"]["demo"]
        demo["num_prompts"] = 64
        rates = {key: value for key, value in demo.items() if key != "concurrency"}
        rates |= {"dataset": "own-prompts", "request_rates": [0.5, 2], "goodput": {"ttft_ms": 60000}}
        config["benchmarks"] |= {"rates": rates, "deciding": demo | {"stop_when": STOP, "dataset": "random-512-128"}}
        local = config["experiments"]["local"]
        config["experiments"] = {
            "rates": local | {"benchmark": "rates"},
            "deciding": local | {"benchmark": "deciding", "title": "Deciding"},
        }

    workspace.configure(change)
    return workspace


def test_sweeps_over_rates_and_sweeps_that_decide(tmp_path: Path) -> None:
    """Only what is wanted and missing is measured, a second run does nothing, and a stop is told and no failure."""
    workspace = configured(tmp_path / "workspace")

    # A line that cannot be sent is told before anything starts.
    prompts = workspace.path / "config/datasets/own-prompts.jsonl"
    good = prompts.read_text()
    prompts.write_text(good + "no\n")
    assert "own-prompts.jsonl:9: not JSON" in workspace.run("points", code=1)
    prompts.write_text(good)

    planned = workspace.planned(*WANTED)
    assert planned["levels"] == 1
    assert planned["sweep"] == planned["point"] == 2
    workspace.run(*WANTED)
    first = files(workspace)
    assert set(first) == {"rates/q0.5", "rates/q2", "deciding/c4", "deciding/c8", "deciding/c16"}
    assert workspace.planned(*WANTED) == {}
    assert "Nothing to be done" in workspace.run(*WANTED)
    rows = table(workspace)
    left = rows[rows["status"] == "left_out"]
    assert sorted(left["concurrency"]) == [32, 64]
    assert left["failure_cause"].str.startswith("stopped at concurrency 16").all()
    assert rows[rows["request_rate_req_s"].notna()]["request_rate_req_s"].tolist() == [0.5, 2]
    drawn, goodput = (workspace.path / name for name in FIGURES)
    assert ">stopped<" in drawn.read_text()
    assert "TTFT at most 60000 ms" in goodput.read_text()
    assert not list((workspace.path / "results/spool").rglob("[cq]*.json"))

    # Another rate: only this one. A point of a sweep that decides is deleted: only that one. And a refinement.
    benchmark(workspace, "rates", request_rates=[0.5, 2, 8], goodput={"ttft_ms": 1})
    benchmark(workspace, "deciding", refine={"around": "knee", "points": 3})
    (gone,) = (workspace.path / "results/points/deciding").rglob("c8.json")
    gone.unlink()
    workspace.run(*WANTED)
    second = files(workspace)
    assert set(second) - set(first) == {"rates/q8", "deciding/c5", "deciding/c6", "deciding/c7"}
    kept = set(first) - {"deciding/c8"}
    assert {name: second[name] for name in kept} == {name: first[name] for name in kept}
    assert workspace.planned(*WANTED) == {}
    rows = table(workspace)
    assert sorted(rows[rows["refined"] == "yes"]["concurrency"]) == [5, 6, 7]

    # Without the options the rest is measured, and nothing else.
    benchmark(workspace, "deciding", stop_when=None, refine=None)
    workspace.run(TABLE)
    third = files(workspace)
    assert set(third) - set(second) == {"deciding/c32", "deciding/c64"}
    assert {name: third[name] for name in second} == second
    assert workspace.planned(TABLE) == {}
    (record,) = (workspace.path / "results/points/rates").rglob("q8.json")
    assert json.loads(record.read_text())["point"]["request_rate"] == 8
    workspace.leave_nothing()
