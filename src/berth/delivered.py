"""The part of the asked load that a client kept up, from its own timings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def delivered_fraction(result: Mapping[str, Any], requests: Mapping[str, Any], concurrency: int) -> float | None:
    """The part of the asked concurrency that the client kept up, from its own timings, at most 1; None if unknown.

    With start times: the mean number of requests in flight from the start that fills the concurrency k to the last
    start, divided by k, where k is the smaller of the concurrency and the number of requests. In that time the client
    had more to send, so k is what a client that does its work has in flight. The ramp-down after the last start is not
    held against it. With no time between the two starts (no more requests than the concurrency), the requests in
    flight at that moment count.

    Without start times (vLLM 0.9): a client that keeps k requests in flight as long as it has any to send is done
    within sum/k + (1 - 1/k) x longest of the latencies (Graham's bound for list scheduling). The fraction is that
    bound divided by the measured duration.
    """
    latencies = _latencies(requests)
    if not latencies:
        return None
    k = min(concurrency, len(latencies))
    starts = requests.get("start_times")
    if starts and len(starts) == len(latencies):
        return min(1.0, _mean_in_flight(starts, latencies, k) / k)
    duration = finite_number(result.get("duration"))
    if not duration:
        return None
    return min(1.0, (sum(latencies) / k + (1 - 1 / k) * max(latencies)) / duration)


def offered_rate(requests: Mapping[str, Any]) -> float | None:
    """Requests per second that the client sent, from its own start times; None where it wrote none.

    vLLM's client draws the gaps and then scales them, so that the last one ends after number / rate: the number of
    requests counts, and not that of the gaps between them, of which one is before the first request.
    """
    starts = [start for each in requests.get("start_times") or () if (start := finite_number(each)) is not None]
    span = max(starts, default=0.0) - min(starts, default=0.0)
    return len(starts) / span if span > 0 else None


def _latencies(requests: Mapping[str, Any]) -> list[float]:
    if requests.get("latencies"):
        return [finite_number(each) or 0.0 for each in requests["latencies"]]
    ttfts, itls = requests.get("ttfts") or [], requests.get("itls") or []
    if len(ttfts) != len(itls):
        return []
    return [
        (finite_number(ttft) or 0.0) + sum(gap or 0.0 for gap in gaps) for ttft, gaps in zip(ttfts, itls, strict=True)
    ]


def _mean_in_flight(starts: list[float], latencies: list[float], k: int) -> float:
    ordered = sorted(starts)
    begin, end = ordered[k - 1], ordered[-1]
    spans = [(start, start + latency) for start, latency in zip(starts, latencies, strict=True)]
    if end <= begin:
        return float(sum(1 for start, stop in spans if start <= end <= stop))
    return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in spans) / (end - begin)


def finite_number(value: Any) -> float | None:
    """The value as a number, None where it is none or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
