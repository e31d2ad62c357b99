"""`snakemake compare`, `baseline`, `statistics`, `import_points` and `costs` as a person types them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from report_points import record
from workspace import ROOT, Workspace

from berth.record import write_record

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.workflow


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """A workspace in which nothing was measured."""
    return Workspace.create(tmp_path / "fresh")


def test_a_regression_ends_with_exit_code_1(fresh: Workspace) -> None:
    """One slow point of a file fails the comparison; table, JSON and figures are written all the same."""
    published = (fresh.path / "data/published/beltre2025/fig9.csv").read_text()
    (fresh.path / "today.csv").write_text(published.replace("1,hops15,16,ok,844.66", "1,hops15,16,ok,500.00"))
    told = fresh.run("compare", "--config", "experiment=today.csv", "against=beltre2025/fig9", code=1)
    assert "REGRESSION: 21 ok, 1 slower" in told
    folder = fresh.path / "results/compare/today.csv/beltre2025-fig9"
    assert {path.suffix for path in folder.iterdir()} == {".md", ".csv", ".json", ".pdf", ".svg", ".png"}
    assert json.loads((folder / "comparison.json").read_text())["regressions"] == 1
    assert not (fresh.path / "results/points").exists()


def test_a_baseline_is_stored_and_passes_against_its_own_points(fresh: Workspace) -> None:
    """What was stored is compared with what it came from: exit code 0, and statistics are written beside it."""
    fresh.run("baseline", "statistics", "--config", "experiment=beltre2025/fig9", "baseline=2026-11", "only_runs=[1]")
    assert (fresh.path / "results/baselines/2026-11.json").exists()
    assert (fresh.path / "results/statistics/beltre2025-fig9/bands.png").exists()
    told = fresh.run("compare", "--config", "experiment=beltre2025/fig9", "against=baseline:2026-11")
    assert "passed: 22 ok" in told


def test_stored_points_become_baseline_statistics_costs_and_later_a_regression(fresh: Workspace) -> None:
    """One call stores and tells it all and imports a file of another tool; a slower point then fails the comparison."""
    results = fresh.path / "results"

    def store(run: int, level: int, **result: float) -> None:
        made = record(run, level)
        made["point"]["experiment"] = "fig9"
        made["result"] |= result
        made["power"] = {"mean_w": 2800.0, "energy_j": 91000.0, "tokens_per_j": 2.0, "samples": 9, "scope": "GPUs"}
        write_record(results / f"points/fig9/hops/0123456789/run{run}/c{level}.json", made, None)

    for run in (1, 2):
        for level in (1, 16):
            store(run, level)
    theirs = {"files": [str(ROOT / "tests/unit/samples/vllm-0.32.0.json")], "platform": "theirs"}
    (fresh.path / "import.yaml").write_text(json.dumps({"schema": 1, "experiment": "local", "sources": [theirs]}))
    rules = ("baseline", "statistics", "import_points", "costs")
    told = fresh.run(*rules, "--config", "experiment=fig9", "baseline=before", "imports=import.yaml")
    assert "1 points imported" in told
    assert len(list((results / "imported/local/theirs").rglob("c*.json"))) == 1
    assert (results / "baselines/before.json").exists()
    assert (results / "statistics/fig9/bands.png").exists()
    costs = json.loads((results / "costs/costs.json").read_text())
    assert [server["tokens_per_j"] for server in costs["spent"]] == [2.0, 2.0]
    assert "2 servers" in (results / "costs/costs.md").read_text()
    assert len(fresh.points()) == 4
    for run in (1, 2):
        store(run, 16, output_throughput=100.0)
    told = fresh.run("compare", "--config", "experiment=fig9", "against=baseline:before", code=1)
    assert "REGRESSION" in told
