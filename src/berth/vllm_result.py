"""What another client measured of its requests, in the words of vLLM's own client: its names, its definitions."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PERCENTILE = 99.0


@dataclass(frozen=True)
class Request:
    """One request. Times are in seconds; `start_s` counts from anywhere, but from the same for all.

    `ttft_s` is from the start to the first token, `latency_s` to the last one. `gaps_s` are those between the events of
    the stream, None where the client kept none of them; `gaps` is their number. `error` is "" where it succeeded.
    """

    start_s: float
    ttft_s: float = 0.0
    latency_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    gaps: int = 0
    gaps_s: tuple[float, ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class Asked:
    """What the point asked for."""

    num_prompts: int
    concurrency: int
    request_rate: float
    model: str


def vllm_result(requests: Sequence[Request], duration_s: float | None, asked: Asked) -> dict[str, Any]:
    """The values of a run by the keys of vLLM's client; null where this client's output does not hold them."""
    done = [each for each in requests if not each.error]
    output = sum(each.output_tokens for each in done)
    read = sum(each.input_tokens for each in done)

    def rate(count: float) -> float | None:
        return count / duration_s if duration_s else None

    return {
        "model_id": asked.model,
        "num_prompts": asked.num_prompts,
        "request_rate": "inf" if math.isinf(asked.request_rate) else asked.request_rate,
        "max_concurrency": asked.concurrency,
        "duration": duration_s,
        "completed": len(done),
        "failed": asked.num_prompts - len(done),
        "total_input_tokens": read,
        "total_output_tokens": output,
        "request_throughput": rate(len(done)),
        "request_goodput": None,
        "output_throughput": rate(output),
        "total_token_throughput": rate(read + output),
        **_times("ttft", [each.ttft_s for each in done]),
        # As vLLM's client: of each request with more than one token, without the first.
        **_times("tpot", [(r.latency_s - r.ttft_s) / (r.output_tokens - 1) for r in done if r.output_tokens > 1]),
        **_gaps(done),
        **_times("e2el", [each.latency_s for each in done]),
    }


def vllm_lists(requests: Sequence[Request]) -> dict[str, list[Any]]:
    """The lists with an entry per request by the keys of vLLM's client, in the order of the starts."""
    ordered = sorted(requests, key=lambda each: each.start_s)
    lists: dict[str, list[Any]] = {
        "input_lens": [each.input_tokens for each in ordered],
        "output_lens": [each.output_tokens for each in ordered],
        "ttfts": [each.ttft_s for each in ordered],
        "latencies": [each.latency_s for each in ordered],
        "start_times": [each.start_s for each in ordered],
        "errors": [each.error for each in ordered],
    }
    if all(each.gaps_s is not None or each.error for each in ordered):
        lists["itls"] = [list(each.gaps_s or ()) for each in ordered]
    return lists


def not_given(result: dict[str, Any]) -> list[str]:
    """The keys that this client's output does not hold."""
    return [key for key, value in result.items() if value is None]


def _gaps(done: Sequence[Request]) -> dict[str, float | None]:
    if all(each.gaps_s is not None for each in done):
        return _times("itl", [gap for each in done for gap in each.gaps_s or ()])
    # Of their sum and their number the mean is known; the middle and the tail are not.
    count = sum(each.gaps for each in done)
    mean = 1000 * sum(each.latency_s - each.ttft_s for each in done) / count if count else None
    return {**dict.fromkeys(_times("itl", []), None), "mean_itl_ms": mean}


def _times(name: str, values_s: Iterable[float]) -> dict[str, float | None]:
    values = sorted(1000 * value for value in values_s)
    return {
        f"mean_{name}_ms": statistics.fmean(values) if values else None,
        f"median_{name}_ms": percentile(values, 50.0),
        f"std_{name}_ms": statistics.pstdev(values) if values else None,
        f"p{_PERCENTILE:g}_{name}_ms": percentile(values, _PERCENTILE),
    }


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """A percentile of rising values, by linear interpolation as NumPy's default; None of nothing."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
