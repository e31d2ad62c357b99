"""The columns of the tidy table, which docs/tidy.md explains. No pandas here: every job reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from berth.coordinates import Rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.coordinates import Level

Kind = Literal["text", "integer", "number"]

STATUSES = ("ok", "flagged", "crashed", "failed", "not_run", "left_out")
PLOTTED = ("ok", "flagged")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
STATISTICS = ("mean", "median", "p99")

# A point is one row: no two measured rows have the same values here.
POINT_KEY = ("experiment", "platform", "spec", "run", "concurrency", "request_rate_req_s")


@dataclass(frozen=True)
class Column:
    """One column: its name, the kind of its values, and their unit ("" when they have none)."""

    name: str
    kind: Kind
    unit: str = ""


def _text(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "text") for name in names)


COLUMNS: tuple[Column, ...] = (
    *_text("source", "experiment", "figure", "platform", "platform_label", "deployment", "spec"),
    Column("run", "integer"),
    *_text("host", "job_id"),
    Column("server_instance", "integer"),
    *_text("model", "revision", "accelerator"),
    Column("accelerators", "integer", "devices"),
    Column("tensor_parallel", "integer", "devices"),
    Column("pipeline_parallel", "integer", "stages"),
    Column("nodes", "integer", "nodes"),
    *_text("engine", "engine_version", "image", "image_digest", "mode", "dataset", "client", "client_version"),
    Column("concurrency", "integer", "requests"),
    Column("request_rate_req_s", "number", "requests/s"),
    *_text("refined", "status", "reason_codes", "failure_kind", "failure_cause"),
    Column("num_prompts", "integer", "requests"),
    Column("completed", "integer", "requests"),
    Column("failed", "integer", "requests"),
    Column("duration_s", "number", "s"),
    Column("wall_s", "number", "s"),
    Column("total_input_tokens", "integer", "tokens"),
    Column("total_output_tokens", "integer", "tokens"),
    Column("request_throughput_req_s", "number", "requests/s"),
    Column("request_goodput_req_s", "number", "requests/s"),
    Column("output_throughput_tok_s", "number", "tokens/s"),
    Column("total_token_throughput_tok_s", "number", "tokens/s"),
    *(Column(f"{statistic}_{latency}_ms", "number", "ms") for latency in LATENCIES for statistic in STATISTICS),
    Column("prompt_tokens_server", "integer", "tokens"),
    Column("generation_tokens_server", "integer", "tokens"),
    Column("prefix_cache_hit_rate", "number", "fraction"),
    Column("preemptions", "integer", "preemptions"),
    Column("client_cpu_fraction", "number", "fraction"),
    Column("power_w", "number", "W"),
    Column("energy_j", "number", "J"),
    Column("tokens_per_j", "number", "tokens/J"),
    Column("client_loop_lag_p99_ms", "number", "ms"),
    *_text("start", "end", "note"),
)
BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}

# Where each number of the table stands in the client's result.
RESULT_KEYS: dict[str, str] = {
    "completed": "completed",
    "failed": "failed",
    "duration_s": "duration",
    "total_input_tokens": "total_input_tokens",
    "total_output_tokens": "total_output_tokens",
    "request_throughput_req_s": "request_throughput",
    "request_goodput_req_s": "request_goodput",
    "output_throughput_tok_s": "output_throughput",
    "total_token_throughput_tok_s": "total_token_throughput",
    **{f"{stat}_{name}_ms": f"{stat}_{name}_ms" for name in LATENCIES for stat in STATISTICS},
}


def row_entry(level: Level, max_concurrency: int | None) -> dict[str, int | float | None]:
    """The columns that hold a level. A point of a sweep over rates has its limit in the column of concurrency."""
    if isinstance(level, Rate):
        return {"concurrency": max_concurrency, "request_rate_req_s": float(level)}
    return {"concurrency": level}


def row_level(row: Mapping[str, Any]) -> Level:
    """The level of a row: its rate where it has one."""
    rate = row.get("request_rate_req_s")
    # Neither None nor any of pandas' values for what is unknown.
    return Rate(rate) if isinstance(rate, int | float) and rate == rate else int(row["concurrency"])  # noqa: PLR0124
