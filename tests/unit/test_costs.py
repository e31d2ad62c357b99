"""What servers cost, from their records and the scheduler's accounting, and what the missing points will."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.accounting import jobs_of_slurm, parse_sacct
from berth.costing import report_costs
from berth.costs import server_costs
from berth.next_costs import next_jobs
from berth.parse import load_config
from berth.plan import make_plan

ROOT = Path(__file__).parents[2]
# 2026-01-01T00:00:00Z
MIDNIGHT = 1767225600
# sacct(1) with SLURM_TIME_FORMAT=%s: a job of four GPUs that waited 90 s, one that runs, one that waits.
SACCT = f"""\
42|{MIDNIGHT - 290}|{MIDNIGHT - 200}|{MIDNIGHT + 100}|1|billing=64,cpu=64,gres/gpu:h100=4,gres/gpu=4,mem=500G,node=1
43|{MIDNIGHT}|{MIDNIGHT + 5}|Unknown|2|billing=8,cpu=8,node=2
44|{MIDNIGHT}|Unknown|Unknown|0|
"""


def record(concurrency: int, start_s: int, **changes: Any) -> dict[str, Any]:
    """A point of ten seconds, of which the client measured eight, by a server that took 120 s to load."""
    at = f"2026-01-01T00:{start_s // 60:02d}:{{:02d}}+00:00"
    events = [("process_started", 0.0), ("warmed_up", 120.0), ("first_request", 121.0)]
    whole = {
        "point": {"experiment": "e", "platform": "hops", "spec": "0" * 10, "run": 1, "concurrency": concurrency},
        "spec": {
            "serve": {"tensor_parallel": 2, "pipeline_parallel": 1, "nodes": 1},
            "hardware": {"accelerators_per_node": 4},
        },
        "server": {
            "host": "hops15",
            "job_id": "42",
            "instance": 1,
            "timeline": [{"event": event, "elapsed_s": seconds} for event, seconds in events],
        },
        "result": {"total_output_tokens": 1600},
        "failure": None,
        "wall": {
            "start": at.format(start_s % 60),
            "end": at.format(start_s % 60 + 10),
            "duration_s": 10.0,
            "client_duration_s": 8.0,
        },
    }
    return whole | changes


def test_a_servers_time_is_split_without_a_rest() -> None:
    """Image, load, measured, around, failed and idle add up to the job's time, and hold the job's accelerators."""
    failed = record(4, 30, failure={"kind": "crash"}, result=None)
    (cost,) = server_costs([record(1, 0), record(2, 15), failed], parse_sacct(SACCT))
    assert (cost.queue_s, cost.image_s, cost.load_s) == (90.0, 80.0, 120.0)
    assert (cost.measured_s, cost.around_s, cost.failed_s) == (16.0, 4.0, 10.0)
    # Twice five seconds between points, and sixty after the last.
    assert cost.idle_s == 70.0
    assert cost.held_s == 300.0
    assert (cost.accelerators, cost.points) == (4, 2)
    assert cost.accelerator_hours == pytest.approx(4 * 300 / 3600)
    assert cost.tokens_per_accelerator_s == pytest.approx(3200 / (4 * 16))


def test_what_no_accounting_has_is_not_known() -> None:
    """Without the job, queue and image are empty, and the accelerators are those that the server used."""
    (cost,) = server_costs([record(1, 0), record(2, 15)], {})
    assert (cost.queue_s, cost.image_s, cost.idle_s, cost.accelerators) == (None, None, 5.0, 2)


def test_servers_of_two_sweeps_are_told_apart() -> None:
    """Two sweeps on one host without a scheduler are two servers by their timelines; a second instance has no queue."""
    first = record(1, 0)
    other = record(2, 15, server={**first["server"], "timeline": [{"event": "warmed_up", "elapsed_s": 99.0}]})
    again = record(4, 30, server={**first["server"], "instance": 2})
    costs = server_costs([first, other, again], parse_sacct(SACCT))
    assert [(cost.points, cost.load_s) for cost in costs] == [(1, 120.0), (1, 99.0), (1, 120.0)]
    assert costs[2].queue_s is None


def test_a_platform_without_accelerators_costs_node_hours() -> None:
    """Where a node has no accelerator there are no accelerator-hours, and no tokens for them."""
    bare = record(1, 0)
    bare["spec"]["hardware"] = {"accelerators_per_node": 0}
    (cost,) = server_costs([bare], {})
    assert (cost.accelerators, cost.accelerator_hours, cost.tokens_per_accelerator_s) == (0, 0.0, None)


def test_sacct_is_read_as_its_manual_says() -> None:
    """GPUs are counted once, a running job has no end, and one that waits is left out."""
    jobs = parse_sacct(SACCT)
    assert set(jobs) == {"42", "43"}
    assert jobs["42"].accelerators == 4
    assert (jobs["43"].ended, jobs["43"].accelerators, jobs["43"].nodes) == (None, None, 2)


def test_without_sacct_costs_are_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sacct on PATH, or no job id that Slurm could have, is no error."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert jobs_of_slurm(["42"]) == {}
    assert jobs_of_slurm(["", "f2Xk"]) == {}


def test_the_missing_points_are_priced_before_they_start(tmp_path: Path) -> None:
    """Figure 12 on Hops: each job holds its whole nodes, and its hours follow from start and points."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"platform": "hops", "select": ["fig12"]}
    config = load_config(raw, ROOT)
    model = replace(config.models["llama-3.1-405b"], revision="0" * 40)
    config = replace(config, models={**config.models, model.name: model}, results=str(tmp_path))
    jobs = next_jobs(make_plan(config, ROOT))
    assert {job.run.rpartition("/")[2] for job in jobs} == {"run1", "run2", "run3"}
    for job in jobs:
        assert job.accelerators == 16
        assert job.accelerator_hours == pytest.approx(16 * (job.start_s + job.points_s) / 3600)
        assert job.asked_s is not None
        assert job.asked_s > job.start_s + job.points_s
    levels = [job.levels for job in jobs if job.run.endswith("run1")]
    assert sorted(level for each in levels for level in each) == [2**power for power in range(11)]
    folder = report_costs(config, ROOT)
    assert f"{len(jobs)} jobs" in (folder / "costs.md").read_text()
    assert "No point was measured yet" in (folder / "costs.md").read_text()
