"""Files of other tools become points that say where they come from, in the units and words of the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from berth._curves import curves
from berth.errors import BerthError
from berth.fsio import sha256_file
from berth.imported import imported_paths, read_imported
from berth.imports import import_points
from berth.parse import load_config
from berth.plan import make_plan
from berth.sources import open_source
from berth.tidy import read_tidy, tidy_records, write_tidy

if TYPE_CHECKING:
    from berth.config import Config

ROOT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parent / "samples"

# Concurrency 4 of data/published/beltre2025/example-run-hops.csv, in the form of benchmark_serving.py of vLLM 0.9.1: no
# "failed", and a colon in the key of the goodput.
VLLM_0_9_1: dict[str, Any] = {
    "date": "20250703-101500",
    "backend": "openai-chat",
    "model_id": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "tokenizer_id": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "num_prompts": 1000,
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": 4,
    "duration": 529.17,
    "completed": 1000,
    "total_input_tokens": 230398,
    "total_output_tokens": 182420,
    "request_throughput": 1.89,
    "request_goodput:": 1.5,
    "output_throughput": 344.73,
    "total_token_throughput": 780.12,
    "mean_ttft_ms": 42.05,
    "median_ttft_ms": 39.6,
    "p99_ttft_ms": 70.55,
    "mean_tpot_ms": 11.43,
    "std_tpot_ms": 0.6,
}


def configured() -> Config:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return load_config(raw, ROOT)


def imported(folder: Path, *sources: dict[str, Any], experiment: str = "local") -> list[dict[str, Any]]:
    """The records that an import file with these sources gives; files are relative to the folder."""
    request = {"schema": 1, "experiment": experiment, "sources": [{"platform": "hops", **each} for each in sources]}
    (folder / "import.yaml").write_text(yaml.safe_dump(request))
    paths = import_points(replace(configured(), imports="import.yaml"), folder)
    return [read_imported(path) for path in paths]


def wrote(folder: Path, value: Any, name: str = "result.json") -> str:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return name


def sample(name: str) -> dict[str, Any]:
    return dict(json.loads((SAMPLES / name).read_text()))


def reasons(record: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in record["validity"]["reasons"]]


def test_vllm_of_the_paper_is_read_with_its_odd_keys(tmp_path: Path) -> None:
    """0.9.1's goodput with a colon and its missing "failed" are read, what it lacks stays missing, origin is kept."""
    (record,) = imported(tmp_path, {"files": [wrote(tmp_path, VLLM_0_9_1)], "known": {"client_version": "0.9.1"}})
    values = record["values"]
    assert values["request_goodput_req_s"] == 1.5
    assert (values["failed"], values["duration_s"], values["mean_ttft_ms"]) == (0, 529.17, 42.05)
    assert not {"p99_tpot_ms", "mean_itl_ms", "mean_e2el_ms"} & set(values)
    assert record["point"]["concurrency"] == 4
    assert record["origin"] == {
        "file": "result.json",
        "sha256": sha256_file(tmp_path / "result.json"),
        "entry": "",
        "format": "vllm",
        "tool": "vllm-bench",
        "tool_version": "0.9.1",
    }
    assert record["result"] == VLLM_0_9_1


def test_vllm_of_today_is_checked_as_far_as_its_file_goes(tmp_path: Path) -> None:
    """With timings per request even the delivered concurrency is checked; lists are not kept; server rules are not."""
    (record,) = imported(tmp_path, {"files": [str(SAMPLES / "vllm-0.32.0.json")]})
    assert record["validity"]["verdict"] == "imported"
    assert "concurrency_not_delivered" in record["validity"]["checked"]
    assert {"warm_cache", "client_bound", "preemptions"} <= set(record["validity"]["not_checked"])
    assert "latencies" not in record["result"]
    assert record["values"]["mean_e2el_ms"] == pytest.approx(499.404459)


def test_several_results_in_one_file_are_several_points(tmp_path: Path) -> None:
    """A file of --append-result has one object per line."""
    lines = "\n".join(json.dumps({**VLLM_0_9_1, "max_concurrency": level}) for level in (1, 2))
    records = imported(tmp_path, {"files": [wrote(tmp_path, lines)]})
    assert [(each["point"]["concurrency"], each["origin"]["entry"]) for each in records] == [
        (1, "result 1"),
        (2, "result 2"),
    ]


def test_guidellm_is_translated_and_not_only_renamed(tmp_path: Path) -> None:
    """Seconds become ms; its time per output token is no TPOT; TPOT comes from the requests; ITL has a mean alone."""
    records = imported(tmp_path, {"files": [str(SAMPLES / "guidellm-0.8.1.json")]})
    assert [record["point"]["concurrency"] for record in records] == [2, 4]
    report = sample("guidellm-0.8.1.json")["benchmarks"][1]
    values, metrics = records[1]["values"], report["metrics"]
    per_request = [each["inter_token_latency_ms"] for each in report["requests"]["successful"]]
    assert values["mean_e2el_ms"] == pytest.approx(1000 * metrics["request_latency"]["successful"]["mean"])
    assert values["p99_ttft_ms"] == metrics["time_to_first_token_ms"]["successful"]["percentiles"]["p99"]
    assert values["p99_tpot_ms"] == pytest.approx(np.percentile(per_request, 99))
    assert values["mean_tpot_ms"] != metrics["time_per_output_token_ms"]["successful"]["mean"]
    assert "mean_itl_ms" in values
    assert "median_itl_ms" not in values
    assert values["output_throughput_tok_s"] * values["duration_s"] == pytest.approx(480)
    assert (values["completed"], values["total_output_tokens"]) == (24, 480)
    assert records[1]["origin"]["tool_version"] == "0.8.1"
    # Both runs of the sample are shorter than the gate's 2 s.
    assert [each["validity"]["verdict"] for each in records] == ["refused", "refused"]
    assert reasons(records[1]) == ["short_run"]


def test_guidellm_before_0_4_keeps_its_strategy_elsewhere(tmp_path: Path) -> None:
    """`args.strategy` and `run_stats` of 0.2 and 0.3 are read; sampled requests give no TPOT; cut-off ones are told."""
    report = sample("guidellm-0.8.1.json")
    one = report["benchmarks"][1]
    del report["metadata"]
    one["args"] = {"strategy": {"type_": "concurrent", "streams": 16}}
    one["run_stats"] = {"requests_made": {"successful": 24, "errored": 0, "incomplete": 3, "total": 27}}
    one["requests"]["successful"] = one["requests"]["successful"][:10]
    del one["config"], one["metrics"]["request_totals"]
    one["duration"] = 8.1
    report["benchmarks"] = [one]
    (record,) = imported(tmp_path, {"files": [wrote(tmp_path, report)]})
    assert record["point"]["concurrency"] == 16
    assert record["origin"]["tool_version"] is None
    assert not {"mean_tpot_ms", "model"} & set(record["values"])
    assert reasons(record) == ["throughput_mismatch", "requests_cut_off"]
    assert record["validity"]["verdict"] == "imported"


def test_aiperf_says_its_units(tmp_path: Path) -> None:
    """Its metrics are taken by their units, its gaps as ITL, and its own token count is held against the server's."""
    (record,) = imported(tmp_path, {"files": [str(SAMPLES / "aiperf-0.13.0.json")]})
    export, values = sample("aiperf-0.13.0.json"), record["values"]
    assert (record["point"]["concurrency"], values["model"]) == (4, "tiny")
    assert values["median_tpot_ms"] == export["inter_token_latency"]["p50"]
    assert values["p99_itl_ms"] == export["inter_chunk_latency"]["p99"]
    assert (values["failed"], values["completed"], values["duration_s"]) == (0, 24, pytest.approx(1.1534, abs=1e-4))
    assert "token_mismatch" in reasons(record)


def test_aiperf_before_phases_and_in_other_units(tmp_path: Path) -> None:
    """Concurrency under `loadgen` and times in seconds are read; gaps that are one per request are no ITL."""
    export = sample("aiperf-0.13.0.json")
    export["input_config"] = {"endpoint": {"model_names": ["m"]}, "loadgen": {"concurrency": 8}}
    export["time_to_first_token"] = {"unit": "sec", "avg": 0.0348}
    export["inter_chunk_latency"]["count"] = 24
    del export["error_summary"]
    (record,) = imported(tmp_path, {"files": [wrote(tmp_path, export)]})
    assert (record["point"]["concurrency"], record["values"]["model"]) == (8, "m")
    assert record["values"]["mean_ttft_ms"] == pytest.approx(34.8)
    assert not {"median_ttft_ms", "mean_itl_ms", "failed", "num_prompts"} & set(record["values"])
    assert "failed_requests" in record["validity"]["not_checked"]
    export["time_to_first_token"]["unit"] = "fortnight"
    with pytest.raises(BerthError, match='"fortnight" is no unit of time'):
        imported(tmp_path, {"files": [wrote(tmp_path, export, "other.json")]})


def test_a_csv_has_its_columns_mapped_and_its_units_converted(tmp_path: Path) -> None:
    """Names are mapped, seconds become ms, empty cells stay missing, and a crashed row is refused."""
    text = "users,tps,ttft,status,run\n1,100.5,0.25,ok,1\n2,190,,ok,1\n4,3,1.5,crashed,2\n"
    columns = {
        "users": {"to": "concurrency"},
        "tps": {"to": "output_throughput_tok_s"},
        "ttft": {"to": "median_ttft_ms", "unit": "s"},
    }
    records = imported(tmp_path, {"files": [wrote(tmp_path, text, "theirs.csv")], "columns": columns})
    assert [each["values"] for each in records] == [
        {"output_throughput_tok_s": 100.5, "median_ttft_ms": 250.0},
        {"output_throughput_tok_s": 190.0},
        {"output_throughput_tok_s": 3.0, "median_ttft_ms": 1500.0},
    ]
    assert [each["point"]["run"] for each in records] == [1, 1, 2]
    assert [each["validity"]["verdict"] for each in records] == ["imported", "imported", "refused"]


def test_a_point_without_tokens_or_with_failed_requests_is_refused(tmp_path: Path) -> None:
    """What the gate refuses of Berth's own points it refuses of others', and the table says failed."""
    bad = {**VLLM_0_9_1, "completed": 990, "total_output_tokens": 0, "output_throughput": 0.0}
    (record,) = imported(tmp_path, {"files": [wrote(tmp_path, bad)]})
    assert record["validity"]["verdict"] == "refused"
    assert reasons(record) == ["failed_requests", "zero_tokens"]
    (row,) = tidy_records([], [], imported=imported_paths(tmp_path / "results", ["local"])).to_dict(orient="records")
    assert (row["status"], row["reason_codes"]) == ("failed", "failed_requests;zero_tokens;imported_not_checked")


@pytest.mark.parametrize(
    ("value", "source", "message"),
    [
        ({"answer": 42}, {}, "no result that Berth knows"),
        (VLLM_0_9_1, {"format": "aiperf"}, "no file of format aiperf"),
        ("{", {}, "not a readable JSON file"),
        ({**VLLM_0_9_1, "max_concurrency": None}, {}, "maximum number of requests in flight"),
        (VLLM_0_9_1, {"platform": None}, "on which platform was it measured"),
        (VLLM_0_9_1, {"known": {"modle": "x"}}, r"known\.modle: no column.*Did you mean \"mode\""),
        (VLLM_0_9_1, {"known": {"nodes": "four"}}, "'four' is no integer"),
        (VLLM_0_9_1, {"known": {"status": "ok"}}, "no column that an import can set"),
        (VLLM_0_9_1, {"files": ["absent.json"]}, r"no file absent\.json"),
    ],
)
def test_a_mistake_is_one_clear_error_and_imports_nothing(
    tmp_path: Path, value: Any, source: dict[str, Any], message: str
) -> None:
    """The file and what to do are named, and a good file before it leaves nothing behind."""
    good = {"files": [wrote(tmp_path, VLLM_0_9_1, "good.json")], "run": 9}
    bad = {"files": [wrote(tmp_path, value)], "platform": "hops", **source}
    request = {"schema": 1, "experiment": "local", "sources": [{**good, "platform": "hops"}, bad]}
    request["sources"][1] = {name: each for name, each in bad.items() if each is not None}
    (tmp_path / "import.yaml").write_text(yaml.safe_dump(request))
    with pytest.raises(BerthError, match=f"(?s){message}"):
        import_points(replace(configured(), imports="import.yaml"), tmp_path)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concurrency,speed\n1,2\n", 'the column "speed" is none of docs/tidy.md'),
        ("concurrency,output_throughput_tok_s\n1,fast\n", '"fast" is not a number'),
        ("concurrency,output_throughput_tok_s\n1,-2\n", "0 is the least"),
        ("concurrency,output_throughput_tok_s\n1\n", "line 2 has not as many cells"),
        ("concurrency,status\n1,good\n", '"good" is no status'),
    ],
)
def test_a_mistake_in_a_csv_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    """Unknown columns, wrong values and short lines are errors."""
    with pytest.raises(BerthError, match=message):
        imported(tmp_path, {"files": [wrote(tmp_path, text, "theirs.csv")]})


def test_an_imported_point_is_never_replaced(tmp_path: Path) -> None:
    """The same file again changes nothing; another file as the same point is refused, and is welcome as another run."""
    (first,) = imported(tmp_path, {"files": [wrote(tmp_path, VLLM_0_9_1)]})
    (path,) = imported_paths(tmp_path / "results", ["local"])
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert imported(tmp_path, {"files": ["result.json"]}) == [first]
    wrote(tmp_path, {**VLLM_0_9_1, "output_throughput": 300.0})
    with pytest.raises(BerthError, match="another file is imported as this point"):
        imported(tmp_path, {"files": ["result.json"]})
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    imported(tmp_path, {"files": ["result.json"], "run": 2})
    wrote(tmp_path, {**VLLM_0_9_1, "max_concurrency": 8}, "new.json")
    wrote(tmp_path, {**VLLM_0_9_1, "max_concurrency": 8, "duration": 400.0}, "other.json")
    with pytest.raises(BerthError, match="another file is imported as this point"):
        imported(tmp_path, {"files": ["new.json", "other.json"]})
    assert len(imported_paths(tmp_path / "results", ["local"])) == 2


def test_imported_points_are_drawn_and_counted_and_never_measured(tmp_path: Path) -> None:
    """The plan draws them, counts none as measured or missing, and table and sources have them as flagged."""
    imported(tmp_path, {"files": [wrote(tmp_path, VLLM_0_9_1)], "platform": "local"})
    config = configured()
    plan = make_plan(replace(config, results=str(tmp_path / "results")), ROOT)
    without = make_plan(replace(config, results=str(tmp_path / "none")), ROOT)
    assert plan.missing == without.missing
    assert not plan.existing
    assert len(plan.imported) == 1
    parquet, csv = tmp_path / "points.parquet", tmp_path / "points.csv"
    write_tidy(tidy_records([], [], imported=plan.imported), parquet, csv)
    row = read_tidy(csv).iloc[0]
    assert (row["source"], row["status"], row["client"]) == ("imported", "flagged", "vllm-bench")
    assert row["note"].startswith("Imported, not checked: result.json by vllm-bench")
    source = open_source(
        "local", root=tmp_path, results="results", published_dir="none", experiments=["local"], labels={}
    )
    assert source.rows["output_throughput_tok_s"].tolist() == [344.73]
    assert "1 of its points are imported" in source.words


def test_a_figure_says_which_tool_a_curve_was_imported_from(tmp_path: Path) -> None:
    """Curves of one platform by two tools have the tools' names in the legend, and the one measured here has none."""
    csv = "concurrency,output_throughput_tok_s\n4,340\n"
    imported(
        tmp_path,
        {"files": [wrote(tmp_path, VLLM_0_9_1)]},
        {"files": [wrote(tmp_path, csv, "theirs.csv")], "known": {"client": "abench"}},
    )
    table = tidy_records([], [], imported=imported_paths(tmp_path / "results", ["local"]))
    assert {curve.label for curve in curves(table)} == {
        "Hops run 1, imported from vllm-bench",
        "Hops run 1, imported from abench",
    }
