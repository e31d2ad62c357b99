"""How long a sweep takes by earlier records and published curves, and how it is cut into jobs."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from berth import parts
from berth.coordinates import Rate
from berth.errors import BerthError
from berth.prediction import estimate
from berth.walltime import SAFETY, Estimate, from_throughput, interpolated, point_seconds, split, start_s

ROOT = Path(__file__).resolve().parents[2]
SPEC = "0123456789"
LEVELS = [2**n for n in range(11)]
SCOUT_BYTES = 217_283_738_720


def predicted(results: Path, **changes: object) -> Estimate:
    settings = {
        "results": results,
        "spec": SPEC,
        "levels": LEVELS,
        "num_prompts": 1000,
        "weights_bytes": SCOUT_BYTES,
        "published_dir": ROOT / "data/published",
        "published": (),
        "platform": "hops",
    }
    return estimate(**{**settings, **changes})  # type: ignore[arg-type]


def write_record(results: Path, level: int, duration_s: float, start: float, run: int = 1) -> Path:
    path = results / f"points/e/p/{SPEC}/run{run}/c{level}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "point": {"concurrency": level},
        "wall": {"duration_s": duration_s},
        "server": {"timeline": [{"event": "health", "elapsed_s": 1.0}, {"event": "warmed_up", "elapsed_s": start}]},
    }
    path.write_text(json.dumps(record))
    return path


def test_start_is_that_of_the_published_log() -> None:
    """Scout's bytes give the published 14 minutes, and a model four times as large loads four times as long."""
    assert start_s(SCOUT_BYTES) == pytest.approx(840)
    assert start_s(4 * SCOUT_BYTES) - start_s(SCOUT_BYTES) == pytest.approx(3 * 380)


def test_prediction_covers_the_published_sweep(tmp_path: Path) -> None:
    """Without records the points take what the published example took, within a tenth; the job is longer than all."""
    wall_s = [938, 542, 339, 225, 165, 112, 79, 63, 57, 55]
    result = predicted(tmp_path)
    for level, seconds in zip(LEVELS[1:], wall_s, strict=True):
        assert result.points_s[level] == pytest.approx(seconds, rel=0.1)
    # The published first point has 348 s of image pull, which belong to the start here.
    assert result.points_s[1] == pytest.approx(2062 - 348, rel=0.1)
    assert result.job_s(LEVELS, 180) > 840 + 2062 + sum(wall_s)


def test_published_curve_of_the_platform_comes_first_and_its_slowest_run_counts(tmp_path: Path) -> None:
    """405B takes hours by its own published figure; a crash in it is no measurement."""
    result = predicted(tmp_path, published=("beltre2025/fig12",))
    assert result.points_s[1] == pytest.approx(182_000 / 12.49 + 14)
    # The slower of the two runs that reached it.
    assert result.points_s[512] == pytest.approx(182_000 / 1225.20 + 14)
    assert result.points_s[1024] == pytest.approx(182_000 / 1256.34 + 14)


def test_fewer_prompts_take_less(tmp_path: Path) -> None:
    """The measured part of a point follows its number of prompts; what is lost beside it does not."""
    tenth = predicted(tmp_path, num_prompts=100).points_s[1]
    assert tenth - 14 == pytest.approx((predicted(tmp_path).points_s[1] - 14) / 10)


def test_earlier_records_come_before_published_curves(tmp_path: Path) -> None:
    """What was measured with this spec counts, the slowest of it; unmeasured levels are scaled by the nearest."""
    published = predicted(tmp_path)
    write_record(tmp_path, 4, 10.0, 30.0)
    write_record(tmp_path, 4, 12.0, 20.0, run=2)
    result = predicted(tmp_path)
    assert result.start_s == 30.0
    assert result.points_s[4] == 12.0
    assert result.points_s[8] == pytest.approx(12.0 * published.points_s[8] / published.points_s[4])


def test_record_that_cannot_be_read_is_only_not_known(tmp_path: Path) -> None:
    """A record without times does not keep anything from being planned."""
    write_record(tmp_path, 4, 10.0, 30.0).write_text('{"point": {"concurrency": 4}}')
    assert predicted(tmp_path) == predicted(tmp_path / "nothing")


def test_levels_between_and_outside_the_curve() -> None:
    """Between two levels the curve is interpolated; below it half the concurrency takes twice; above it no less."""
    curve = {2: 100.0, 8: 25.0}
    assert interpolated(4, curve) == pytest.approx(50.0)
    assert interpolated(1, curve) == 200.0
    assert interpolated(64, curve) == 25.0
    assert point_seconds([1, 2], {}, curve) == {1: 200.0, 2: 100.0}
    assert from_throughput({1: 182.0, 2: 0.0}, 10) == {1: 24.0}


ESTIMATE = Estimate(start_s=600.0, points_s={1: 1200.0, 2: 600.0, 4: 300.0, 8: 60.0})


def cut(max_minutes: int | None, levels: list[int]) -> list[list[int]]:
    return split(ESTIMATE, levels, max_minutes=max_minutes, warn_s=60, where="deployment d", key="file: max_minutes")


def test_sweep_that_fits_is_one_job() -> None:
    """No job is cut where it fits, or where there is no limit; no levels make no job."""
    whole = ESTIMATE.job_minutes([1, 2, 4, 8], 60)
    assert cut(whole, [1, 2, 4, 8]) == [[1, 2, 4, 8]]
    assert cut(None, [1, 2]) == [[1, 2]]
    assert cut(whole, []) == []


@pytest.mark.parametrize("max_minutes", [48, 52, 62, 63, 71])
def test_every_job_of_a_cut_sweep_fits(max_minutes: int) -> None:
    """Levels keep their order, none is lost, each job fits with its own start, and none could take one more."""
    levels = [1, 2, 4, 8]
    jobs = cut(max_minutes, levels)
    assert [level for job in jobs for level in job] == levels
    assert len(jobs) > 1
    for job in jobs:
        assert SAFETY * (600 + sum(ESTIMATE.points_s[level] for level in job)) + 60 + 60 + 60 <= 60 * max_minutes
    for job, after in itertools.pairwise(jobs):
        assert ESTIMATE.job_minutes([*job, after[0]], 60) > max_minutes


def test_point_that_fits_no_job_is_one_clear_error() -> None:
    """A limit below start and one point names the setting, the point, both times and what to do."""
    with pytest.raises(BerthError) as caught:
        cut(47, [1, 2])
    text = str(caught.value)
    assert "file: max_minutes: 47 minutes are too short for deployment d at concurrency 1" in text
    assert "the start of the server (10.0 min) and this point (20.0 min)" in text
    assert "need 48 minutes" in text


def test_part_in_a_path_says_its_levels_and_what_is_before_it() -> None:
    """The text of each job names its own range last, and the text of the job before is what stands before it."""
    told = parts.texts([[1, 2], [8], [16, 32, 64]])
    assert told == ["c1-2", "c1-2.8-8", "c1-2.8-8.16-64"]
    assert [parts.levels_of(text, [1, 2, 8, 16, 32, 64]) for text in told] == [[1, 2], [8], [16, 32, 64]]
    assert [parts.before(text) for text in told] == ["", *told[:-1]]


def test_part_of_a_sweep_over_rates_has_no_point_in_its_numbers() -> None:
    """The point separates jobs, so that the decimal point of a rate is written otherwise, and read again."""
    rates = [Rate(0.5), Rate(1), Rate(2.25)]
    told = parts.texts([rates[:2], rates[2:]])
    assert told == ["q0_5-1", "q0_5-1.2_25-2_25"]
    assert all(re.fullmatch(parts.PATTERN, text) for text in told)
    assert [parts.levels_of(text, rates) for text in told] == [rates[:2], rates[2:]]
