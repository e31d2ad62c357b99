"""Point records become one table with documented columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from berth.columns import BY_NAME, COLUMNS
from berth.errors import BerthError
from berth.frames import combine, frame
from berth.tidy import read_tidy, tidy_records, write_tidy

DOCS = Path(__file__).parents[2] / "docs" / "tidy.md"
NAMES = [column.name for column in COLUMNS]


def record(concurrency: int = 4, **changes: Any) -> dict[str, Any]:
    """A whole record; `changes` replace top-level parts."""
    image = {"reference": "vllm/vllm-openai:v0.9.1", "digest": "sha256:abc"}
    serve = {"recipe": "vllm", "version": "0.9.1", "nodes": 2, "tensor_parallel": 4, "pipeline_parallel": 2}
    names = ("completed", "total_input_tokens", "total_output_tokens")
    result = {
        "num_prompts": 1000,
        **dict.fromkeys(names, 1000),
        "failed": 0,
        "duration": 21.5,
        "request_throughput": 46.5,
        "request_goodput": 40.25,
        "output_throughput": 1234.5,
        "total_token_throughput": 2469.125,
        **{f"{s}_{m}_ms": 1.5 for s in ("mean", "median", "p99") for m in ("ttft", "tpot", "itl", "e2el")},
    }
    whole = {
        "schema": 1,
        "point": {
            "experiment": "scout",
            "platform": "hops",
            "spec": "0123456789",
            "run": 1,
            "concurrency": concurrency,
            "deployment": "scout-hops",
        },
        "spec": {
            "schema": 1,
            "model": {"name": "scout", "repo": "meta-llama/Scout", "revision": "c0ffee"},
            "image": image,
            "serve": serve,
            "hardware": {"platform": "hops", "accelerator": "H100", "accelerators_per_node": 4},
            "benchmark": {"dataset": {"name": "sharegpt"}, "num_prompts": 1000, "mode": "clean"},
        },
        "server": {
            "host": "hops15",
            "job_id": "42",
            "instance": 1,
            "image": image,
            "version": "0.9.1",
            "command": ["vllm"],
            "timeline": [],
        },
        "client": {
            "name": "vllm-bench",
            "version": "0.9.1",
            "mode": "warm",
            "command": ["vllm"],
            "cpu_s": 2.15,
            "cpu_fraction": 0.1,
            "loop_lag": {"mean_ms": 1.0, "p99_ms": 12.5, "max_ms": 40.0},
        },
        "result": result,
        "requests_file": None,
        "server_metrics": {
            "prompt_tokens": 1000,
            "generation_tokens": 1000,
            "prefix_cache_queries": 200,
            "prefix_cache_hits": 50,
            "preemptions": 3,
        },
        "validity": {"verdict": "accepted", "reasons": []},
        "failure": None,
        "wall": {
            "start": "2026-01-01T00:00:00Z",
            "end": "2026-01-01T00:00:22Z",
            "duration_s": 22.0,
            "client_duration_s": 21.5,
        },
    }
    return whole | changes


def failure(kind: str) -> dict[str, str]:
    return {"kind": kind, "cause": "The server died.", "remedy": "Look at the log.", "log": "logs/x.log"}


def refused(*codes: str) -> dict[str, Any]:
    reasons = [{"code": code, "message": code, "value": None, "threshold": None} for code in codes]
    return {"verdict": "refused", "reasons": reasons}


def write(folder: Path, value: dict[str, Any], name: str = "c4.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_a_record_becomes_a_row_with_its_coordinates_settings_and_numbers(tmp_path: Path) -> None:
    """A whole record fills its row; rates and counts are derived from what the record holds."""
    row = tidy_records([write(tmp_path, record())], [], platform_labels={"hops": "Hops (H100)"}).iloc[0]
    wanted = {
        "source": "measured",
        "platform_label": "Hops (H100)",
        "host": "hops15",
        "model": "meta-llama/Scout",
        "accelerators": 8,
        "nodes": 2,
        "engine": "vllm",
        "image_digest": "sha256:abc",
        "mode": "clean",
        "dataset": "sharegpt",
        "status": "ok",
        "failed": 0,
        "duration_s": 21.5,
        "wall_s": 22.0,
        "output_throughput_tok_s": 1234.5,
        "request_goodput_req_s": 40.25,
        "p99_e2el_ms": 1.5,
        "prefix_cache_hit_rate": 0.25,
        "preemptions": 3,
        "client_cpu_fraction": 0.1,
        "client_loop_lag_p99_ms": 12.5,
    }
    assert {name: row[name] for name in wanted} == wanted
    assert pd.isna(row["reason_codes"])
    assert pd.isna(row["figure"])


@pytest.mark.parametrize(
    ("verdict", "kind", "status"),
    [("accepted", None, "ok"), ("flagged", None, "flagged"), ("refused", "crash", "crashed")]
    + [("refused", kind, "failed") for kind in ("invalid", "client", "aborted")],
)
def test_status_follows_from_verdict_and_kind_of_failure(
    tmp_path: Path, verdict: str, kind: str | None, status: str
) -> None:
    """Only a refused point whose server died is crashed; every other refused one is failed."""
    validity = {**refused("failed_requests", "zero_tokens"), "verdict": verdict}
    changed = record(validity=validity, failure=failure(kind) if kind else None)
    row = tidy_records([], [write(tmp_path, changed)]).iloc[0]
    assert row["status"] == status
    assert row["reason_codes"] == "failed_requests;zero_tokens"
    assert (row["failure_cause"] == "The server died.") if kind else pd.isna(row["failure_cause"])


def test_a_result_of_vllm_0_9_1_is_read_with_its_odd_and_missing_keys(tmp_path: Path) -> None:
    """`request_goodput:` counts as goodput, failed requests are counted, and absent latencies are unknown."""
    old = {k: v for k, v in record()["result"].items() if "e2el" not in k and k not in {"failed", "request_goodput"}}
    old |= {"completed": 990, "request_goodput:": 12.5}
    row = tidy_records([write(tmp_path, record(result=old))], []).iloc[0]
    assert (row["failed"], row["request_goodput_req_s"]) == (10, 12.5)
    assert pd.isna(row["mean_e2el_ms"])
    assert row["mean_itl_ms"] == 1.5


def test_a_point_without_result_and_counters_has_unknown_numbers(tmp_path: Path) -> None:
    """A server that died leaves no result: the row has its coordinates, the planned prompts, and no numbers."""
    crashed = record(result=None, server_metrics=None, validity=refused("server_restarted"), failure=failure("crash"))
    row = tidy_records([], [write(tmp_path, crashed)]).iloc[0]
    assert row["num_prompts"] == 1000
    assert row[["completed", "failed", "output_throughput_tok_s", "prefix_cache_hit_rate"]].isna().all()


def test_every_measured_point_has_a_mode(tmp_path: Path) -> None:
    """What the record says, else what its definition says; one from before modes were written is the paper's."""
    unnamed, told = record(1), record(2)
    del unnamed["spec"]["benchmark"]["mode"]
    del told["spec"]["benchmark"]["mode"]
    told["method"] = {"mode": "paper", "seed": 1, "warm_up_prompts": 0, "prefix_cache": None, "idle_wait_s": None}
    paths = [write(tmp_path, each, f"c{each['point']['concurrency']}.json") for each in (unnamed, told, record(3))]
    assert list(tidy_records(paths, [])["mode"]) == ["paper", "paper", "clean"]


def test_a_platform_without_accelerators_uses_none(tmp_path: Path) -> None:
    """On the local platform a model that is not split uses 0 accelerators, not 1."""
    local = record()
    local["spec"]["hardware"]["accelerators_per_node"] = 0
    assert tidy_records([write(tmp_path, local)], []).iloc[0]["accelerators"] == 0


def test_a_record_hides_the_failure_of_an_earlier_try_and_both_hide_not_run(tmp_path: Path) -> None:
    """One row per point: the record wins over the failure, and the failure over the plan's word."""
    first = write(tmp_path / "points", record(1), "c1.json")
    stale = write(tmp_path / "failures", record(1, validity=refused("short_run"), failure=failure("invalid")))
    other = write(tmp_path / "failures", record(2, validity=refused(), failure=failure("crash")), "c2.json")
    planned = [{k: record(c)["point"][k] for k in record()["point"]} for c in (1, 2, 4)]
    table = tidy_records([first], [stale, other], planned)
    assert table["status"].tolist() == ["ok", "crashed", "not_run"]
    assert table["concurrency"].tolist() == [1, 2, 4]
    assert table["platform_label"].tolist() == ["Hops"] * 3


def test_rows_are_sorted_by_number_and_not_by_text(tmp_path: Path) -> None:
    """Concurrency 16 comes after 2, whatever the order of the files."""
    paths = [write(tmp_path, record(c), f"c{c}.json") for c in (16, 2, 128)]
    assert tidy_records(paths, [])["concurrency"].tolist() == [2, 16, 128]


def test_two_records_of_one_point_are_an_error_that_names_both(tmp_path: Path) -> None:
    """A copied file with the coordinates of another one is not silently preferred or dropped."""
    paths = [write(tmp_path, record(), name) for name in ("a.json", "b.json")]
    with pytest.raises(BerthError, match=r"b\.json.*a\.json.*concurrency 4"):
        tidy_records(paths, [])


def test_a_record_of_a_newer_schema_is_an_error(tmp_path: Path) -> None:
    """A record that a newer Berth wrote is not read by guesswork."""
    with pytest.raises(BerthError, match=r"c4\.json.*schema 2"):
        tidy_records([write(tmp_path, record(schema=2))], [])


def test_a_truncated_record_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Half a file is not half a measurement."""
    path = write(tmp_path, record())
    path.write_text(path.read_text()[:200])
    with pytest.raises(BerthError, match=r"c4\.json"):
        tidy_records([path], [])


@pytest.mark.parametrize(("key", "value"), [("duration", "long"), ("output_throughput", True), ("completed", 7.5)])
def test_a_value_of_the_wrong_kind_is_an_error_that_names_file_and_value(
    tmp_path: Path, key: str, value: object
) -> None:
    """Text, a truth value, or a fraction of a request in the result is reported, not dropped."""
    wrong = record(result={**record()["result"], key: value})
    with pytest.raises(BerthError, match=rf"c4\.json.*{key}.*{value}"):
        tidy_records([write(tmp_path, wrong)], [])


@pytest.mark.parametrize("given", [{"concurrency": 1}, {**record()["point"], "colour": "red"}])
def test_a_point_that_was_not_run_needs_its_coordinates_and_no_other_columns(given: dict[str, Any]) -> None:
    """A missing coordinate or an unknown column in `not_run` is an error."""
    with pytest.raises(BerthError, match=r"docs/tidy\.md"):
        tidy_records([], [], [given])


def test_no_points_give_an_empty_table_with_every_column(tmp_path: Path) -> None:
    """Without any record there is a table all the same, and both files of it can be read."""
    table = tidy_records([], [])
    assert (len(table), list(table.columns)) == (0, NAMES)
    write_tidy(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    assert_frame_equal(read_tidy(tmp_path / "t.parquet"), table)
    assert_frame_equal(read_tidy(tmp_path / "t.csv"), table)


def test_parquet_and_csv_hold_the_same_table(tmp_path: Path) -> None:
    """Numbers without a short decimal form, quotes, line breaks and unknown values survive both formats."""
    odd = record(2, validity=refused("zero_tokens"), failure=failure("client") | {"cause": 'a "b",\nNA é'})
    odd["result"]["duration"] = 0.1 + 0.2
    table = tidy_records([write(tmp_path, record())], [write(tmp_path, odd, "c2.json")])
    write_tidy(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    assert_frame_equal(read_tidy(tmp_path / "t.parquet"), table)
    assert_frame_equal(read_tidy(tmp_path / "t.csv"), table)
    assert table["failure_cause"].tolist()[0] == 'a "b",\nNA é'


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    """Neither file holds a date or a version that would change it from one run to the next."""
    table = tidy_records([write(tmp_path, record())], [])
    for name in ("a", "b"):
        write_tidy(table, tmp_path / f"{name}.parquet", tmp_path / f"{name}.csv")
    for kind in ("parquet", "csv"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_a_file_that_is_no_tidy_table_is_an_error(tmp_path: Path) -> None:
    """A foreign CSV and a broken Parquet file are named, and so is what to do."""
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(BerthError, match=rf"{re.escape(name)}.*Delete it"):
            read_tidy(tmp_path / name)


def test_a_table_with_other_columns_is_not_written(tmp_path: Path) -> None:
    """A table that lost a column is refused before either file exists."""
    with pytest.raises(BerthError, match="exactly the columns"):
        write_tidy(frame([]).drop(columns="host"), tmp_path / "t.parquet", tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_tables_are_combined_in_the_order_given() -> None:
    """Rows keep their order, and an empty table changes neither rows nor types."""
    one, two = frame([{"run": 2}]), frame([{"run": 1}])
    both = combine([one, frame([]), two])
    assert both["run"].tolist() == [2, 1]
    assert both.dtypes.tolist() == frame([]).dtypes.tolist()
    assert list(combine([]).columns) == NAMES


def test_every_column_is_documented_with_its_type_and_unit_and_no_other_is() -> None:
    """The table in docs/tidy.md and the table in code have the same columns in the same order."""
    rows = re.findall(r"^\| (\w+) \| (text|integer|number) \| ([^|]*)\| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
    assert [(name, kind, unit.strip()) for name, kind, unit, _ in rows] == [(c.name, c.kind, c.unit) for c in COLUMNS]


def test_units_in_names_and_in_parquet_agree_with_the_documented_ones(tmp_path: Path) -> None:
    """A name that ends in a unit has that unit, and the Parquet fields carry it."""
    ends = {"_ms": "ms", "_tok_s": "tokens/s", "_req_s": "requests/s"}
    for column in COLUMNS:
        for end, unit in ends.items():
            assert not column.name.endswith(end) or column.unit == unit, column.name
    write_tidy(frame([]), tmp_path / "t.parquet", tmp_path / "t.csv")
    for field in pq.read_schema(tmp_path / "t.parquet"):
        assert field.metadata[b"unit"].decode() == BY_NAME[field.name].unit
