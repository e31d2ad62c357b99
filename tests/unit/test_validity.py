"""The gate that every point passes."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.delivered import delivered_fraction
from berth.validity import FLAGGING, REFUSING, SETTABLE, Observed, Policy, Thresholds, died, judge, not_idle, policy_of

# Thresholds that the table of the docs says in words: "none may fail".
_IN_WORDS = {"max_failed", "max_preemptions"}
DOCS = Path(__file__).parents[2] / "docs" / "validity.md"


def closed_loop(concurrency: int, latencies: list[float], pause_s: float = 0.0) -> dict[str, Any]:
    """The timings of a client that always refills its slots, `pause_s` after each answer."""
    free = [0.0] * concurrency
    starts = []
    for latency in latencies:
        slot = min(range(concurrency), key=lambda index: free[index])
        starts.append(free[slot])
        free[slot] += latency + pause_s
    ends = [start + latency for start, latency in zip(starts, latencies, strict=True)]
    return {"start_times": starts, "latencies": latencies, "duration": max(ends)}


def sent(count: int, *, rate: float) -> dict[str, Any]:
    """What the client wrote of requests that it sent one after the other, the first one gap after its start."""
    return {"start_times": [number / rate for number in range(1, count + 1)], "latencies": [0.5] * count}


def observed(concurrency: int = 4, **changes: Any) -> Observed:
    """A healthy point of 100 requests, with changes."""
    timings = closed_loop(concurrency, [0.5 + 0.01 * (index % 40) for index in range(100)])
    result = {
        "completed": 100,
        "failed": 0,
        "total_output_tokens": 1000,
        "duration": timings.pop("duration"),
        **changes.pop("result", {}),
    }
    counted = {
        "prompt_tokens": 2000.0,
        "generation_tokens": 1000.0,
        "prefix_cache_queries": 2000.0,
        "prefix_cache_hits": 0.0,
        "preemptions": 0.0,
        **changes.pop("server_metrics", {}),
    }
    settings: dict[str, Any] = {
        "requests": timings,
        "concurrency": concurrency,
        "num_prompts": 100,
        "server_metrics": counted,
        "cpu_fraction": 0.1,
        **changes,
    }
    return Observed(result=result, **settings)


def codes(seen: Observed, thresholds: Thresholds | None = None) -> tuple[str, list[str]]:
    judgement = judge(seen, thresholds or Thresholds())
    return judgement.verdict, [reason.code for reason in judgement.reasons]


def test_a_healthy_point_is_accepted() -> None:
    """A point without doubt has no reasons."""
    assert codes(observed()) == ("accepted", [])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"result": {"completed": 99}}, "failed_requests"),
        ({"result": {"total_output_tokens": 0}, "server_metrics": {"generation_tokens": 0.0}}, "zero_tokens"),
        ({"result": {"duration": 1.0}}, "short_run"),
        ({"result": {"duration": math.nan}}, "short_run"),
        ({"restarted": True}, "server_restarted"),
        ({"requests": closed_loop(4, [0.5] * 100, pause_s=0.2)}, "concurrency_not_delivered"),
        ({"requests": sent(100, rate=7), "request_rate": 8.0, "offered": True}, "rate_not_offered"),
        ({"busy": "The server has other work."}, "not_idle"),
    ],
)
def test_what_says_nothing_about_the_server_is_refused(changes: dict[str, Any], code: str) -> None:
    """Each refusing doubt refuses the point, and is its only reason."""
    assert codes(observed(**changes)) == ("refused", [code])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cpu_fraction": 0.95}, "client_bound"),
        ({"loop_lag_p99_ms": 130.0}, "client_bound"),
        ({"clock_step_s": -0.2}, "clock_step"),
        ({"server_clock_step_s": 30.0}, "clock_step"),
        ({"server_metrics": {"prefix_cache_hits": 500.0}}, "warm_cache"),
        ({"server_metrics": {"preemptions": 1.0}}, "preemptions"),
        ({"server_metrics": {"generation_tokens": 1100.0}}, "token_mismatch"),
    ],
)
def test_what_casts_doubt_is_flagged(changes: dict[str, Any], code: str) -> None:
    """Each flagging doubt keeps the point and is told."""
    assert codes(observed(**changes)) == ("flagged", [code])


def test_every_code_is_provoked_by_a_test_above() -> None:
    """The two tables above provoke every code that the module can give."""
    marks = [
        *test_what_says_nothing_about_the_server_is_refused.pytestmark,  # type: ignore[attr-defined]
        *test_what_casts_doubt_is_flagged.pytestmark,  # type: ignore[attr-defined]
    ]
    provoked = {case[1] for mark in marks for case in mark.args[1]}
    assert provoked | {died("It was killed.")["reasons"][0]["code"]} == {*REFUSING, *FLAGGING}


def test_a_missing_failed_count_does_not_hide_failures() -> None:
    """Old versions wrote no "failed": the asked number of prompts minus the completed ones is what counts."""
    seen = observed(result={"completed": 0, "total_output_tokens": 0})
    del seen.result["failed"]  # type: ignore[attr-defined]
    verdict, found = codes(seen)
    assert verdict == "refused"
    assert found[:2] == ["failed_requests", "zero_tokens"]


def test_the_first_error_is_told() -> None:
    """The reason of failed requests ends with the last line of the first error, which says what happened."""
    seen = observed(result={"completed": 99}, requests={"errors": ["", "Traceback ...\nOSError: no route", "other"]})
    (reason,) = judge(seen, Thresholds()).reasons
    assert reason.message == "99 of 100 requests completed. First error: OSError: no route"
    assert (reason.value, reason.threshold) == (1, 0)


def test_what_is_unknown_is_not_judged() -> None:
    """Without metrics, CPU time and per-request timings only the client's totals are judged."""
    seen = dataclasses.replace(observed(), requests={}, server_metrics=None, cpu_fraction=None)
    assert codes(seen) == ("accepted", [])


def test_concurrency_is_not_judged_at_a_finite_rate() -> None:
    """At a request rate the concurrency is only a limit."""
    slow = closed_loop(4, [0.5] * 100, pause_s=0.2)
    assert codes(observed(requests=slow, request_rate=3.0)) == ("accepted", [])


@pytest.mark.parametrize("count", [1, 3, 63, 64, 65, 100, 127, 1000])
def test_a_client_that_refills_its_slots_delivers_whatever_the_number_of_requests(count: int) -> None:
    """Filling and draining are not held against the client, with start times and without."""
    latencies = [0.2 + 0.05 * (index * 7 % 23) for index in range(count)]
    timings = closed_loop(64, latencies)
    result = {"duration": timings.pop("duration")}
    assert delivered_fraction(result, timings, 64) == pytest.approx(1.0)
    halves = {"ttfts": [each / 2 for each in latencies], "itls": [[each / 4, each / 4] for each in latencies]}
    assert delivered_fraction(result, halves, 64) == pytest.approx(1.0)


def test_pauses_between_requests_lower_the_delivered_fraction() -> None:
    """A client that leaves a slot empty for as long as it was full delivers half, seen with start times and without."""
    timings = closed_loop(4, [0.5] * 400, pause_s=0.5)
    result = {"duration": timings.pop("duration")}
    assert delivered_fraction(result, timings, 4) == pytest.approx(0.5, abs=0.02)
    assert delivered_fraction(result, {"latencies": timings["latencies"]}, 4) == pytest.approx(0.5, abs=0.02)


def test_a_burst_that_ends_before_it_is_sent_is_not_delivered() -> None:
    """With no more requests than the concurrency, those in flight at the last start count."""
    starts = [0.1 * index for index in range(10)]
    assert delivered_fraction({}, {"start_times": starts, "latencies": [0.25] * 10}, 16) == pytest.approx(0.3)


def test_thresholds_decide() -> None:
    """A benchmark may set another threshold, and the reason tells which one was missed."""
    seen = observed(result={"duration": 5.0})
    assert codes(seen) == ("accepted", [])
    (reason,) = judge(seen, Thresholds(min_duration_s=10)).reasons
    assert (reason.code, reason.value, reason.threshold) == ("short_run", 5.0, 10)


def test_judgement_as_json_has_the_record_s_form() -> None:
    """The judgement is written with the five keys of a reason."""
    told = judge(observed(cpu_fraction=0.95), Thresholds()).as_dict()
    assert told["verdict"] == "flagged"
    assert set(told["reasons"][0]) == {"code", "message", "value", "threshold", "action"}


def test_an_action_decides_and_is_written() -> None:
    """Each settable code can refuse, flag or be accepted, and an accepted reason stands in the record all the same."""
    for code, changes in {"warm_cache": {"server_metrics": {"prefix_cache_hits": 500.0}}, "short_run": {}}.items():
        seen = observed(**changes, **({"result": {"duration": 1.0}} if code == "short_run" else {}))
        for action, verdict in (("refuse", "refused"), ("flag", "flagged"), ("accept", "accepted")):
            told = judge(seen, Thresholds(), {code: action}).as_dict()
            assert told["verdict"] == verdict
            assert [(each["code"], each["action"]) for each in told["reasons"]] == [(code, action)]


def test_one_refusing_reason_among_accepted_ones_refuses() -> None:
    """Accepting one code does not accept another."""
    seen = observed(result={"duration": 1.0, "total_output_tokens": 0}, server_metrics={"generation_tokens": 0.0})
    assert codes(seen)[0] == "refused"
    judgement = judge(seen, Thresholds(), {"zero_tokens": "accept"})
    assert judgement.verdict == "refused"
    assert [reason.code for reason in judgement.refusing] == ["short_run"]


def test_a_busy_server_is_judged_before_its_point() -> None:
    """A point that is about to begin on a busy server is refused, or measured with the reason, as the policy says."""
    assert not_idle("Two requests are on it.", 2, Policy()).verdict == "refused"
    judgement = not_idle("Two requests are on it.", 2, policy_of({"actions": {"not_idle": "flag"}, "idle_wait_s": 5}))
    assert (judgement.verdict, judgement.reasons[0].threshold) == ("flagged", 5)


def test_the_schema_lets_exactly_the_settable_codes_be_set() -> None:
    """What the configuration accepts under `validity` are the thresholds and the codes of the gate."""
    schema = yaml.safe_load((DOCS.parents[1] / "workflow/schemas/config.schema.yaml").read_text())["$defs"]["validity"]
    actions = schema["properties"].pop("actions")
    assert set(schema["properties"]) == {each.name for each in dataclasses.fields(Thresholds)}
    assert set(actions["propertyNames"]["enum"]) == set(SETTABLE)


def test_docs_and_code_list_the_same_codes_and_thresholds() -> None:
    """docs/validity.md has every code with its verdict, a section for each, and the defaults of the code."""
    text = DOCS.read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|.*\| (.*) \|$", text, flags=re.MULTILINE)
    assert {code: verdict for code, verdict, _ in rows} == {
        **dict.fromkeys(REFUSING, "refused"),
        **dict.fromkeys(FLAGGING, "flagged"),
    }
    assert re.findall(r"^### (\w+)$", text, flags=re.MULTILINE) == [code for code, _, _ in rows]
    told = {name: float(value) for _, _, cell in rows for name, value in re.findall(r"`(\w+)`: ([0-9.]+)", cell)}
    defaults = dataclasses.asdict(Thresholds())
    assert told == {name: value for name, value in defaults.items() if name not in _IN_WORDS}


@pytest.mark.parametrize(("rate", "offered", "verdict"), [(7.5, True, "accepted"), (4, False, "accepted")])
def test_a_rate_counts_where_nothing_holds_requests_back(rate: float, offered: bool, verdict: str) -> None:
    """A tenth below the rate is let pass; with a limit on requests in flight, the rate is not judged at all."""
    seen = observed(requests=sent(100, rate=rate), request_rate=8.0, offered=offered)
    assert codes(seen)[0] == verdict
