"""Goodput from the kept per-request lists: other limits need no new point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from report_points import record

from berth.goodput import goodput_req_s, words
from berth.record import write_record
from berth.tidy import tidy_records

if TYPE_CHECKING:
    from pathlib import Path

# Four requests: quick, slow to begin, slow to go on, and failed.
REQUESTS: dict[str, Any] = {
    "ttfts": [0.1, 0.9, 0.1, 0.0],
    "latencies": [0.5, 1.3, 5.0, 0.0],
    "output_lens": [9, 9, 9, 0],
    "errors": ["", "", "", "refused"],
}


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({"ttft_ms": 500}, 2),
        ({"tpot_ms": 50}, 2),
        ({"ttft_ms": 500, "tpot_ms": 50}, 1),
        ({"e2el_ms": 1300}, 2),
        ({"ttft_ms": 50}, 0),
        ({"e2el_ms": 60000}, 3),
    ],
)
def test_a_request_counts_when_it_keeps_all_limits(limits: dict[str, float], good: int) -> None:
    """As vLLM's own count; a request that failed keeps none."""
    assert goodput_req_s(REQUESTS, 2.0, limits) == pytest.approx(good / 2)


def test_an_answer_of_one_token_has_no_time_per_further_token() -> None:
    """Its TPOT is 0, as in vLLM's count."""
    one = {"ttfts": [0.4], "latencies": [0.4], "output_lens": [1], "errors": [""]}
    assert goodput_req_s(one, 1.0, {"tpot_ms": 0.001}) == 1.0


def test_lists_of_old_clients_are_read() -> None:
    """VLLM 0.9 wrote no latencies: first token and gaps add up to them."""
    old = {"ttfts": [0.1, 0.1], "itls": [[0.1] * 8, [0.5] * 8], "output_lens": [9, 9]}
    assert goodput_req_s(old, 1.0, {"e2el_ms": 1000}) == 1.0
    assert goodput_req_s({}, 1.0, {"e2el_ms": 1000}) is None
    assert goodput_req_s(REQUESTS, None, {"e2el_ms": 1000}) is None


def test_limits_are_applied_when_the_table_is_made(tmp_path: Path) -> None:
    """The same records give another goodput under other limits, and the client's own without any."""
    made = record(1, 4)
    made["requests_file"] = "c4.requests.json.gz"
    made["result"]["duration"] = 2.0
    write_record(tmp_path / "c4.json", made, REQUESTS)
    found = {}
    for limit in (None, 500, 50):
        asked = {"mine": {"goodput": {"ttft_ms": limit}}} if limit else {}
        row = tidy_records([tmp_path / "c4.json"], [], asked=asked).iloc[0]
        value = row["request_goodput_req_s"]
        found[limit] = value if isinstance(value, float) else None
    assert found == {None: None, 500: 1.0, 50: 0.0}


def test_limits_in_words() -> None:
    """What stands below the figure."""
    assert (
        words({"ttft_ms": 500, "tpot_ms": 50})
        == "Goodput counts requests with TTFT at most 500 ms, TPOT at most 50 ms."
    )
    assert not words({})
