"""The point record on disk."""

from __future__ import annotations

import copy
import gzip
import json
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from berth.errors import BerthError
from berth.record import (
    build_record,
    finite,
    is_valid,
    peek,
    read_record,
    read_requests,
    result_value,
    split_result,
    write_record,
)
from berth.recording import Instance

if TYPE_CHECKING:
    from pathlib import Path

KEY = "paper/hops/0123456789/run2/c16"
# The shape of the client's file: values of the run, lists per request, and a list that is not per request.
RAW: dict[str, Any] = {
    "date": "20261124-040000",
    "num_prompts": 2,
    "completed": 2,
    "request_goodput:": None,
    "mean_tpot_ms": math.nan,
    "spec_decode_per_position_acceptance_rates": [0.5, 0.25],
    "itls": [[0.1, 0.2], [math.inf]],
    "generated_texts": ["é", "b"],
    "errors": ["", ""],
}


def record(**changes: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "point": {
            "experiment": "paper",
            "platform": "hops",
            "spec": "0123456789",
            "run": 2,
            "concurrency": 16,
            "deployment": "scout",
        },
        "spec": {"schema": 1, "model": {"name": "scout"}},
        "server": {
            "host": "hops1",
            "job_id": None,
            "instance": 1,
            "image": {"reference": "vllm:0.9.1", "digest": None},
            "version": "0.9.1",
            "command": ["vllm", "serve"],
            "timeline": [{"event": "health", "elapsed_s": 20.5}],
        },
        "client": {
            "name": "vllm-bench",
            "version": "0.9.1",
            "mode": "warm",
            "command": ["vllm", "bench", "serve"],
            "cpu_s": 1.5,
            "cpu_fraction": 0.1,
        },
        "result": split_result(RAW)[0],
        "has_requests": True,
        "server_metrics": None,
        "validity": {"verdict": "accepted", "reasons": []},
        "wall": {"start": "2026-11-24T04:00:00.000+00:00", "end": "...", "duration_s": 15.1, "client_duration_s": 15.0},
    }
    return build_record(**{**parts, **changes})


def written(folder: Path, **changes: Any) -> Path:
    path = folder / f"{KEY}.json"
    built = record(**changes)
    write_record(path, built, split_result(RAW)[1] if built["requests_file"] else None)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A record and its lists come back as they were, with null where JSON has no number."""
    path = written(tmp_path)
    got = read_record(path, key=KEY)
    assert got == record()
    assert got["result"]["mean_tpot_ms"] is None
    assert read_requests(path, got) == {
        "itls": [[0.1, 0.2], [None]],
        "generated_texts": ["é", "b"],
        "errors": ["", ""],
    }


def test_split_leaves_keys_alone() -> None:
    """Lists per request leave the result; all other keys stay, misspelt ones of old versions too."""
    result, requests = split_result(RAW)
    assert set(requests) == {"itls", "generated_texts", "errors"}
    assert set(result) == set(RAW) - set(requests)
    assert "request_goodput:" in result


def test_values_are_found_whatever_version_wrote_them() -> None:
    """The stray colon of vLLM 0.9 is read, and its missing failure count is worked out."""
    assert result_value({"request_goodput:": 3.0}, "request_goodput") == 3.0
    assert result_value({"request_goodput": None, "request_goodput:": 3.0}, "request_goodput") is None
    assert result_value({"num_prompts": 10, "completed": 7}, "failed") == 3
    assert result_value({"num_prompts": 10, "completed": 7, "failed": 2}, "failed") == 2
    assert result_value({}, "failed") is None


def test_the_same_point_gives_the_same_bytes(tmp_path: Path) -> None:
    """Record and lists are written the same way every time: the gzip header holds no time."""
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    lists = first.with_name("c16.requests.json.gz"), second.with_name("c16.requests.json.gz")
    assert lists[0].read_bytes() == lists[1].read_bytes()
    assert json.loads(gzip.decompress(lists[0].read_bytes()))["errors"] == ["", ""]


def test_where_a_record_is_its_lists_are(tmp_path: Path) -> None:
    """The lists are written first: when they cannot be, there is no record."""
    path = tmp_path / f"{KEY}.json"
    path.with_name("c16.requests.json.gz").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_record(path, record(), {"errors": []})
    assert not path.exists()


def test_lists_and_their_name_go_together(tmp_path: Path) -> None:
    """A record that names lists is not written without them, nor one that names none with them."""
    with pytest.raises(ValueError, match="requests_file"):
        write_record(tmp_path / "c16.json", record(), None)
    with pytest.raises(ValueError, match="requests_file"):
        write_record(tmp_path / "c16.json", record(has_requests=False), {"errors": []})
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_record_is_found_by_reading_and_by_peeking(tmp_path: Path) -> None:
    """A record cut anywhere before its last bracket is refused with the file's name and what to do, cheaply too."""
    path = written(tmp_path)
    whole = path.read_bytes().rstrip()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for reader in (read_record, peek):
            with pytest.raises(BerthError, match=r"c16\.json: truncated or not JSON .*Delete it"):
                reader(path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"point": {}}', '{"schema": "1", "point": {}}', '{"schema": 1}', "3"])
def test_a_foreign_file_is_found_by_reading_and_by_peeking(tmp_path: Path, text: str) -> None:
    """JSON that is no record of Berth is named as such."""
    path = tmp_path / "c16.json"
    path.write_text(text)
    for reader in (read_record, peek):
        with pytest.raises(BerthError, match=r"c16\.json: not a point record of Berth"):
            reader(path)


def test_a_foreign_file_with_both_keys_is_found_by_peeking(tmp_path: Path) -> None:
    """A file that has "schema" and "point" but no verdict is no record either."""
    path = tmp_path / "c16.json"
    path.write_text('{"schema": 1, "point": {"experiment": "x"}}')
    for options in ({}, {"key": KEY}):
        with pytest.raises(BerthError, match="not a point record"):
            peek(path, **options)


def test_a_newer_schema_says_which_berth_is_needed(tmp_path: Path) -> None:
    """A record of a later schema is not misread; the message says what to update."""
    path = written(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    for reader in (read_record, peek):
        with pytest.raises(BerthError, match=r"newer Berth.*Update Berth to a version that writes schema 2"):
            reader(path)


def test_a_record_in_the_place_of_another_is_found(tmp_path: Path) -> None:
    """Coordinates that contradict the path are an error that tells both."""
    path = written(tmp_path)
    for reader in (read_record, peek):
        with pytest.raises(BerthError, match=f"a record of {KEY}, in the place of paper/hops/0123456789/run1/c16"):
            reader(path, key="paper/hops/0123456789/run1/c16")


def test_absent_files_are_named(tmp_path: Path) -> None:
    """A record that is not there, and lists that were not copied with it, are named."""
    with pytest.raises(BerthError, match="no such file"):
        read_record(tmp_path / "c1.json")
    path = written(tmp_path)
    path.with_name("c16.requests.json.gz").unlink()
    with pytest.raises(BerthError, match=r"c16\.requests\.json\.gz: no such file, but c16\.json names it"):
        read_requests(path, read_record(path))


def test_damaged_lists_are_named(tmp_path: Path) -> None:
    """Lists that are cut, or are something else, are an error and not an empty answer."""
    path = written(tmp_path)
    beside = path.with_name("c16.requests.json.gz")
    whole = beside.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"text", gzip.compress(b"[]"), gzip.compress(b"{")):
        beside.write_bytes(damaged)
        with pytest.raises(BerthError, match=r"requests\.json\.gz"):
            read_requests(path, read_record(path))


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("point", "run"), 0, "point.run"),
        (("point", "spec"), "xyz", "point.spec"),
        (("server", "secret"), "s", 'server: unknown key "secret"'),
        (("client", "mode"), "cold", "client.mode"),
        (("validity", "verdict"), "fine", "validity.verdict"),
        (("wall", "duration_s"), "long", "wall.duration_s"),
    ],
)
def test_a_record_of_another_form_is_neither_written_nor_read(
    tmp_path: Path, where: tuple[str, str], value: Any, told: str
) -> None:
    """What contradicts the schema is refused on the way out and on the way in, with file and key."""
    wrong = copy.deepcopy(record())
    wrong[where[0]][where[1]] = value
    with pytest.raises(BerthError, match=told):
        write_record(tmp_path / "c16.json", wrong, {})
    path = tmp_path / "c17.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(BerthError, match=rf"c17\.json: .*{told}"):
        read_record(path)


def test_a_failure_is_refused_whatever_the_verdict(tmp_path: Path) -> None:
    """A record with a failure is never valid; peeking tells."""
    failure = {"kind": "crash", "cause": "out of memory", "remedy": "less of it", "log": "logs/x.log"}
    path = written(tmp_path, failure=failure, result=None, has_requests=False)
    got = read_record(path)
    assert got["validity"]["verdict"] == "refused"
    assert got["requests_file"] is None
    assert read_requests(path, got) is None
    assert not is_valid(got)
    assert not peek(path).valid


def test_flagged_points_count_as_measured(tmp_path: Path) -> None:
    """A flagged point is valid and is not measured again."""
    reasons = [{"code": "client_bound", "message": "busy", "value": 0.95, "threshold": 0.9}]
    path = written(tmp_path, validity={"verdict": "flagged", "reasons": reasons})
    seen = peek(path, key=KEY)
    assert (seen.verdict, seen.valid, seen.point["concurrency"]) == ("flagged", True, 16)


def test_numbers_that_json_does_not_have_become_null() -> None:
    """NaN and infinities are replaced at any depth, and nothing else is."""
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": "nan", "d": True, "e": 3}}
    assert finite(value) == {"a": [1.5, None, [None, None]], "b": {"c": "nan", "d": True, "e": 3}}


def test_the_first_measured_phase_is_in_the_timeline_once() -> None:
    """The timeline tells how long after its start the server was first measured, and later points do not change it."""
    instance = Instance(1, [{"event": "warmed_up", "elapsed_s": 20.0}], ())
    begun = datetime.now(UTC) - timedelta(seconds=5)
    instance.begin_measuring(None, 26.0)
    assert len(instance.timeline) == 1
    instance.begin_measuring(begun.isoformat(), 26.0)
    instance.begin_measuring(datetime.now(UTC).isoformat(), 90.0)
    (_, first) = instance.timeline
    assert first["event"] == "first_request"
    assert first["elapsed_s"] == pytest.approx(21.0, abs=0.9)
