"""`snakemake html_report` as a person types it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from report_points import LEVELS, records
from workspace import Workspace

from berth.record import write_record

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.workflow


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """A workspace with points of another cluster, of which one failed, and none of this machine."""
    workspace = Workspace.create(tmp_path / "fresh")
    workspace.configure(lambda config: config.update(select=["local", "fig9"]))
    for each in records():
        point = {**each["point"], "experiment": "fig9"}
        folder = "failures" if each["failure"] else "points"
        name = f"fig9/hops/{point['spec']}/run{point['run']}/c{point['concurrency']}.json"
        write_record(workspace.path / "results" / folder / name, {**each, "point": point}, None)
    return workspace


def test_report_shows_what_there_is_and_measures_nothing(fresh: Workspace) -> None:
    """One job writes the page, of points that another cluster measured too, and says how many are missing."""
    output = fresh.run("html_report")
    looked = (fresh.path / "results/logs/html_report.log").stat().st_mtime
    assert "1 of 1 steps (100%) done" in output
    results = fresh.path / "results"
    text = (results / "report/index.html").read_text()
    assert f"{len(LEVELS) - 2} points are not measured yet" in text
    assert "Hops (mean of 2 runs) peaks at" in text.replace("<strong>", "").replace("</strong>", "")
    assert "The server was killed: it ran out of memory." in text
    assert not (results / "points/local").exists()
    assert not (results / "images").exists()
    # A point that another Snakemake accepts meanwhile is newer than the table, which the workflow then makes again.
    made = {(results / name).stat().st_mtime for name in ("tidy/points.parquet", "report/index.html")}
    assert len(made) == 1
    assert made.pop() < looked
    # With everything asked for, the page comes after the measurements.
    planned = fresh.planned()
    assert (planned["report_page"], planned["provenance"], planned["point"]) == (1, 1, 3)
