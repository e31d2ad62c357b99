"""aiperf's profile_export_aiperf.json, as 0.13.0 writes it (seen), and older ones (from their documentation).

Each metric names its unit. inter_token_latency is per request, without the first token: vLLM's TPOT.
inter_chunk_latency is every gap: vLLM's ITL. Where it has no more values than requests it is none, and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.reading import Reading, finite_number, known, part_of, to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATISTICS = {"mean": "avg", "median": "p50", "p99": "p99"}


def is_aiperf(value: Any) -> bool:
    """Whether a JSON value is such an export."""
    return isinstance(value, dict) and "input_config" in value and "unit" in part_of(value, "request_throughput")


def read_aiperf(export: Mapping[str, Any], where: str) -> Reading:
    """The one measurement of an export."""

    def number(name: str) -> float | None:
        return finite_number(part_of(export, name).get("avg"))

    def count(name: str) -> int | None:
        value = number(name)
        return None if value is None else round(value)

    def times(name: str, short: str) -> dict[str, float | None]:
        metric = part_of(export, name)
        return {
            f"{ours}_{short}_ms": to_ms(finite_number(metric[theirs]), str(metric.get("unit")), where)
            for ours, theirs in _STATISTICS.items()
            if theirs in metric
        }

    def seconds(name: str) -> float | None:
        milliseconds = to_ms(number(name), str(part_of(export, name).get("unit", "s")), where)
        return None if milliseconds is None else milliseconds / 1000

    completed = count("request_count")
    failed = count("error_request_count")
    if failed is None and export.get("error_summary") == []:
        failed = 0
    gaps = finite_number(part_of(export, "inter_chunk_latency").get("count"))
    config = part_of(export, "input_config")
    values = {
        "completed": completed,
        "failed": failed,
        "num_prompts": completed + failed if completed is not None and failed is not None else None,
        "duration_s": seconds("benchmark_duration"),
        "total_input_tokens": count("total_isl"),
        "total_output_tokens": count("total_osl"),
        "request_throughput_req_s": number("request_throughput"),
        "request_goodput_req_s": number("goodput"),
        "output_throughput_tok_s": number("output_token_throughput"),
        "total_token_throughput_tok_s": number("total_token_throughput"),
        **times("time_to_first_token", "ttft"),
        **times("inter_token_latency", "tpot"),
        **(times("inter_chunk_latency", "itl") if gaps and completed and gaps > completed else {}),
        **times("request_latency", "e2el"),
        "model": _model(config),
    }
    cancelled = (("run_cancelled", "aiperf says that the run was cancelled."),) if export.get("was_cancelled") else ()
    version = export.get("aiperf_version")
    return Reading(
        entry="",
        tool="aiperf",
        tool_version=str(version) if version else None,
        values=known(values),
        result=export,
        concurrency=_concurrency(config),
        server_tokens=number("total_usage_completion_tokens"),
        reasons=cancelled,
    )


def _concurrency(config: Mapping[str, Any]) -> int | None:
    phases = [phase for phase in config.get("phases") or () if part_of(phase).get("kind", "profiling") == "profiling"]
    for place in (*phases, part_of(config, "loadgen")):
        value = finite_number(part_of(place).get("concurrency"))
        if value:
            return int(value)
    return None


def _model(config: Mapping[str, Any]) -> str | None:
    items = part_of(config, "models").get("items") or [{}]
    names = part_of(config, "endpoint").get("model_names") or [part_of(items[0]).get("name")]
    return names[0] if isinstance(names, list) and isinstance(names[0], str) else None
