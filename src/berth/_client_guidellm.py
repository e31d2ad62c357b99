"""guidellm 0.8.1 as a client of a point: its configuration, and its report in the words of vLLM's client.

In a report, `timings` are seconds since 1970: `request_start`, `first_token_iteration`, `last_token_iteration`. It says
how many events carried tokens (`token_iterations`), but not when each came: of their gaps only the mean is known.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from berth.reading import finite_number, part_of
from berth.vllm_result import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from berth.bench import BenchSettings

# guidellm reads every setting from the environment too; this one holds the server's key.
KEY_VARIABLE = "GUIDELLM__SPEC__BACKEND__API_KEY"
OUTPUTS: tuple[str, ...] = ("guidellm.json",)


def inputs(
    settings: BenchSettings, concurrency: int, samples: Iterable[Mapping[str, Any]], folder: Path
) -> dict[str, str]:
    """The files that guidellm reads, by name."""
    rows = [{"prompt": each["prompt"], "output_tokens_count": each["output_len"]} for each in samples]
    rate = float(settings.request_rate)
    load: dict[str, Any] = {"kind": "concurrent", "streams": [concurrency]}
    if not math.isinf(rate):
        load = {"kind": "poisson", "rate": [rate], "max_concurrency": concurrency}
    # With a length asked for, guidellm sets ignore_eos unless it is said here.
    body: dict[str, Any] = {"ignore_eos": settings.ignore_eos}
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": settings.base_url,
            "model": settings.served_model,
            "request_format": settings.endpoint,
            # With its 5 s, 5 of 1024 connections that were opened at once failed on a busy machine.
            "timeout_connect": None,
            "extras": {"body": body},
        },
        "profile": load,
        "constraints": [{"kind": "max_requests", "count": settings.num_prompts}],
        "data": [{"kind": "json_file", "path": str(folder / "prompts.jsonl")}],
        "outputs": [{"kind": "json", "path": str(folder / OUTPUTS[0])}],
    }
    return {
        "prompts.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "guidellm.config.json": json.dumps({"spec": spec}, indent=1) + "\n",
    }


def arguments(folder: Path) -> list[str]:
    """What follows the program."""
    return ["run", "--config", str(folder / "guidellm.config.json"), "--disable-progress"]


def read(outputs: Mapping[str, str]) -> tuple[list[Request], float | None, dict[str, float | None]]:
    """Requests, the seconds that guidellm measured, and start and end of the measured phase (seconds since 1970).

    Raises:
        ValueError, KeyError, TypeError: it is not such a report.
    """
    report = json.loads(outputs[OUTPUTS[0]])
    benchmark = report["benchmarks"][0]
    found = [_request(each, "") for each in benchmark["requests"]["successful"]]
    for status in ("errored", "incomplete"):
        ended = benchmark["requests"].get(status) or ()
        found.extend(_request(each, str(part_of(each, "info").get("error") or status)) for each in ended)
    span = {"start": finite_number(benchmark.get("start_time")), "end": finite_number(benchmark.get("end_time"))}
    return found, finite_number(benchmark.get("duration")), span


def _request(each: Mapping[str, Any], error: str) -> Request:
    times = part_of(each, "info", "timings")
    start, first, last = (
        finite_number(times.get(name)) for name in ("request_start", "first_token_iteration", "last_token_iteration")
    )
    if error or start is None or first is None or last is None:
        return Request(start_s=start or 0.0, error=error or "guidellm has no time of its first token.")
    return Request(
        start_s=start,
        ttft_s=first - start,
        latency_s=last - start,
        input_tokens=int(part_of(each, "input_metrics").get("total_tokens") or 0),
        output_tokens=int(part_of(each, "output_metrics").get("total_tokens") or 0),
        gaps=max(0, int(times.get("token_iterations") or 0) - 1),
    )
