"""Sweeps over request rates: names, plan, client, table, figures and report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from report_points import at_rate, make_report, record

from berth import parts
from berth.bench import BenchSettings, bench_argv
from berth.coordinates import PointId, Rate, RunId, level_name, level_words, parse_level, parse_point
from berth.errors import BerthError
from berth.figures import draw_figure
from berth.next_costs import next_jobs
from berth.parse import load_config
from berth.plan import make_plan
from berth.progress import SweepProgress, read_standing
from berth.record import read_record, write_record
from berth.sources import open_source
from berth.tidy import read_tidy, tidy_records, write_tidy
from berth.watch_state import Watched

if TYPE_CHECKING:
    from berth.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
RATES = (0.5, 1, 2.25, 10)
RUN = RunId("mine", "hops", "0123456789", 1)


def plan_of(root: Path, **benchmark: Any) -> Plan:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    demo = {key: value for key, value in raw["benchmarks"]["demo"].items() if key != "concurrency"}
    raw["benchmarks"]["demo"] = demo | {"request_rates": list(RATES), **benchmark}
    places = {"config_dir": str(ROOT / "config"), "published_dir": str(ROOT / "data/published")}
    return make_plan(load_config({**raw, **places}, ROOT), root)


def keep(folder: Path, *records: dict[str, Any]) -> list[Path]:
    paths = []
    for each in records:
        point = each["point"]
        level = Rate(point["request_rate"]) if "request_rate" in point else point["concurrency"]
        key = RunId(point["experiment"], point["platform"], point["spec"], point["run"]).point(level).key
        paths.append(folder / f"{key}.json")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_record(paths[-1], each, None)
    return paths


@pytest.mark.parametrize(("level", "name"), [(16, "c16"), (Rate(2), "q2"), (Rate(0.5), "q0.5"), (Rate(1000), "q1000")])
def test_name_of_a_level_and_back(level: int | Rate, name: str) -> None:
    """A level has one name, which says whether it is a concurrency or a rate."""
    assert level_name(level) == name
    assert parse_level(name) == level
    assert isinstance(parse_level(name), Rate) == isinstance(level, Rate)
    point = PointId(RunId("a", "b", "0123456789", 3), level)
    assert parse_point(point.key) == point


@pytest.mark.parametrize("name", ["q0", "q", "q02", "q2.0", "q2.", "qinf", "q1e3", "c0", "c1.5", "x1"])
def test_what_is_no_name_of_a_level(name: str) -> None:
    """Two spellings of a rate would be two files of one point."""
    assert parse_level(name) is None


def test_levels_are_told_with_their_unit() -> None:
    """Nobody takes a rate for a concurrency."""
    assert (level_words(4), level_words(Rate(2.5))) == ("concurrency 4", "2.5 requests/s")


def test_only_new_rates_are_missing(tmp_path: Path) -> None:
    """Rates are no part of the spec: an added one is missing alone, and only missing ones can be made."""
    plan = plan_of(tmp_path)
    assert sorted(key.rpartition("/")[2] for key in plan.missing) == sorted(["q0.5", "q1", "q2.25", "q10"] * 2)
    run = next(iter(plan.runs.values()))
    base = at_rate(1, 1)
    base["point"] |= {"experiment": "local", "platform": "local", "spec": run.id.spec}
    for rate in RATES:
        keep(tmp_path / "results/points", base | {"point": base["point"] | {"request_rate": float(rate)}})
    extended = plan_of(tmp_path, request_rates=[*RATES, 4])
    first = {key.rpartition("/")[2] for key in extended.missing if "/run1/" in key}
    assert first == {"q4"}
    assert re.fullmatch(f"({extended.only_missing})/.*", f"{run.id.key}/q4.json")
    assert not re.fullmatch(f"({extended.only_missing})/.*", f"{run.id.key}/q0.5.json")
    # Part text, marker and request of the job that measures it.
    (marker,) = extended.jobs.marker(run.id.key, Rate(4))
    assert marker.endswith("run1.attempt1.q4-4.done")
    request = extended.sweep_request(run.id.key, parts.texts([[Rate(4)]])[0])
    assert request["levels"] == [4.0]
    assert isinstance(request["levels"][0], Rate)
    assert next(str(level) for job in next_jobs(extended) for level in job.levels) == "4 requests/s"
    kinds = extended.figures["local"]
    assert "request_throughput_over_rate" in kinds
    assert "request_throughput" not in kinds


def test_sweep_over_rates_is_another_definition(tmp_path: Path) -> None:
    """The spec says that rates are swept and what limits the requests in flight, and not which rates."""
    specs = {
        name: next(iter(plan_of(tmp_path, **changes).runs.values())).definition
        for name, changes in {"plain": {}, "more": {"request_rates": [7]}, "limited": {"max_concurrency": 8}}.items()
    }
    assert specs["plain"].id == specs["more"].id != specs["limited"].id
    assert specs["plain"].full["benchmark"]["request_rate"] == "swept"
    assert specs["limited"].full["benchmark"]["max_concurrency"] == 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"concurrency": [1]}, "give concurrency .* or request_rates .*, and not both"),
        ({"request_rates": [2, 2.0]}, r"request_rates: 2(\.0)? stands twice"),
        ({"request_rates": [0]}, "request_rates"),
        ({"request_rates": ["inf"]}, "request_rates"),
        ({"request_rate": 4}, "request_rate: it does not go with request_rates"),
    ],
)
def test_bad_rates_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """One clear error with the key, before anything starts."""
    with pytest.raises(BerthError, match=told):
        plan_of(tmp_path, **changes)


def test_client_is_told_the_rate_and_the_limit() -> None:
    """Without a limit there is no --max-concurrency; the rate is written without exponent."""
    settings = BenchSettings(base_url="http://x", served_model="m", tokenizer="t", dataset_path=None)
    argv = bench_argv(settings, Rate(0.25), Path("/s/q0.25.json"))
    assert argv[argv.index("--request-rate") + 1] == "0.25"
    assert "--max-concurrency" not in argv
    limited = bench_argv(
        BenchSettings(base_url="http://x", served_model="m", tokenizer="t", dataset_path=None, max_concurrency=8),
        Rate(1000),
        Path("/s/q.json"),
    )
    assert limited[limited.index("--request-rate") + 1] == "1000"
    assert limited[limited.index("--max-concurrency") + 1] == "8"


def test_table_and_figures_of_rates_beside_levels_of_concurrency(tmp_path: Path) -> None:
    """Both kinds of sweep stand in one table; each figure shows its own kind, and delivered beside offered rates."""
    other = record(1, 4)
    other["point"]["spec"] = "9876543210"
    paths = keep(tmp_path / "points", other, *(at_rate(run, rate) for run in (1, 2) for rate in RATES))
    table = tidy_records(paths, [])
    rows = table[table["request_rate_req_s"].notna()]
    assert rows["request_rate_req_s"].tolist() == [*RATES] * 2
    assert rows["concurrency"].isna().all()
    write_tidy(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    assert read_tidy(tmp_path / "t.csv").equals(read_tidy(tmp_path / "t.parquet"))
    draw_figure(table, "request_throughput_over_rate", "T", [tmp_path / "a.svg"])
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count('id="curve-') == 2
    assert 'id="offered"' in svg
    assert "Request rate (requests/s)" in svg
    draw_figure(table, "request_throughput", "T", [tmp_path / "b.svg"])
    assert (tmp_path / "b.svg").read_text().count('id="curve-') == 1


def test_report_has_the_rate_on_its_axis(tmp_path: Path) -> None:
    """The page's figures and tables know the rate: in words, in the data, and without a concurrency."""
    made = [at_rate(run, rate) for run in (1, 2) for rate in RATES]
    page = make_report(tmp_path, made, kinds=["request_throughput_over_rate"], published=[])
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found[1])["experiments"][0]
    assert data["curves"][0]["axis"] == "request_rate_req_s"
    assert data["curves"][0]["levels"] == list(RATES)
    assert "concurrency" not in data["columns"]
    assert "over request rate" in text
    assert "at 10 requests/s" in text


def test_sources_of_statistics_find_points_at_rates(tmp_path: Path) -> None:
    """Records of both kinds are read with their files, for statistics and comparison."""
    (path,) = keep(tmp_path / "results/points", at_rate(1, 2.25))
    source = open_source("mine", root=tmp_path, results="results", published_dir="p", experiments=["mine"], labels={})
    assert source.files == {0: path}


def test_watch_shows_a_sweep_over_rates(tmp_path: Path) -> None:
    """What a sweep tells of itself is read back as rates, and points that ended are shown by their rate."""
    progress = SweepProgress([Rate(0.5), Rate(2)], file=tmp_path / "progress.json")
    progress.server(1)
    progress.start(Rate(0.5))
    progress.finish(Rate(0.5), 3.0, "measured")
    progress.start(Rate(2))
    standing = read_standing(tmp_path / "progress.json")
    assert standing is not None
    assert standing.levels == (Rate(0.5), Rate(2))
    assert standing.ended_s == {Rate(0.5): 3.0}
    assert isinstance(standing.level, Rate)
    keep(tmp_path / "results/points", at_rate(1, 2.25))
    (seen,) = Watched(tmp_path / "results").look()
    assert str(seen.done[0].level) == "2.25 requests/s"


def test_a_record_says_one_level(tmp_path: Path) -> None:
    """A point has a concurrency or a rate; its requests file has the name of its level."""
    (path,) = keep(tmp_path, at_rate(1, 2.25))
    assert path.name == "q2.25.json"
    assert read_record(path, key=f"{RUN.key}/q2.25")["point"]["request_rate"] == 2.25
    both = at_rate(1, 2.25)
    both["point"]["concurrency"] = 4
    with pytest.raises(BerthError):
        write_record(tmp_path / "q2.25.json", both, None)
    shutil.rmtree(tmp_path / "mine")
