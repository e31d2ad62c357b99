"""Goodput: answered requests per second that kept all limits on latency, from the per-request lists of a point.

The limits are no part of a measurement. They are applied when the table is made, so that other limits need no new
point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.delivered import finite_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# As in the configuration and in words.
LIMITS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def goodput_req_s(
    requests: Mapping[str, Any], duration_s: float | None, limits_ms: Mapping[str, float]
) -> float | None:
    """Requests per second within all limits, as vLLM's `--goodput` counts them; None where the lists do not tell.

    `requests` are the client's lists (record.split_result). A request whose answer has one token has a TPOT of 0; one
    that failed, or was answered with nothing, keeps no limit.
    """
    ttfts, lengths = requests.get("ttfts"), requests.get("output_lens")
    latencies = _latencies_s(requests)
    if not ttfts or not duration_s or not lengths or not (len(ttfts) == len(lengths) == len(latencies)):
        return None
    errors = requests.get("errors") or [""] * len(ttfts)
    good = 0
    for ttft, length, latency, error in zip(ttfts, lengths, latencies, errors, strict=False):
        ttft_s = finite_number(ttft)
        if error or not length or ttft_s is None or latency is None:
            continue
        tpot_s = (latency - ttft_s) / (length - 1) if length > 1 else 0.0
        found_ms = {"ttft_ms": 1000 * ttft_s, "tpot_ms": 1000 * tpot_s, "e2el_ms": 1000 * latency}
        good += all(found_ms[name] <= limit for name, limit in limits_ms.items())
    return good / duration_s


def words(limits_ms: Mapping[str, float]) -> str:
    """The limits in a sentence; "" for none."""
    told = [f"{name} at most {limits_ms[key]:g} ms" for key, name in LIMITS.items() if key in limits_ms]
    return f"Goodput counts requests with {', '.join(told)}." if told else ""


def _latencies_s(requests: Mapping[str, Any]) -> Sequence[float | None]:
    if requests.get("latencies"):
        return [finite_number(each) for each in requests["latencies"]]
    ttfts, itls = requests.get("ttfts") or [], requests.get("itls") or []
    if len(ttfts) != len(itls):
        return []
    return [(finite_number(ttft) or 0.0) + sum(gaps) for ttft, gaps in zip(ttfts, itls, strict=True)]
