"""Sweeps that decide: where they stop, what they add, and how the table and the figures show it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from report_points import make_report, record

from berth.coordinates import Rate, RunId
from berth.figures import draw_figure
from berth.record import write_record
from berth.spool import Spool, decided, seen_points
from berth.stopping import Asked, Seen, decide, knee
from berth.sweep import _missing
from berth.tidy import tidy_records

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.coordinates import Level
    from berth.sweep import SweepRequest

LEVELS = (1, 2, 4, 8, 16, 32)
SATURATED = {"saturated": {"gain": 0.02, "points": 2}}


def curve(throughput: Mapping[Any, float], latency_ms: float = 10.0) -> dict[Level, Seen]:
    """Points whose mean latency is so many ms per request in flight over the throughput, as in a closed system."""
    return {
        level: Seen(rate, {"mean_e2el_ms": 1e5 * float(level) / rate, "p99_ttft_ms": latency_ms * float(level)})
        for level, rate in throughput.items()
    }


FLAT = {1: 100.0, 2: 190.0, 4: 300.0, 8: 303.0, 16: 304.0}


def test_nothing_measured_wants_everything() -> None:
    """Before the first point, all levels are wanted and none is left out or added."""
    decision = decide(Asked(LEVELS, SATURATED, {"around": "knee", "points": 3}), {})
    assert decision.wanted == LEVELS
    assert not decision.left_out


def test_a_saturated_sweep_stops_after_so_many_levels_without_gain() -> None:
    """Two levels in a row that gain less than 2 % are enough; one is not, and a gain between them begins anew."""
    asked = Asked(LEVELS, SATURATED)
    assert decide(asked, curve({level: FLAT[level] for level in (1, 2, 4, 8)})).wanted == LEVELS
    decision = decide(asked, curve(FLAT))
    assert decision.wanted == (1, 2, 4, 8, 16)
    assert decision.left_out == {
        32: "stopped at concurrency 16: throughput grew by less than 0.02 of itself at 2 levels"
    }
    assert decide(asked, curve(FLAT | {8: 400.0, 16: 401.0})).wanted == LEVELS


def test_a_latency_above_its_limit_stops_the_sweep() -> None:
    """The level that passes the limit is the last one."""
    decision = decide(Asked(LEVELS, {"ttft_p99_ms": 35}), curve({1: 1.0, 2: 2.0, 4: 4.0}))
    assert decision.wanted == (1, 2, 4)
    assert set(decision.left_out) == {8, 16, 32}
    assert decision.left_out[8] == "stopped at concurrency 4: p99 TTFT 40 ms, above 35 ms"


def test_what_was_measured_stays_wanted() -> None:
    """A point above the stop that was measured before is no point to lose; other limits, or none, want the rest."""
    seen = curve(FLAT | {32: 305.0})
    assert decide(Asked((*LEVELS, 64), SATURATED), seen).wanted == LEVELS
    assert decide(Asked((*LEVELS, 64)), seen).wanted == (*LEVELS, 64)


def test_a_deleted_point_is_wanted_alone() -> None:
    """Levels below the stop are wanted whether or not they are there."""
    seen = curve(FLAT)
    del seen[2]
    asked = Asked(LEVELS, SATURATED, {"around": "knee", "points": 2})
    assert set(decide(asked, seen).wanted) - set(seen) == {2}


def test_levels_are_added_around_the_knee_once_the_others_are_measured() -> None:
    """They lie between the knee and its neighbours, evenly by ratio; the same points always give the same ones."""
    asked = Asked(LEVELS, SATURATED, {"around": "knee", "points": 3})
    assert decide(asked, curve({1: 100.0, 2: 190.0})).wanted == LEVELS
    seen = curve(FLAT)
    assert knee([1, 2, 4, 8, 16], seen) == 4
    wanted = decide(asked, seen).wanted
    assert set(wanted) - set(LEVELS) == {3, 5, 6}
    more = seen | curve({3: 250.0, 5: 301.0, 6: 302.0})
    assert decide(asked, more).wanted == wanted


def test_a_level_that_failed_holds_nothing_up() -> None:
    """The sweep goes on without it, and refines; the next one wants it again."""
    seen = curve({1: 100.0, 4: 300.0, 8: 303.0, 16: 304.0})
    asked = Asked(LEVELS, SATURATED, {"around": "knee", "points": 1})
    assert len(set(decide(asked, seen, failed=frozenset({2})).wanted) - set(LEVELS)) == 1
    assert set(decide(asked, seen).wanted) - set(seen) == {2}


def test_rates_are_added_with_few_digits() -> None:
    """Between two rates there is always room."""
    rates = (Rate(1), Rate(2), Rate(4))
    seen: dict[Level, Seen] = {
        rate: Seen(min(rate, 2.2), {"mean_e2el_ms": 100.0 if rate < 3 else 900.0}) for rate in rates
    }
    wanted = decide(Asked(rates, {}, {"around": "knee", "points": 2}), seen).wanted
    assert wanted == (Rate(1), Rate(1.41), Rate(2), Rate(2.83), Rate(4))
    assert all(isinstance(level, Rate) for level in wanted)


@pytest.fixture
def stopped(tmp_path: Path) -> list[Path]:
    """Records of two runs: the first stopped at 4 and refined to 3, the second measured everything."""
    paths = []
    for run, levels in ((1, (1, 2, 3, 4)), (2, (1, 2, 4, 8))):
        for level in levels:
            path = tmp_path / f"points/mine/hops/0123456789/run{run}/c{level}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            made = record(run, level)
            made["result"] |= {"output_throughput": 100.0 if run == 1 else 100.0 * level}
            write_record(path, made, None)
            paths.append(path)
    return paths


ASKED = {"mine": {"levels": (1, 2, 4, 8), "stop_when": SATURATED, "refine": {"around": "knee", "points": 1}}}


def test_levels_left_out_are_rows_with_their_reason(stopped: list[Path]) -> None:
    """The table tells what was not measured and why, and which levels a sweep has added."""
    table = tidy_records(stopped, [], asked=ASKED)
    left = table[table["status"] == "left_out"]
    assert left[["run", "concurrency"]].to_numpy().tolist() == [[1, 8]]
    assert left["failure_cause"].iloc[0].startswith("stopped at concurrency 4: throughput grew")
    assert table[table["refined"] == "yes"][["run", "concurrency"]].to_numpy().tolist() == [[1, 3]]


def test_a_stop_is_no_crash_in_figures_and_report(tmp_path: Path, stopped: list[Path]) -> None:
    """The word "stopped" without a cross, the reason below, and no gap where another run has added a level."""
    table = tidy_records(stopped, [], asked=ASKED)
    draw_figure(table, "output_throughput", "T", [tmp_path / "a.svg"])
    svg = (tmp_path / "a.svg").read_text()
    assert ">stopped<" in svg
    assert 'id="mark"' not in svg
    assert "Left out, and not failed" in svg
    records = [record(1, level) for level in (1, 2, 4)]
    page = make_report(tmp_path / "report", records, published=[]).read_text()
    assert "stopped" not in page


def test_evidence_is_read_from_results_and_spool(tmp_path: Path, stopped: list[Path]) -> None:
    """A point counts as soon as it is in the spool; a failure never does."""
    run = RunId("mine", "hops", "0123456789", 1)
    spooled = tmp_path / "spool" / run.key / "c4.json"
    spooled.parent.mkdir(parents=True)
    (tmp_path / "points" / run.key / "c4.json").replace(spooled)
    assert sorted(seen_points(tmp_path, run)) == [1, 2, 3, 4]
    assert decided(tmp_path, run, Asked((1, 2, 4, 8), SATURATED)).wanted == (1, 2, 3, 4)


def test_each_job_of_a_run_measures_its_own_levels_and_the_last_one_what_is_added(tmp_path: Path) -> None:
    """A run in two jobs: the second stops by the points of both, refines, and leaves what failed to the next sweep."""
    run = RunId("mine", "hops", "0123456789", 1)
    asked = Asked((1, 2, 4, 8), {"saturated": {"gain": 0.2, "points": 2}}, {"around": "knee", "points": 1})
    first, second = (
        cast("SweepRequest", SimpleNamespace(id=run, asked=asked, levels=list(part))) for part in ((1, 2), (4, 8))
    )

    def missing(job: SweepRequest) -> list[Level]:
        return _missing(job, Spool(tmp_path, run), set())

    def measure(level: int) -> None:
        made = record(1, level)
        made["result"] |= {"output_throughput": 100.0, "mean_e2el_ms": 10.0 * level}
        write_record(tmp_path / "points" / run.key / f"c{level}.json", made, None)

    assert (missing(first), missing(second)) == ([1, 2], [4, 8])
    measure(1)
    measure(4)
    # 2 is the first job's, whether it failed there or is still to come: nothing is stopped or added without it.
    assert (missing(first), missing(second)) == ([2], [8])
    measure(2)
    assert (missing(first), missing(second)) == ([], [])
    measure(8)
    (tmp_path / "points" / run.key / "c1.json").unlink()
    # A point that is gone is measured by its job again, and decides anew.
    assert (missing(first), missing(second)) == ([1], [])


def test_a_level_that_is_added_belongs_to_the_job_that_ends_the_run(tmp_path: Path) -> None:
    """The knee between the levels of two jobs is refined once both are measured, by whichever asks then."""
    run = RunId("mine", "hops", "0123456789", 1)
    asked = Asked((1, 4, 16), {}, {"around": "knee", "points": 1})
    for level, rate in ((1, 100.0), (4, 390.0), (16, 400.0)):
        second = cast("SweepRequest", SimpleNamespace(id=run, asked=asked, levels=[16]))
        assert 8 not in _missing(second, Spool(tmp_path, run), set())
        made = record(1, level)
        made["result"] |= {"output_throughput": rate, "mean_e2el_ms": 1e5 * level / rate}
        write_record(tmp_path / "points" / run.key / f"c{level}.json", made, None)
    assert _missing(second, Spool(tmp_path, run), set()) == [8]
