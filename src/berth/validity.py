"""Whether a measured point can be believed: one verdict, and a reason for every doubt. See docs/validity.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Verdict = Literal["accepted", "flagged", "refused"]

REFUSING = (
    "failed_requests",
    "zero_tokens",
    "short_run",
    "concurrency_not_delivered",
    "rate_not_offered",
    "server_restarted",
    "engine_died",
)
FLAGGING = ("client_bound", "warm_cache", "preemptions", "token_mismatch")


@dataclass(frozen=True)
class Thresholds:
    """Where doubt begins; docs/validity.md gives the reason of each default.

    `max_failed` requests may fail; the client's own duration is at least `min_duration_s`; at least
    `min_concurrency_fraction` of the concurrency, and `min_rate_fraction` of a swept rate, is delivered; the client
    uses at most `client_bound_cpu` CPU seconds per second; at most `warm_cache_hit_rate` of the queried tokens come
    from the prefix cache; at most
    `max_preemptions` happen; client and server differ by at most `token_mismatch_fraction` in output tokens.
    """

    max_failed: int = 0
    min_duration_s: float = 2.0
    min_concurrency_fraction: float = 0.9
    min_rate_fraction: float = 0.9
    client_bound_cpu: float = 0.9
    warm_cache_hit_rate: float = 0.05
    max_preemptions: int = 0
    token_mismatch_fraction: float = 0.01


@dataclass(frozen=True)
class Reason:
    """One doubt: its code, what was found in words, the value, and the threshold that it missed."""

    code: str
    message: str
    value: float | str | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Judgement:
    """The `validity` of a point record."""

    verdict: Verdict
    reasons: tuple[Reason, ...]

    def as_dict(self) -> dict[str, Any]:
        """The judgement as JSON values."""
        return {
            "verdict": self.verdict,
            "reasons": [
                {"code": each.code, "message": each.message, "value": each.value, "threshold": each.threshold}
                for each in self.reasons
            ],
        }


@dataclass(frozen=True)
class Observed:
    """All that is known of a point when it is judged.

    `result` and `requests` are the client's (`berth.record.split_result`), `server_metrics` and `restarted` are of
    `berth.metrics.difference`, `cpu_fraction` is the client's CPU seconds per measured second. What is None is not
    judged. `offered` says that the rate was asked for without a limit on requests in flight.
    """

    result: Mapping[str, Any]
    requests: Mapping[str, Any]
    concurrency: int
    num_prompts: int
    request_rate: float | Literal["inf"] = "inf"
    server_metrics: Mapping[str, float | None] | None = None
    restarted: bool = False
    cpu_fraction: float | None = None
    offered: bool = False


def judge(observed: Observed, thresholds: Thresholds) -> Judgement:
    """The verdict on a point: refused if one reason refuses, flagged if there is any other, accepted without any."""
    reasons = (*_refusals(observed, thresholds), *_flags(observed, thresholds))
    if any(each.code in REFUSING for each in reasons):
        return Judgement("refused", reasons)
    return Judgement("flagged" if reasons else "accepted", reasons)


def died(cause: str, *, replaced: bool = False) -> dict[str, Any]:
    """The `validity` of a point whose server did not live to its end, so that there is nothing else to judge.

    `replaced` says that another one runs in its place already, as on Kubernetes.
    """
    return Judgement("refused", (Reason("server_restarted" if replaced else "engine_died", cause),)).as_dict()


def _refusals(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    if observed.restarted:
        yield Reason("server_restarted", "The server was restarted during the point: its counters began anew.")
    failed = _failed_requests(observed, thresholds)
    if failed is not None:
        yield failed
    tokens = _number(observed.result.get("total_output_tokens"))
    if not tokens:
        yield Reason("zero_tokens", "The client counted no generated token.", tokens, 1)
    duration = _number(observed.result.get("duration"))
    if duration is None or duration < thresholds.min_duration_s:
        told = "unknown" if duration is None else f"{duration:.2f} s"
        message = f"The measured time is {told}; at least {thresholds.min_duration_s:g} s are wanted."
        yield Reason("short_run", message, duration, thresholds.min_duration_s)
    if failed is None:
        # A failed request has no latency: what it does to the concurrency is told by its own reason.
        yield from _concurrency_not_delivered(observed, thresholds)
        yield from _rate_not_offered(observed, thresholds)


def _failed_requests(observed: Observed, thresholds: Thresholds) -> Reason | None:
    completed = _number(observed.result.get("completed")) or 0
    # Not the client's own "failed": old versions have none, and a client that lost requests counts them nowhere.
    missing = observed.num_prompts - completed
    if missing <= thresholds.max_failed:
        return None
    message = f"{completed:.0f} of {observed.num_prompts} requests completed."
    error = next((str(each).strip() for each in observed.requests.get("errors") or () if each), "")
    if error:
        message += f" First error: {error.splitlines()[-1][:300]}"
    return Reason("failed_requests", message, missing, thresholds.max_failed)


def _concurrency_not_delivered(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    if not math.isinf(float(observed.request_rate)):
        return
    fraction = delivered_fraction(observed.result, observed.requests, observed.concurrency)
    if fraction is None or fraction >= thresholds.min_concurrency_fraction:
        return
    wanted = min(observed.concurrency, observed.num_prompts)
    message = (
        f"The client kept {fraction * wanted:.1f} requests in flight while it had more to send; {wanted} were asked."
    )
    yield Reason("concurrency_not_delivered", message, fraction, thresholds.min_concurrency_fraction)


def _rate_not_offered(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    rate = offered_rate(observed.requests) if observed.offered else None
    if rate is None or rate >= thresholds.min_rate_fraction * float(observed.request_rate):
        return
    fraction = rate / float(observed.request_rate)
    message = f"The client sent {rate:.3g} requests/s; {float(observed.request_rate):g} were asked."
    yield Reason("rate_not_offered", message, fraction, thresholds.min_rate_fraction)


def _flags(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    cpu = observed.cpu_fraction
    if cpu is not None and cpu > thresholds.client_bound_cpu:
        message = f"The client used {cpu:.2f} CPU seconds per second; it works on one core and may limit the point."
        yield Reason("client_bound", message, cpu, thresholds.client_bound_cpu)
    counted = observed.server_metrics
    if counted is None or observed.restarted:
        return
    queries, hits = counted.get("prefix_cache_queries"), counted.get("prefix_cache_hits")
    if queries and hits is not None and hits / queries > thresholds.warm_cache_hit_rate:
        message = f"{hits / queries:.1%} of the prompt tokens came from the server's prefix cache."
        yield Reason("warm_cache", message, hits / queries, thresholds.warm_cache_hit_rate)
    preemptions = counted.get("preemptions")
    if preemptions is not None and preemptions > thresholds.max_preemptions:
        message = f"The server preempted {preemptions:.0f} requests: its key-value cache was full."
        yield Reason("preemptions", message, preemptions, thresholds.max_preemptions)
    yield from _token_mismatch(observed, counted, thresholds)


def _token_mismatch(
    observed: Observed, counted: Mapping[str, float | None], thresholds: Thresholds
) -> Iterator[Reason]:
    client, server = _number(observed.result.get("total_output_tokens")), counted.get("generation_tokens")
    if client is None or server is None:
        return
    mismatch = abs(client - server) / max(client, server, 1.0)
    if mismatch > thresholds.token_mismatch_fraction:
        message = f"The client counted {client:.0f} generated tokens, the server {server:.0f}."
        yield Reason("token_mismatch", message, mismatch, thresholds.token_mismatch_fraction)


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
    duration = _number(result.get("duration"))
    if not duration:
        return None
    return min(1.0, (sum(latencies) / k + (1 - 1 / k) * max(latencies)) / duration)


def offered_rate(requests: Mapping[str, Any]) -> float | None:
    """Requests per second that the client sent, from its own start times; None where it wrote none.

    vLLM's client draws the gaps and then scales them, so that the last one ends after number / rate: the number of
    requests counts, and not that of the gaps between them, of which one is before the first request.
    """
    starts = [start for each in requests.get("start_times") or () if (start := _number(each)) is not None]
    span = max(starts, default=0.0) - min(starts, default=0.0)
    return len(starts) / span if span > 0 else None


def _latencies(requests: Mapping[str, Any]) -> list[float]:
    if requests.get("latencies"):
        return [_number(each) or 0.0 for each in requests["latencies"]]
    ttfts, itls = requests.get("ttfts") or [], requests.get("itls") or []
    if len(ttfts) != len(itls):
        return []
    return [(_number(ttft) or 0.0) + sum(gap or 0.0 for gap in gaps) for ttft, gaps in zip(ttfts, itls, strict=True)]


def _mean_in_flight(starts: list[float], latencies: list[float], k: int) -> float:
    ordered = sorted(starts)
    begin, end = ordered[k - 1], ordered[-1]
    spans = [(start, start + latency) for start, latency in zip(starts, latencies, strict=True)]
    if end <= begin:
        return float(sum(1 for start, stop in spans if start <= end <= stop))
    return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in spans) / (end - begin)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
