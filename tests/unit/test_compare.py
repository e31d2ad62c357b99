"""Points against others, published ones and baselines: verdicts, what counts as the same, what a baseline keeps."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_tidy import failure, record, refused, write

from berth._compare_report import csv_text, page, summary
from berth.analysis import CompareSettings, Tolerance, compare_settings, statistics_settings
from berth.baseline import read_baseline, store_baseline
from berth.compare import Comparison, compare
from berth.errors import BerthError
from berth.frames import frame
from berth.markdown import number, percent, table
from berth.sources import Source, open_source

ROOT = Path(__file__).parents[2]
RATE = "output_throughput_tok_s"
LIMITS = CompareSettings({RATE: Tolerance(0.1, "a test", curve_tolerance=0.05)})


def row(concurrency: int, rate: float | None, **changes: Any) -> dict[str, Any]:
    settings = {"num_prompts": 1000, "tensor_parallel": 4, "accelerator": "H100", "model": "m", "engine_version": "1"}
    point = {"source": "measured", "experiment": "e", "platform": "hops", "platform_label": "Hops", "run": 1}
    return {**settings, **point, "concurrency": concurrency, "status": "ok", RATE: rate, **changes}


def source(name: str, *rows: dict[str, Any], specs: dict[str, Any] | None = None) -> Source:
    return Source(name, f"Source {name}.", frame(rows), specs or {})


def verdicts(comparison: Comparison) -> dict[int, tuple[str, bool]]:
    return {point.concurrency: (point.verdict, point.regression) for point in comparison.points}


def opened(reference: str, results: str = "none", **changes: Any) -> Source:
    settings: dict[str, Any] = {"published_dir": "data/published", "experiments": ["local"], "labels": {}}
    return open_source(reference, root=ROOT, results=results, **{**settings, **changes})


def test_each_point_has_its_verdict() -> None:
    """Within the tolerance is ok; beyond it slower, which is a regression, or faster, which is none."""
    theirs = source("b", *(row(level, 100.0) for level in (1, 2, 4, 8)))
    ours = source("a", row(1, 91.0), row(2, 89.0), row(4, 112.0), row(8, 110.0))
    found = compare(ours, theirs, LIMITS)
    assert verdicts(found) == {1: ("ok", False), 2: ("slower", True), 4: ("faster", False), 8: ("ok", False)}
    assert not found.passed


def test_the_mean_over_valid_runs_is_compared() -> None:
    """Two runs are averaged; a crashed one with a number is left out and told."""
    ours = source("a", row(1, 90.0), row(1, 110.0, run=2), row(1, 1.0, run=3, status="crashed"))
    (point,) = compare(ours, source("b", row(1, 100.0)), LIMITS).points
    assert (point.ours.value, point.ours.runs, point.verdict) == (100.0, 2, "ok")
    assert point.why == "run 3: crashed"


def test_a_point_that_crashed_is_a_regression_and_one_that_nobody_asked_for_is_not() -> None:
    """Both are missing, but only the one that was tried fails the comparison."""
    ours = source("a", row(1, 100.0), row(2, None, status="crashed"), row(4, None, status="not_run"))
    theirs = source("b", *(row(level, 100.0) for level in (1, 2, 4, 8)))
    found = compare(ours, theirs, LIMITS)
    assert verdicts(found) == {1: ("ok", False), 2: ("missing", True), 4: ("missing", False), 8: ("missing", False)}
    assert "1 of the missing crashed or failed" in summary(found)


def test_latencies_are_judged_the_other_way_round() -> None:
    """A latency that grew is slower; its speed is the inverse of the ratio."""
    limits = CompareSettings({"median_ttft_ms": Tolerance(0.1, "a test")})
    ours, theirs = (source(name, row(1, 1.0, median_ttft_ms=value)) for name, value in (("a", 150.0), ("b", 100.0)))
    (point,) = compare(ours, theirs, limits).points
    assert (point.verdict, point.ratio, point.speed) == ("slower", 1.5, pytest.approx(1 / 1.5))


def test_a_small_loss_at_every_point_is_seen_over_the_curve() -> None:
    """Ten percent are allowed at a point and five over the curve: seven everywhere is a regression of the curve."""
    ours, theirs = (
        source(name, *(row(level, rate) for level in (1, 2, 4))) for name, rate in (("a", 93.0), ("b", 100.0))
    )
    found = compare(ours, theirs, LIMITS)
    assert {verdict for verdict, _ in verdicts(found).values()} == {"ok"}
    (curve,) = found.curves
    assert (curve.points, curve.speed, curve.regression) == (3, pytest.approx(0.93), True)
    assert not found.passed


@pytest.mark.parametrize(
    "change", [{"accelerator": "H200"}, {"num_prompts": 500}, {"tensor_parallel": 8}, {"model": "n"}]
)
def test_another_measurement_is_not_judged(change: dict[str, Any]) -> None:
    """What defines the measurement is named, nothing is judged, and a comparison of nothing has not passed."""
    found = compare(source("a", row(1, 50.0, **change)), source("b", row(1, 100.0)), LIMITS)
    (point,) = found.points
    assert (point.verdict, point.ratio) == ("not comparable", 0.5)
    assert next(iter(change)) in point.why
    assert not found.passed


def test_an_accepted_difference_is_judged() -> None:
    """Two machines are compared where the settings say so; the difference is told all the same."""
    ours, theirs = source("a", row(1, 99.0, platform="new", accelerator="H200")), source("b", row(1, 100.0))
    limits = replace(LIMITS, accept=("platform", "accelerator"))
    found = compare(ours, theirs, limits)
    assert verdicts(found) == {1: ("ok", False)}
    assert "accelerator: H200 against H100" in page(ours, theirs, found, limits)


def test_what_maintenance_changes_is_told_and_judged() -> None:
    """Another engine version, argument or image does not stand in the way of the verdict."""
    spec = {"benchmark": {"seed": 1}, "serve": {"args": {"max-num-seqs": 8}, "env": {}}}
    other = {"benchmark": {"seed": 1}, "serve": {"args": {"max-num-seqs": 16}, "env": {}}}
    ours = source("a", row(1, 50.0, engine_version="2", spec="a" * 10), specs={"a" * 10: other})
    theirs = source("b", row(1, 100.0, spec="b" * 10), specs={"b" * 10: spec})
    found = compare(ours, theirs, LIMITS)
    assert verdicts(found) == {1: ("slower", True)}
    assert {each.what for each in found.pairs[0].differences} == {"engine_version", "serve.args.max-num-seqs"}


def test_another_seed_is_another_measurement() -> None:
    """What only the full definitions hold defines the measurement too."""
    ours = source("a", row(1, 100.0, spec="a" * 10), specs={"a" * 10: {"benchmark": {"seed": 2}}})
    theirs = source("b", row(1, 100.0, spec="b" * 10), specs={"b" * 10: {"benchmark": {"seed": 1}}})
    assert "benchmark.seed" in compare(ours, theirs, LIMITS).points[0].why


def test_curves_are_paired_by_spec_then_deployment_then_fewest_differences() -> None:
    """Three definitions of one platform each find their own, and a platform that only one side has is told."""
    a, b, c = "a" * 10, "b" * 10, "c" * 10
    ours = source(
        "a",
        row(1, 1.0, spec=a, deployment="x"),
        row(1, 2.0, spec=b, deployment="y"),
        row(1, 3.0, spec=c, deployment="z", tensor_parallel=8),
    )
    theirs = source(
        "b",
        row(1, 3.0, deployment="p", tensor_parallel=8),
        row(1, 2.0, spec="d" * 10, deployment="y"),
        row(1, 1.0, spec=a, deployment="q"),
        row(1, 9.0, platform="other"),
    )
    found = compare(ours, theirs, LIMITS)
    assert [point.ratio for point in found.points if point.ratio] == [1.0, 1.0, 1.0]
    assert [pair.ours is None for pair in found.pairs] == [False, False, False, True]


def test_published_points_are_compared_with_themselves() -> None:
    """Figure 9 against itself: 22 points are ok with ratio 1, and the citation is told."""
    published = opened("beltre2025/fig9")
    found = compare(published, published, CompareSettings())
    assert found.passed
    assert len(found.points) == 22
    assert {point.ratio for point in found.points} == {1.0}
    assert "Beltre" in page(published, published, found, CompareSettings())
    assert [point["verdict"] for point in csv.DictReader(csv_text(found).splitlines())] == ["ok"] * 22


def test_a_plain_csv_is_a_source(tmp_path: Path) -> None:
    """A file with a few columns of the table is enough; the same point twice, or no such name, is an error."""
    path = tmp_path / "mine.csv"
    path.write_text(f"platform,run,concurrency,status,{RATE}\nhops,1,1,ok,100.0\n")
    found = compare(opened(str(path)), opened("beltre2025/fig9"), CompareSettings())
    assert [(point.curve, point.verdict) for point in found.points if point.ratio] == [("hops", "ok")]
    path.write_text(path.read_text() + "hops,1,1,ok,90.0\n")
    with pytest.raises(BerthError, match="lines 2 and 3 are the same point"):
        opened(str(path))
    with pytest.raises(BerthError, match=r'"lokal" is no experiment.*Did you mean "local"'):
        opened("lokal")
    with pytest.raises(BerthError, match=r"only_runs: beltre2025/fig9 has no run 7\. Runs: 1, 2"):
        opened("beltre2025/fig9", runs=[1, 7])


def test_a_baseline_keeps_valid_points_and_does_not_change(tmp_path: Path) -> None:
    """It reads back as the same points; other points under its name and a changed file are refused."""
    rows = [row(1, 100.0, spec="a" * 10), row(2, 1.0, status="failed")]
    first = source("e", *rows, specs={"a" * 10: {"benchmark": {"seed": 1}}, "b" * 10: {}})
    path = store_baseline(first, "day1", tmp_path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o222 == 0
    assert store_baseline(first, "day1", tmp_path) == path
    with pytest.raises(BerthError, match="holds other points"):
        store_baseline(source("e", row(1, 101.0)), "day1", tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    again = opened("baseline:day1", results=str(tmp_path))
    assert again.rows[RATE].tolist() == [100.0]
    assert list(again.specs) == ["a" * 10]
    path.chmod(0o644)
    path.write_bytes(before.replace(b"100.0", b"120.0"))
    with pytest.raises(BerthError, match="changed after it was stored"):
        opened("baseline:day1", results=str(tmp_path))
    with pytest.raises(BerthError, match=r"no such baseline\. Stored: day1"):
        opened("baseline:day2", results=str(tmp_path))


def test_a_baseline_names_the_bytes_of_each_record(tmp_path: Path) -> None:
    """The SHA-256 of a point is that of its record's file, so that anybody can check it."""
    file = tmp_path / "c1.json"
    file.write_text("{}")
    stored = read_baseline(store_baseline(replace(source("e", row(1, 1.0)), files={0: file}), "day", tmp_path))
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert [(each["sha256_of"], each["sha256"]) for each in stored["points"]] == [("file", digest)]
    with pytest.raises(BerthError, match="no valid point"):
        store_baseline(source("e", row(1, 1.0, status="failed")), "none", tmp_path)
    with pytest.raises(BerthError, match="is no name"):
        store_baseline(source("e", row(1, 1.0)), "../x", tmp_path)


def test_settings_name_columns_of_speed() -> None:
    """A tolerance for a column that is no speed is an error that proposes the nearest; none means the published one."""
    with pytest.raises(BerthError, match=r'metrics.mean_tpt_ms: "mean_tpt_ms" is no number of speed. Did you mean'):
        compare_settings({"metrics": {"mean_tpt_ms": {"tolerance": 0.1, "reason": "x"}}})
    with pytest.raises(BerthError, match=r"statistics.metric"):
        statistics_settings({"metric": "host"})
    assert compare_settings({}).metrics == CompareSettings().metrics
    assert json.dumps(list(compare_settings({"accept": ["platform"]}).accept)) == '["platform"]'


def test_tables_line_up() -> None:
    """Numbers are set to the right, bars are escaped, and numbers have no exponent."""
    assert table(["name", "n"], [["a|b", "1"], ["c", "10"]]).splitlines() == [
        "| name |   n |",
        "|------|----:|",
        "| a\\|b |   1 |",
        "| c    |  10 |",
    ]
    assert [number(value) for value in (123456.7, 0.00012345, 1.5, None)] == ["123457", "0.0001234", "1.5", ""]
    assert percent(0.0123) == "1.2 %"


def test_records_of_an_experiment_are_a_source_with_files_and_definitions(tmp_path: Path) -> None:
    """Records, failures and full definitions are read; a folder of them elsewhere is compared by what its specs say."""
    for folder, level, changes in (
        ("points", 1, {}),
        ("points", 2, {}),
        ("failures", 4, {"validity": refused("engine_died"), "failure": failure("crash")}),
    ):
        write_record_file(tmp_path / "results" / folder / "scout/hops/0123456789/run1", level, **changes)
    other = record()["spec"] | {"serve": {"recipe": "vllm", "version": "0.9.1", "nodes": 2, "args": {"seed": 7}}}
    for level in (1, 2, 4):
        write_record_file(tmp_path / "copied/hops/0123456789/run1", level, spec=other)
    settings: dict[str, Any] = {"root": tmp_path, "results": "results", "published_dir": "none", "labels": {}}
    ours = open_source("scout", experiments=["scout"], **settings)
    theirs = open_source("copied", experiments=["scout"], **settings)
    assert [path.name for _, path in sorted(ours.files.items())] == ["c1.json", "c2.json", "c4.json"]
    assert ours.specs["0123456789"] == record()["spec"]
    found = compare(ours, theirs, replace(LIMITS, accept=("accelerators", "tensor_parallel", "pipeline_parallel")))
    assert verdicts(found) == {1: ("ok", False), 2: ("ok", False), 4: ("missing", True)}
    assert "serve.args.seed: not set against 7" in map(str, found.pairs[0].differences)
    stored = read_baseline(store_baseline(ours, "day", tmp_path / "results"))
    assert [each["sha256_of"] for each in stored["points"]] == ["file", "file"]
    assert stored["specs"] == ours.specs


def write_record_file(folder: Path, level: int, **changes: Any) -> None:
    write(folder, record(level, **changes), f"c{level}.json")
