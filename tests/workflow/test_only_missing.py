"""Only what is missing is measured, whatever is edited, touched, added or copied in. The real workflow and server."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zipfile
from typing import TYPE_CHECKING

import pytest
from leaks import SECRETS, files_with
from workspace import LEVELS

if TYPE_CHECKING:
    from leaks import Watch
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm]

NOTHING = "Nothing to be done"
# One of ten: each is a job of its own by the same rule.
FIGURE = "results/figures/local/output_throughput.svg"


def test_first_run_measures_every_point_and_draws_every_figure(measured: Workspace) -> None:
    """A fresh run leaves valid records with what was measured, a table, and figures in three formats."""
    points = measured.points()
    assert [int(key.rpartition("/c")[2]) for key in points] == sorted(LEVELS, key=str)
    record = json.loads(next(iter(points.values())).read_text())
    assert record["validity"]["verdict"] in {"accepted", "flagged"}
    assert record["result"]["completed"] == record["spec"]["benchmark"]["num_prompts"]
    assert record["server_metrics"]["generation_tokens"] == record["result"]["total_output_tokens"]
    assert record["client"]["mode"] == "warm"
    assert [entry["event"] for entry in record["server"]["timeline"]][-2:] == ["warmed_up", "first_request"]
    for kind in ("output_throughput", "ttft", "e2el", "throughput_vs_latency"):
        for extension in ("pdf", "svg", "png"):
            assert (measured.path / f"results/figures/local/{kind}.{extension}").stat().st_size > 1000
    for figure in ("fig9", "fig10", "fig12"):
        assert (measured.path / f"results/figures/{figure}/output_throughput.svg").exists()
    assert len((measured.path / "results/tidy/points.csv").read_text().splitlines()) == 1 + len(LEVELS)
    assert not measured.spooled()
    assert not list((measured.path / "results").glob("sweeps/**/*.done"))
    assert measured.servers() == []
    # What the server looked up at its start is there for the next one.
    (kept,) = (measured.path / "results/scratch/berth/.starts").glob("vllm-0.32.0-*/vllm/modelinfos/*Llama*.json")
    (own,) = (measured.path / "results/scratch/berth/local").rglob("cache/vllm/modelinfos/*Llama*.json")
    assert own.read_bytes() == kept.read_bytes()


def test_no_secret_is_written_or_shown(measured: Workspace, watch: Watch) -> None:
    """Neither the caller's secrets nor the keys of servers get into a file of the run or a command line."""
    # The server's own key, which Berth made, was seen in its environment: the search for it means something.
    assert watch.made
    assert watch.shown == set()
    values = {*SECRETS.values(), *watch.made}
    assert files_with(measured.path / "results", values) + files_with(measured.path / ".snakemake", values) == []


def test_second_run_has_nothing_to_do(workspace: Workspace) -> None:
    """A second run measures and draws nothing, and does not even import what draws: every job starts a Snakemake."""
    before = workspace.snapshot()
    output = workspace.run(PYTHONPROFILEIMPORTTIME="1")
    assert NOTHING in output
    assert workspace.snapshot() == before
    imported = set(re.findall(r"^import time: .*\| +(\S+)$", output, re.MULTILINE))
    assert "berth.plan" in imported
    assert not {"matplotlib", "scipy", "berth.figures", "berth.report"} & imported


def test_edited_code_has_nothing_to_do(workspace: Workspace) -> None:
    """An edit of the package, a script or a rule makes no point run again, and redraws nothing by itself."""
    edited = ["src/berth/sweep.py", "workflow/scripts/sweep.py", "workflow/rules/bench.smk"]
    edited += ["workflow/rules/figures.smk", "workflow/scripts/figure.py", "workflow/scripts/tidy.py"]
    for name in edited:
        path = workspace.path / name
        path.write_text(path.read_text() + "\n# An edit that changes nothing.\n")
    assert NOTHING in workspace.run()


def test_touched_inputs_have_nothing_to_do(workspace: Workspace) -> None:
    """New time stamps on every file that is not an output make nothing run again."""
    later = time.time() + 60
    for pattern in ("config/**/*", "data/**/*", "workflow/**/*", "src/**/*"):
        for path in workspace.path.glob(pattern):
            os.utime(path, (later, later))
    for pattern in ("results/points/**/*.json", "results/models/**/*.json", "results/staged/**/*.json"):
        for path in workspace.path.glob(pattern):
            os.utime(path, (later, later))
    assert NOTHING in workspace.run()


def test_additions_plan_only_what_is_new(workspace: Workspace) -> None:
    """One more level, one more run, or another definition list exactly their own points."""
    before = workspace.snapshot()
    assert workspace.planned() == {}
    workspace.configure(lambda config: config["benchmarks"]["demo"]["concurrency"].append(8))
    planned = workspace.planned()
    assert (planned["sweep"], planned["point"]) == (1, 1)
    workspace.configure(lambda config: config["experiments"]["local"].update(runs=2))
    planned = workspace.planned()
    assert (planned["sweep"], planned["point"]) == (2, 1 + len(LEVELS) + 1)
    for change in (
        lambda config: config["benchmarks"]["demo"].update(num_prompts=20),
        lambda config: config["benchmarks"]["demo"].update(seed=7),
        lambda config: config["deployments"]["tiny-local"]["args"].update({"max-num-seqs": 32}),
    ):
        other = workspace.clone(workspace.path.with_name("other"))
        other.configure(change)
        assert other.planned()["point"] == 2 * (len(LEVELS) + 1)
        shutil.rmtree(other.path)
    assert workspace.snapshot() == before


def test_changed_model_is_another_definition(workspace: Workspace) -> None:
    """Another seed of the generated model is another model: its points are missing, the old ones stay."""
    before = workspace.snapshot()
    model = workspace.path / "config/models/tiny-llama.yaml"
    model.write_text(model.read_text().replace("seed: 0", "seed: 1"))
    planned = workspace.planned()
    assert planned["point"] == len(LEVELS)
    assert planned["download_model"] == 1
    # Snakemake removes the old manifest before the rule runs; the files it described must not count as foreign then.
    manifest = workspace.path / "results/models/tiny-llama/manifest.json"
    workspace.run(str(manifest.relative_to(workspace.path)))
    assert json.loads(manifest.read_text())["source"]["shape"]["seed"] == 1
    assert workspace.snapshot() == before


def test_points_of_another_cluster_are_drawn_and_never_measured(workspace: Workspace) -> None:
    """Records copied in from another platform's results appear in the figure; nothing plans to measure them."""
    source = workspace.path / "results/points/local/local"
    target = workspace.path / "results/points/local/hops"
    shutil.copytree(source, target)
    for path in target.rglob("c*.json"):
        record = json.loads(path.read_text())
        record["point"]["platform"] = "hops"
        record["server"]["host"] = "hops99"
        path.write_text(json.dumps(record))
    planned = workspace.planned()
    assert "sweep" not in planned
    assert "point" not in planned
    workspace.run(FIGURE)
    assert "hops99" in (workspace.path / FIGURE).read_text()
    assert NOTHING in workspace.run(FIGURE)


def test_truncated_record_is_one_clear_error(workspace: Workspace) -> None:
    """A cut record in results stops the plan with its path, before anything starts."""
    path = next(iter(workspace.points().values()))
    path.write_bytes(path.read_bytes()[:100])
    output = workspace.run("-n", code=1)
    assert str(path.relative_to(workspace.path)) in output
    assert "Traceback" not in output


def test_foreign_file_is_one_clear_error(workspace: Workspace) -> None:
    """A file that is no record, at the path of one, stops the plan with its path."""
    path = next(iter(workspace.points().values()))
    path.write_text('{"hello": "world"}')
    output = workspace.run("-n", code=1)
    assert str(path.relative_to(workspace.path)) in output


def test_record_of_a_newer_schema_is_one_clear_error(workspace: Workspace) -> None:
    """A record that a newer Berth wrote stops the plan and says so."""
    path = next(iter(workspace.points().values()))
    record = json.loads(path.read_text())
    record["schema"] = 99
    path.write_text(json.dumps(record))
    output = workspace.run("-n", code=1)
    assert "99" in output
    assert str(path.relative_to(workspace.path)) in output


def test_partial_draws_and_measures_nothing(workspace: Workspace) -> None:
    """`figures --config partial=true` draws what there is, although a point is missing."""
    next(iter(workspace.points().values())).unlink()
    planned = workspace.planned("figures", "--config", "partial=true")
    assert "sweep" not in planned
    assert planned["tidy"] == 1
    assert planned["figure"] == 10
    workspace.run(FIGURE, "--config", "partial=true")
    assert len((workspace.path / "results/tidy/points.csv").read_text().splitlines()) == len(LEVELS)


def test_snakemake_report_holds_figures_with_captions(workspace: Workspace) -> None:
    """`snakemake --report` packs every figure and the table, each with its caption and category."""
    workspace.run("--report", "report.zip")
    with zipfile.ZipFile(workspace.path / "report.zip") as archive:
        names = archive.namelist()
        page = "\n".join(
            archive.read(name).decode(errors="replace") for name in names if name.endswith((".js", ".html"))
        )
    assert sum(name.endswith(".svg") for name in names) == 7 + 3
    assert any(name.endswith("points.csv") for name in names)
    assert "Output token throughput over maximum request concurrency" in page
    assert '"Tables"' in page
