"""aiperf 0.13.0 as a client of a point: its configuration, and its records in the words of vLLM's client.

profile_export.jsonl has one record per request: `inter_chunk_latency` are all gaps between the events of its stream, in
the unit that it names. profile_export_aiperf.json has the seconds that aiperf measured.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from berth.reading import finite_number, part_of, to_ms
from berth.vllm_result import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from berth.bench import BenchSettings

# Named in the configuration as ${OPENAI_API_KEY}, which aiperf fills and never writes down.
KEY_VARIABLE = "OPENAI_API_KEY"
RECORDS, SUMMARY = "profile_export.jsonl", "profile_export_aiperf.json"
OUTPUTS: tuple[str, ...] = (f"aiperf/{RECORDS}", f"aiperf/{SUMMARY}")


def inputs(
    settings: BenchSettings, concurrency: int, samples: Iterable[Mapping[str, Any]], folder: Path
) -> dict[str, str]:
    """The files that aiperf reads, by name. JSON is YAML, which its configuration is."""
    rows = [{"text": each["prompt"], "output_length": each["output_len"]} for each in samples]
    rate = float(settings.request_rate)
    load: dict[str, Any] = {"type": "concurrency"} if math.isinf(rate) else {"type": "poisson", "rate": rate}
    extra: dict[str, Any] = {"ignore_eos": True} if settings.ignore_eos else {}
    if settings.temperature is not None:
        extra["temperature"] = settings.temperature
    benchmark = {
        "model": settings.served_model,
        "endpoint": {
            "url": settings.base_url,
            "type": "chat",
            "streaming": True,
            "api_key": f"${{{KEY_VARIABLE}:none}}",
            # As vLLM's client counts.
            "use_server_token_count": True,
            "extra": extra,
        },
        "tokenizer": {"name": settings.tokenizer},
        "dataset": {
            "type": "file",
            "path": str(folder / "prompts.jsonl"),
            "format": "single_turn",
            "sampling": "sequential",
        },
        "phases": {**load, "concurrency": concurrency, "requests": settings.num_prompts},
        "artifacts": {"dir": str(folder / "aiperf"), "records": ["jsonl"], "summary": ["json"]},
        # Nothing but the requests of the point reaches the server while it is measured.
        "gpu_telemetry": {"enabled": False},
        "server_metrics": {"enabled": False},
    }
    return {
        "prompts.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "aiperf.yaml": json.dumps({"schemaVersion": "2.0", "benchmark": benchmark}, indent=1) + "\n",
    }


def arguments(folder: Path) -> list[str]:
    """What follows the program."""
    return ["profile", "--config", str(folder / "aiperf.yaml"), "--ui", "none"]


def read(outputs: Mapping[str, str]) -> tuple[list[Request], float | None, dict[str, float | None]]:
    """Requests, the seconds that aiperf measured, and start and end of the measured phase (seconds since 1970).

    Raises:
        ValueError, KeyError, TypeError: they are not such files.
    """
    summary = json.loads(outputs[OUTPUTS[1]])
    records = [json.loads(line) for line in outputs[OUTPUTS[0]].splitlines() if line.strip()]
    found = [_request(each) for each in records if each["metadata"].get("benchmark_phase") != "warmup"]
    duration = part_of(summary, "benchmark_duration")
    milliseconds = to_ms(finite_number(duration.get("avg")), str(duration.get("unit", "s")), SUMMARY)
    starts = [each["metadata"]["request_start_ns"] / 1e9 for each in records]
    ends = [each["metadata"]["request_end_ns"] / 1e9 for each in records if each["metadata"].get("request_end_ns")]
    span: dict[str, float | None] = {"start": min(starts, default=None), "end": max(ends, default=None)}
    return found, None if milliseconds is None else milliseconds / 1000, span


def _request(record: Mapping[str, Any]) -> Request:
    metrics = part_of(record, "metrics")

    def seconds(name: str) -> float | None:
        part = part_of(metrics, name)
        value = to_ms(finite_number(part.get("value")), str(part.get("unit", "ms")), RECORDS)
        return None if value is None else value / 1000

    def count(name: str) -> int:
        return int(finite_number(part_of(metrics, name).get("value")) or 0)

    start = record["metadata"]["request_start_ns"] / 1e9
    error, first = record.get("error"), seconds("time_to_first_token")
    if error or first is None:
        told = part_of(error).get("message") or error or "aiperf has no time of its first token."
        return Request(start_s=start, error=str(told))
    chunks = part_of(metrics, "inter_chunk_latency")
    scale = to_ms(1.0, str(chunks.get("unit", "ms")), RECORDS) or 1.0
    gaps = tuple(float(gap) * scale / 1000 for gap in chunks.get("value") or ())
    return Request(
        start_s=start,
        ttft_s=first,
        # Its request_latency has the usage event after the last token; vLLM's ends with the last token.
        latency_s=first + sum(gaps) if gaps else seconds("request_latency") or first,
        input_tokens=count("input_sequence_length"),
        output_tokens=count("output_sequence_length"),
        gaps=len(gaps),
        gaps_s=gaps,
    )
