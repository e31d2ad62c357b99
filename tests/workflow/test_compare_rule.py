"""`snakemake compare`, `baseline` and `statistics` as a person types them, on points that need no server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from workspace import Workspace

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
