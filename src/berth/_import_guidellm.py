"""guidellm's JSON report, as 0.8.1 writes it (seen), and as 0.2 to 0.5 did (from their documentation and sources).

What its words mean, in the terms of vLLM's client:

- time_per_output_token_ms includes the first token, so that it is no TPOT; it is left out.
- inter_token_latency_ms of one request is vLLM's TPOT. Its summary weighs requests by their tokens, so that its mean is
  the mean ITL, while its percentiles are neither ITL's nor TPOT's. TPOT is taken from the requests, if all are there.
- request_latency is in seconds. Requests that were cut off at the end count as incomplete, and not as failed.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from berth.reading import Reading, finite_number, known, part_of, to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_guidellm(value: Any) -> bool:
    """Whether a JSON value is such a report."""
    benchmarks = value.get("benchmarks") if isinstance(value, dict) else None
    return (
        isinstance(benchmarks, list)
        and bool(benchmarks)
        and "time_to_first_token_ms" in part_of(benchmarks[0], "metrics")
    )


def read_guidellm(report: Mapping[str, Any], where: str) -> list[Reading]:
    """One reading per benchmark of the report."""
    version = part_of(report, "metadata").get("guidellm_version")
    return [_read(one, f"benchmark {number + 1}", version, where) for number, one in enumerate(report["benchmarks"])]


def _read(benchmark: Mapping[str, Any], entry: str, version: Any, where: str) -> Reading:
    metrics = part_of(benchmark, "metrics")
    strategy = part_of(benchmark, "config", "strategy") or part_of(benchmark, "args", "strategy")
    totals = (
        part_of(metrics, "request_totals")
        or part_of(benchmark, "request_totals")
        or part_of(benchmark, "run_stats", "requests_made")
    )
    completed, failed = (_count(totals.get(name)) for name in ("successful", "errored"))
    requests = [each for each in part_of(benchmark, "requests").get("successful") or () if isinstance(each, dict)]
    backend = part_of(benchmark, "config", "backend") or part_of(benchmark, "worker", "backend_info")

    def summary(name: str) -> Mapping[str, Any]:
        return part_of(metrics, name, "successful")

    def mean(name: str) -> float | None:
        return finite_number(summary(name).get("mean"))

    def times(name: str, short: str, unit: str) -> dict[str, float | None]:
        found = {"mean": summary(name).get("mean"), "median": summary(name).get("median")}
        found["p99"] = part_of(summary(name), "percentiles").get("p99")
        return {
            f"{statistic}_{short}_ms": to_ms(finite_number(value), unit, where) for statistic, value in found.items()
        }

    model = backend.get("model") or backend.get("model_name")
    values = {
        "completed": completed,
        "failed": failed,
        "num_prompts": completed + failed if completed is not None and failed is not None else None,
        "duration_s": finite_number(benchmark.get("duration")) or finite_number(benchmark.get("run_duration")),
        "total_input_tokens": _count(summary("prompt_token_count").get("total_sum")),
        "total_output_tokens": _count(summary("output_token_count").get("total_sum")),
        "request_throughput_req_s": mean("requests_per_second"),
        "output_throughput_tok_s": mean("output_tokens_per_second"),
        "total_token_throughput_tok_s": mean("tokens_per_second"),
        **times("time_to_first_token_ms", "ttft", "ms"),
        **times("request_latency", "e2el", "s"),
        "mean_itl_ms": mean("inter_token_latency_ms"),
        **(_tpot(requests) if len(requests) == completed else {}),
        "model": model if isinstance(model, str) else None,
    }
    return Reading(
        entry=entry,
        tool="guidellm",
        tool_version=str(version) if version else None,
        values=known(values),
        result={name: value for name, value in benchmark.items() if name != "requests"},
        concurrency=_concurrency(strategy),
        incomplete=_count(totals.get("incomplete")) or 0,
    )


def _concurrency(strategy: Mapping[str, Any]) -> int | None:
    """The limit on requests in flight; None where the load follows a rate without one."""
    if strategy.get("type_") == "synchronous":
        return 1
    for name in ("streams", "max_concurrency"):
        if isinstance(strategy.get(name), int) and strategy[name] > 0:
            return int(strategy[name])
    return None


def _tpot(requests: list[dict[str, Any]]) -> dict[str, float | None]:
    values = [
        float(each["inter_token_latency_ms"])
        for each in requests
        if finite_number(each.get("inter_token_latency_ms")) is not None
    ]
    if not values:
        return {}
    return {
        "mean_tpot_ms": statistics.fmean(values),
        "median_tpot_ms": statistics.median(values),
        "p99_tpot_ms": float(np.percentile(values, 99)),
    }


def _count(value: Any) -> int | None:
    number = finite_number(value)
    return None if number is None else round(number)
