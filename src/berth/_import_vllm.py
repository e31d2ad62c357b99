"""vLLM's `--save-result` JSON, of `benchmark_serving.py` and of `vllm bench serve`, whatever the version.

Its latencies are in ms and its durations in s already. 0.9.1 writes "request_goodput:" with a colon, and no "failed".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.columns import BY_NAME, RESULT_KEYS
from berth.reading import Reading, finite_number, known
from berth.record import result_value, split_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def is_vllm(value: Any) -> bool:
    """Whether a JSON value is such a result."""
    return isinstance(value, dict) and {"duration", "completed", "output_throughput", "mean_ttft_ms"} <= set(value)


def read_vllm(values: Sequence[Mapping[str, Any]]) -> list[Reading]:
    """One reading per result; a file that was written with --append-result has several."""
    found = []
    for number, raw in enumerate(values):
        result, requests = split_result(raw)
        columns = {name: finite_number(result_value(result, key)) for name, key in RESULT_KEYS.items()}
        columns["num_prompts"] = finite_number(result.get("num_prompts"))
        level = finite_number(result.get("max_concurrency"))
        found.append(
            Reading(
                entry=f"result {number + 1}" if len(values) > 1 else "",
                tool="vllm-bench",
                # The file does not say it.
                tool_version=None,
                values=known({**{name: _counted(name, value) for name, value in columns.items()}, **_model(result)}),
                result=result,
                concurrency=int(level) if level else None,
                requests=requests,
            )
        )
    return found


def _model(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": result["model_id"]} if isinstance(result.get("model_id"), str) else {}


def _counted(name: str, value: float | None) -> float | None:
    return int(value) if value is not None and BY_NAME[name].kind == "integer" else value
