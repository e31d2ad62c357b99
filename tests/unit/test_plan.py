"""The plan: what exists, what is missing, and what can be made."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.coordinates import PointId, RunId, parse_point
from berth.errors import BerthError
from berth.parse import load_config
from berth.plan import make_plan

if TYPE_CHECKING:
    from berth.plan import Plan

ROOT = Path(__file__).resolve().parents[2]


def plan_of(root: Path, **changes: Any) -> Plan:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return make_plan(load_config({**raw, **changes, "config_dir": str(ROOT / "config")}, ROOT), root)


def test_fresh_plan_misses_every_point_of_this_platform_only(tmp_path: Path) -> None:
    """Without results, the local platform misses its two runs of six points and no point of another platform."""
    plan = plan_of(tmp_path)
    assert len(plan.missing) == 12
    assert {key.split("/")[1] for key in plan.missing} == {"local"}


def test_only_missing_points_match_the_rule(tmp_path: Path) -> None:
    """The constraint on the first wildcard lets missing keys pass whole, and neither other points nor longer names."""
    plan = plan_of(tmp_path)
    key = min(plan.missing)
    pattern = re.compile(f"({plan.only_missing})/local/([0-9a-f]+)/run([0-9]+)/c([0-9]+)\\.json")
    assert pattern.fullmatch(f"{key}.json")
    assert not pattern.fullmatch(key.replace("/c1", "/c7") + ".json")
    assert not pattern.fullmatch(key.replace("/run1/", "/run3/") + ".json")
    partial = plan_of(tmp_path, partial=True)
    assert partial.missing == frozenset()
    assert re.fullmatch(f"({partial.only_missing}).*", f"{key}.json") is None


def test_figures_are_drawn_for_published_data_without_points(tmp_path: Path) -> None:
    """The paper's figures are drawn everywhere; kinds that need measured latencies are not."""
    figures = plan_of(tmp_path).figures
    assert figures["fig9"] == figures["fig10"] == figures["fig12"] == ("output_throughput",)
    assert len(figures["local"]) == 7


def test_equal_numbers_are_one_definition(tmp_path: Path) -> None:
    """A temperature of 0 written out, the default, and 0.0 give one spec; another seed gives another."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    specs = []
    for change in ({}, {"temperature": 0}, {"temperature": 0.0}, {"seed": 1}):
        benchmarks = {**raw["benchmarks"], "demo": {**raw["benchmarks"]["demo"], **change}}
        specs.append(next(iter(plan_of(tmp_path, benchmarks=benchmarks).runs.values())).id.spec)
    assert specs[0] == specs[1] == specs[2] != specs[3]


def test_a_mode_is_part_of_the_definition(tmp_path: Path) -> None:
    """A benchmark's mode brings the recipe's settings for it and is named in the spec; without one nothing changes."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    found = {}
    for mode in (None, "paper", "clean"):
        demo = {**raw["benchmarks"]["demo"], **({"mode": mode} if mode else {})}
        plan = plan_of(tmp_path, benchmarks={**raw["benchmarks"], "demo": demo})
        found[mode] = next(iter(plan.runs.values())).definition
    assert len({definition.id for definition in found.values()}) == 3
    assert "mode" not in found[None].full["benchmark"]
    assert found["clean"].full["benchmark"]["mode"] == "clean"
    assert found["clean"].full["serve"]["args"]["enable-prefix-caching"] is False
    assert found["paper"].full["serve"]["args"]["seed"] == 12345


def test_levels_and_runs_are_no_part_of_the_definition(tmp_path: Path) -> None:
    """More levels and more runs leave the spec as it is, so that what was measured stays."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    before = next(iter(plan_of(tmp_path).runs.values())).id.spec
    raw["benchmarks"]["demo"]["concurrency"] = [1, 64]
    raw["experiments"]["local"]["runs"] = 5
    after = plan_of(tmp_path, benchmarks=raw["benchmarks"], experiments=raw["experiments"])
    assert {run.id.spec for run in after.runs.values()} == {before}
    assert len(after.runs) == 5


def test_two_deployments_of_one_definition_are_refused(tmp_path: Path) -> None:
    """Two names for the same server in one experiment would be one folder."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["deployments"]["again"] = raw["deployments"]["tiny-local"]
    raw["experiments"]["local"]["deployments"] = ["tiny-local", "again"]
    with pytest.raises(BerthError, match="again and tiny-local define the same server"):
        plan_of(tmp_path, deployments=raw["deployments"], experiments=raw["experiments"])


def test_unpinned_model_is_refused_when_it_is_to_be_measured(tmp_path: Path) -> None:
    """A model without a commit stops a plan that would measure it, and says how to pin it."""
    plan = plan_of(tmp_path, platform="hops", select=["fig10"])
    with pytest.raises(BerthError, match=r"llama-4-scout-w4a16.yaml: revision: the model is not pinned") as caught:
        plan.require_measurable()
    assert "git ls-remote" in str(caught.value)


def test_key_of_a_point_and_back() -> None:
    """A point's key parses to the same point; what is no key gives none."""
    point = PointId(RunId("a", "b", "0123456789", 3), 16)
    assert parse_point(point.key) == point
    for text in ("a/b/0123456789/run0/c16", "a/b/xyz/run1/c1", "a/b/0123456789/run1/c01", "a/b/0123456789/run1"):
        assert parse_point(text) is None


def test_file_that_is_no_point_is_named(tmp_path: Path) -> None:
    """A JSON file at a place that only looks like a point's is one clear error."""
    odd = tmp_path / "results/points/local/local/nospec/run1/c1.json"
    odd.parent.mkdir(parents=True)
    shutil.copy(ROOT / "config/config.yaml", odd)
    with pytest.raises(BerthError, match="this is no path of a point"):
        plan_of(tmp_path)
