"""The columns of the tidy table, and tables that have exactly these columns. docs/tidy.md says what each one means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Kind = Literal["text", "integer", "number"]

STATUSES = ("ok", "flagged", "crashed", "failed", "not_run")
PLOTTED = ("ok", "flagged")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
STATISTICS = ("mean", "median", "p99")

# A point is one row: no two measured rows have the same values here.
POINT_KEY = ("experiment", "platform", "spec", "run", "concurrency")


@dataclass(frozen=True)
class Column:
    """One column: its name, the kind of its values, and their unit ("" when they have none)."""

    name: str
    kind: Kind
    unit: str = ""

    @property
    def dtype(self) -> str:
        """The pandas dtype of the column; each of them has a value for "unknown"."""
        return {"text": "string", "integer": "Int64", "number": "Float64"}[self.kind]

    @property
    def arrow(self) -> pa.Field:
        """The Parquet field, with the unit in its metadata."""
        types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64()}
        return pa.field(self.name, types[self.kind], metadata={"unit": self.unit})


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
    *_text("status", "reason_codes", "failure_kind", "failure_cause"),
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
    *_text("start", "end", "note"),
)
BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table with all the columns in their order, one row per mapping; what a mapping leaves out is unknown.

    An empty text is unknown too, because CSV cannot tell them apart.
    """
    listed = list(rows)
    return pd.DataFrame({column.name: _series(column, [row.get(column.name) for row in listed]) for column in COLUMNS})


def combine(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table with the rows of all of them in the order given."""
    kept = [table for table in frames if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else frame([])


def arrow_schema() -> pa.Schema:
    """The Parquet schema of the table."""
    return pa.schema([column.arrow for column in COLUMNS])


def _series(column: Column, values: list[Any]) -> pd.Series[Any]:
    dtype: Any = column.dtype
    return pd.Series([None if value == "" else value for value in values], dtype=dtype)
