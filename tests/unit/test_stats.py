"""Statistics over runs: the formulas, the variance split, and the paper's claim checked on its own data."""

from __future__ import annotations

import functools
import itertools
import math
import random
import statistics
from pathlib import Path

import pytest

from berth.analysis import StatisticsSettings
from berth.frames import combine, frame, read_published
from berth.fsio import sha256_file
from berth.spread import Group, Spread, measure_spread
from berth.stats import holm, mean_of, pooled, runs_for, spread_interval, welch
from berth.variance import TERMS, Observation, split

PUBLISHED = Path(__file__).parents[2] / "data" / "published" / "beltre2025"
DOCS = Path(__file__).parents[2] / "docs" / "statistics.md"
# docs/statistics.md and the default tolerances rest on exactly these files.
PINNED = {
    "fig9.csv": "71c32d9ce3a26daa8895ddb8d9ba4e479fad0908832526a3307d85d55b1f50af",
    "fig10.csv": "92c3c36ff7d5f48c61d0070b47128fd1ef073e565409d22dfa04aa3343440817",
    "fig12.csv": "97ca2c15bdcca70c171abff8489d1c840f42516b5b9d995cba4c4497256baa4f",
}


@functools.cache
def published(name: str) -> Spread:
    return measure_spread(read_published(PUBLISHED / name), StatisticsSettings())


def group(spread: Spread, label: str) -> Group:
    return next(each for each in spread.groups if each.label == label)


def test_interval_is_students() -> None:
    """The interval of 1, 2, 3, 4 is that of a table of t (3.182 for 3 degrees of freedom); one run has none."""
    mean = mean_of([1, 2, 3, 4], 0.95)
    half = 3.18245 * statistics.stdev([1, 2, 3, 4]) / 2
    assert (mean.low, mean.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-5)
    assert mean_of([7.0], 0.95).low is None
    assert mean_of([7.0], 0.95).cv is None


def test_suggested_runs_reach_the_precision_and_one_less_does_not() -> None:
    """The number is the smallest whose interval is narrow enough, and None where no reasonable number is."""
    assert runs_for(0.03, 0.02, 0.95) == 12
    assert 2.2010 * 0.03 / math.sqrt(12) <= 0.02 < 2.2281 * 0.03 / math.sqrt(11)
    assert runs_for(0.0, 0.02, 0.95) == 2
    assert runs_for(5.0, 0.001, 0.95) is None


def test_welch_and_hedges_agree_with_published_worked_numbers() -> None:
    """t, degrees of freedom and g follow their textbook formulas, and the interval of g holds g."""
    first, second = [1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 6.0]
    found = welch(first, second, 0.95)
    assert found.t == pytest.approx(-1.16775, abs=1e-5)
    assert found.df == pytest.approx(5.58462, abs=1e-5)
    assert found.p == pytest.approx(0.29033, abs=1e-5)
    # d = -1.25 / 1.51383; the exact correction for 6 degrees of freedom is 0.86863.
    assert found.g == pytest.approx(-0.71724, abs=1e-4)
    assert found.g_low is not None
    assert found.g_high is not None
    assert found.g_low < found.g < 0 < found.g_high


@pytest.mark.parametrize("pair", [([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_what_cannot_be_tested_has_no_p(pair: tuple[list[float], list[float]]) -> None:
    """One run, or runs without any spread, give no p-value rather than a certain one."""
    assert welch(*pair, 0.95).p is None


@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-9])
def test_runs_with_hardly_any_spread_have_an_effect_size(spread: float) -> None:
    """Effect size and interval go on as one over the spread, where scipy's own distribution has no number any more."""
    found = welch([50.0, 50.0 + spread], [100.0, 100.0 + spread], 0.95)
    like = welch([50.0, 50.1], [100.0, 100.1], 0.95)
    for mine, theirs in ((found.g, like.g), (found.g_low, like.g_low), (found.g_high, like.g_high)):
        assert mine is not None
        assert theirs is not None
        assert mine * spread == pytest.approx(theirs * 0.1, rel=1e-4)


def test_effect_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """In about 90 of 100 samples of five runs with a true effect of 1, the 90 % interval of g holds it."""
    source = random.Random(4)
    held = 0
    for _ in range(100):
        found = welch([source.gauss(1, 1) for _ in range(5)], [source.gauss(0, 1) for _ in range(5)], 0.9)
        assert found.g_low is not None
        assert found.g_high is not None
        held += found.g_low <= 0.9027 <= found.g_high
    assert 83 <= held <= 97


def test_holm_adjusts_step_by_step() -> None:
    """Three p-values are multiplied by 3, 2, 1 in their order, and never fall below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_pooling_weighs_by_degrees_of_freedom() -> None:
    """Spreads of 2 and 5 runs are pooled with 1 and 4 degrees of freedom; single runs add none."""
    assert pooled([(2, 0.03), (5, 0.01), (1, 9.0)]) == (pytest.approx(math.sqrt((0.0009 + 0.0004) / 5)), 5)
    assert pooled([(1, 0.5)]) is None
    low, high = spread_interval(0.03, 11, 0.95)
    assert (low, high) == pytest.approx((0.02125, 0.05094), abs=1e-5)


def test_variance_split_finds_what_was_put_in() -> None:
    """From simulated platforms, hosts, runs and points, unbalanced, the split gives back each spread."""
    source = random.Random(1)
    seen = []
    for platform in range(5):
        for host in range(12):
            at_host = source.gauss(0, 0.05)
            for run in range(2 + host % 3):
                at_run = source.gauss(0, 0.02)
                # Not every run has every level.
                for level in range(4 + run % 2):
                    value = math.exp(5 + level + platform + at_host + at_run + source.gauss(0, 0.01))
                    seen.append(Observation(str(platform), f"h{host}", str(run), level, value))
    found = {part.term: part for part in split(seen, 0.95)}
    assert found["host"].sd == pytest.approx(0.05, rel=0.25)
    assert found["run"].sd == pytest.approx(0.02, rel=0.25)
    assert found["point"].sd == pytest.approx(0.01, rel=0.15)
    assert found["platform"].df == 4
    assert sum(part.share or 0 for part in found.values()) == pytest.approx(1)


def test_variance_split_of_balanced_runs_is_the_classical_one() -> None:
    """Two runs per host at one level: host and run are those of the textbook's one-way analysis."""
    hosts = [[1.0, 1.2], [2.0, 2.1], [1.5, 1.9]]
    seen = [
        Observation("p", f"h{number}", str(run), 1, math.exp(value))
        for number, values in enumerate(hosts)
        for run, value in enumerate(values)
    ]
    within = statistics.fmean(statistics.variance(values) for values in hosts)
    between = statistics.variance([statistics.fmean(values) for values in hosts])
    found = {part.term: part for part in split(seen, 0.95)}
    assert found["host"].sd == pytest.approx(math.sqrt(between - within / 2))
    assert found["run"].sd == pytest.approx(math.sqrt(within))
    assert found["point"].sd is None


def test_variance_split_says_what_it_cannot_tell() -> None:
    """Without a host with two runs, a second platform, or known hosts, the term is empty and says why."""
    runs = [Observation("p", f"h{run}", str(run), level, 1 + run + level) for run in range(3) for level in range(3)]
    found = {part.term: part for part in split(runs, 0.95)}
    assert [term for term in TERMS if found[term].sd is None] == ["platform", "platform x level", "run"]
    assert "no host has two runs" in found["run"].told
    assert "host and run together" in found["host"].told
    hidden = [Observation(each.platform, "", each.run, each.level, each.value) for each in runs]
    found = {part.term: part for part in split(hidden, 0.95)}
    assert "not known" in found["host"].told
    assert found["run"].df == 2
    assert split([], 0.95) == []


def test_only_valid_points_count_and_the_others_are_told() -> None:
    """A crashed point with a number does not enter the mean, and its run and status are told."""
    shared = {"source": "measured", "experiment": "e", "platform": "p", "spec": "0123456789", "concurrency": 4}
    values = [("ok", 10.0), ("flagged", 12.0), ("crashed", 1.0), ("failed", 2.0), ("ok", None)]
    rows = [
        {**shared, "run": run, "status": status, "output_throughput_tok_s": value}
        for run, (status, value) in enumerate(values, start=1)
    ]
    (level,) = measure_spread(frame(rows), StatisticsSettings()).groups[0].levels
    assert level.numbers == (10.0, 12.0)
    assert level.left_out == ("run 3: crashed", "run 4: failed", "run 5: no such number")


def test_platforms_are_tested_level_by_level_with_holm() -> None:
    """Each level that two definitions share is tested, and the p-values are adjusted over those levels."""
    spread = published("fig10.csv")
    assert [each.concurrency for each in spread.differences] == [2**power for power in range(11)]
    assert all(each.p_holm is not None and each.test.p is not None for each in spread.differences)
    assert all((each.p_holm or 0) >= (each.test.p or 1) for each in spread.differences)
    at_32 = next(each for each in spread.differences if each.concurrency == 32)
    assert at_32.ratio == pytest.approx(602.482 / 620.27)


@pytest.mark.parametrize("name", PINNED)
def test_the_published_data_are_those_of_the_documentation(name: str) -> None:
    """The files behind the numbers of docs/statistics.md are unchanged; whoever changes one must check the page."""
    assert sha256_file(PUBLISHED / name) == PINNED[name]


@pytest.mark.parametrize(
    ("name", "label", "runs", "cv", "df"),
    [
        ("fig9.csv", "Hops", 2, 0.0028, 11),
        ("fig9.csv", "El Dorado", 2, 0.0319, 11),
        ("fig10.csv", "Hops", 5, 0.0033, 44),
        ("fig10.csv", "Goodall", 2, 0.0037, 11),
        ("fig12.csv", "Hops", 3, 0.0399, 18),
    ],
)
def test_run_to_run_variability_of_the_paper(name: str, label: str, runs: int, cv: float, df: int) -> None:
    """The claim of low variability holds for one node of H100s (0.3 %), and not for MI300A or the 405B (3 to 4 %)."""
    found = group(published(name), label)
    assert (found.runs, found.df) == (runs, df)
    assert found.pooled_cv == pytest.approx(cv, abs=5e-5)
    assert f"{100 * cv:.2f} %" in DOCS.read_text()


def test_variability_of_the_405b_grows_with_concurrency() -> None:
    """Up to 32 requests its runs are within 1 % of each other's mean; at 512 two of them are 22 % apart."""
    levels = {level.concurrency: level.mean for level in group(published("fig12.csv"), "Hops").levels}
    cvs = {level: mean.cv for level, mean in levels.items() if mean is not None and mean.cv is not None}
    assert max(cv for level, cv in cvs.items() if level <= 32) < 0.01
    assert cvs[512] == pytest.approx(0.1553, abs=5e-5)


def test_default_tolerances_follow_from_the_published_spread() -> None:
    """95 of 100 pairs of runs differ by less than 5 % at a point; 15 of 16 by less than 3 % over a curve."""
    rows = combine([read_published(PUBLISHED / name) for name in PINNED])
    rows = rows[rows["status"] == "ok"]
    points, curves = [], []
    for _, table in rows.groupby(["figure", "platform"]):
        runs = {
            run: dict(zip(of_run["concurrency"], of_run["output_throughput_tok_s"], strict=True))
            for run, of_run in table.groupby("run")
        }
        for first, second in itertools.combinations(runs.values(), 2):
            gaps = [math.log(first[level] / second[level]) for level in first.keys() & second.keys()]
            points += [abs(gap) for gap in gaps]
            curves.append(abs(statistics.fmean(gaps)))
    assert (len(points), sum(gap < 0.05 for gap in points)) == (169, 161)
    assert (len(curves), sum(gap < 0.03 for gap in curves)) == (16, 15)


def test_definitions_of_one_platform_are_told_apart_by_the_least_that_does() -> None:
    """The tool of an import, the deployment, or else the spec; a platform with one definition has its name alone."""
    shared = {"source": "measured", "experiment": "e", "run": 1, "concurrency": 1, "status": "ok"}
    rows = [
        {**shared, "platform": "p", "deployment": "x", "spec": "a" * 10},
        {**shared, "platform": "p", "deployment": "y", "spec": "b" * 10},
        {**shared, "platform": "p", "deployment": "y", "spec": "c" * 10},
        {**shared, "platform": "p", "source": "imported", "client": "aiperf", "spec": "d" * 10},
        {**shared, "platform": "q", "deployment": "x", "spec": "a" * 10},
    ]
    numbers = frame([{**each, "output_throughput_tok_s": 1.0} for each in rows])
    labels = [each.label for each in measure_spread(numbers, StatisticsSettings()).groups]
    assert labels == ["p x", f"p y {'b' * 10}", f"p y {'c' * 10}", "p imported from aiperf", "q"]
