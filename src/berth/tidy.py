"""Point records as one table: one row per point, whether it was measured, failed, or not run."""

from __future__ import annotations

import io
import logging
import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from berth.columns import BY_NAME, COLUMNS, POINT_KEY, RESULT_KEYS, row_entry
from berth.coordinates import level_of
from berth.decided import decided_rows
from berth.errors import BerthError
from berth.frames import arrow_schema, dtype_of, frame
from berth.fsio import atomic_file
from berth.goodput import goodput_req_s
from berth.imported import imported_row
from berth.mode import mode_of
from berth.record import read_record, read_requests, result_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)


def tidy_records(
    record_paths: Sequence[Path],
    failure_paths: Sequence[Path],
    not_run: Iterable[Mapping[str, Any]] = (),
    platform_labels: Mapping[str, str] | None = None,
    imported: Sequence[Path] = (),
    *,
    asked: Mapping[str, Mapping[str, Any]] | None = None,
) -> pd.DataFrame:
    """One row per point, sorted by experiment, platform, deployment, spec, run and level.

    A point that has a record is taken from it. One that has none is taken from its failure, and one that has neither
    from `not_run`, whose mappings hold column names and at least the point's coordinates. `platform_labels` are the
    names for people; a platform without one gets its own name with a capital letter. `imported` are points that other
    tools measured (berth.imported). `asked` has, of experiments that say more than their levels, limits on latency
    (`goodput`, in ms), `levels`, `stop_when` and `refine`. Levels at which a sweep stopped become rows, and those that
    it added are marked. Without limits, the goodput is that of the client, which knows only limits that it was given.

    Raises:
        BerthError: a file is truncated, foreign or of a newer schema, holds text where a number belongs, or is the
            second record of one point; `not_run` has an unknown column or lacks a coordinate.
    """
    labels = platform_labels or {}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    origin: dict[tuple[Any, ...], Path] = {}
    for path in record_paths:
        record = read_record(path)
        row = _row(path, record)
        if limits := (asked or {}).get(str(row["experiment"]), {}).get("goodput"):
            requests = read_requests(path, record) or {}
            row["request_goodput_req_s"] = goodput_req_s(requests, row["duration_s"], limits)
        key = _key(row)
        if key in origin:
            raise BerthError(
                f"{path} and {origin[key]} are records of the same point ({_where(row)}). Remove one of them."
            )
        origin[key], rows[key] = path, row
    for path in failure_paths:
        row = _row(path, read_record(path))
        rows.setdefault(_key(row), row)
    for row in [*map(imported_row, imported), *map(_not_run, not_run)]:
        rows.setdefault(_key(row), row)
    for row in decided_rows(rows.values(), asked or {}):
        rows.setdefault(_key(row), row)
    for row in rows.values():
        platform = str(row["platform"])
        row.setdefault("platform_label", labels.get(platform) or platform[:1].upper() + platform[1:])
    ordered = sorted(rows.values(), key=lambda row: [(row.get(name) is not None, row.get(name)) for name in _ORDER])
    logger.info("%d points in the table", len(ordered))
    return frame(ordered)


def write_tidy(df: pd.DataFrame, parquet: Path, csv: Path) -> None:
    """Write the table twice, each file whole or not at all; `read_tidy` reads equal tables from both.

    Raises:
        BerthError: the table lacks a column or has one that docs/tidy.md does not list.
    """
    if list(df.columns) != [column.name for column in COLUMNS]:
        raise BerthError(f"{parquet}: a tidy table has exactly the columns of docs/tidy.md, in their order.")
    table = pa.Table.from_pandas(df, schema=arrow_schema(), preserve_index=False)
    # Without the metadata of pandas: it holds version numbers, so that equal tables would not be equal files.
    table = table.replace_schema_metadata(None)
    with atomic_file(parquet) as handle:
        pq.write_table(table, handle)
    text = df.to_csv(index=False, lineterminator="\n")
    with atomic_file(csv) as handle:
        handle.write(text.encode())


def read_tidy(path: Path) -> pd.DataFrame:
    """The table in a file that `write_tidy` wrote (.parquet or .csv).

    Raises:
        BerthError: the file is not there, not readable, or not such a table.
    """
    try:
        if path.suffix == ".parquet":
            table: pd.DataFrame = pq.read_table(io.BytesIO(path.read_bytes())).to_pandas(types_mapper=_PANDAS_TYPES.get)
        else:
            table = pd.read_csv(
                path,
                dtype={column.name: dtype_of(column) for column in COLUMNS},
                float_precision="round_trip",
                keep_default_na=False,
                na_values=[""],
            )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BerthError(f"{path}: no readable tidy table ({error}). Delete it and draw the figures again.") from error
    if list(table.columns) != [column.name for column in COLUMNS]:
        raise BerthError(f"{path}: its columns are not those of docs/tidy.md. Delete it and draw the figures again.")
    return table


_ORDER = ("experiment", "platform", "deployment", "spec", "run", "concurrency", "request_rate_req_s")
_PANDAS_TYPES = {pa.string(): pd.StringDtype(), pa.int64(): pd.Int64Dtype(), pa.float64(): pd.Float64Dtype()}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in POINT_KEY)


def _where(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in POINT_KEY if row.get(name) is not None)


def _not_run(given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(BY_NAME))
    level = () if given.get("request_rate_req_s") is not None else ("concurrency",)
    missing = [name for name in (*POINT_KEY[:4], *level) if given.get(name) is None]
    if unknown or missing:
        raise BerthError(
            f"A point that was not run is described by columns of docs/tidy.md and needs {', '.join(POINT_KEY)}: "
            f"unknown {unknown or 'none'}, missing {missing or 'none'}."
        )
    return {**given, "source": "measured", "status": "not_run"}


def _row(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    point, result, metrics = _part(record, "point"), _part(record, "result"), _part(record, "server_metrics")
    spec, server, client = _part(record, "spec"), _part(record, "server"), _part(record, "client")
    serve, hardware, benchmark = _part(spec, "serve"), _part(spec, "hardware"), _part(spec, "benchmark")
    image = {**_part(spec, "image"), **{k: v for k, v in _part(server, "image").items() if v is not None}}
    wall, failure, power = _part(record, "wall"), _part(record, "failure"), _part(record, "power")

    def number(place: str, part: Mapping[str, Any], key: str) -> float | None:
        return _number(path, f"{place}.{key}", part.get(key))

    row: dict[str, Any] = {
        name: _number(path, f"result.{key}", result_value(result, key)) for name, key in RESULT_KEYS.items()
    }
    prompts = number("result", result, "num_prompts")
    if prompts is None:
        prompts = number("spec.benchmark", benchmark, "num_prompts")
    if row["failed"] is None and prompts is not None and row["completed"] is not None:
        row["failed"] = prompts - row["completed"]
    queries = number("server_metrics", metrics, "prefix_cache_queries")
    hits = number("server_metrics", metrics, "prefix_cache_hits")
    tensor = number("spec.serve", serve, "tensor_parallel")
    pipeline = number("spec.serve", serve, "pipeline_parallel")
    # A host without accelerators (the local platform) uses none, however the model is split.
    per_node = number("spec.hardware", hardware, "accelerators_per_node")
    used = 0 if per_node == 0 else (tensor * pipeline if tensor is not None and pipeline is not None else None)
    row |= {
        "source": "measured",
        **{name: point.get(name) for name in ("experiment", "platform", "deployment", "spec", "run")},
        **row_entry(level_of(point), benchmark.get("max_concurrency")),
        "host": _str(server.get("host")),
        "job_id": _str(server.get("job_id")),
        "server_instance": number("server", server, "instance"),
        "model": _str(_part(spec, "model").get("repo") or _part(spec, "model").get("name")),
        "revision": _str(_part(spec, "model").get("revision")),
        "accelerator": _str(hardware.get("accelerator")),
        "accelerators": used,
        "tensor_parallel": tensor,
        "pipeline_parallel": pipeline,
        "nodes": number("spec.serve", serve, "nodes"),
        "engine": _str(serve.get("recipe")),
        "engine_version": _str(server.get("version") or serve.get("version")),
        "image": _str(image.get("reference")),
        "image_digest": _str(image.get("digest")),
        # Records of before have no method: what their spec does not say was measured as in the paper.
        "mode": _str(_part(record, "method").get("mode") or mode_of(benchmark)),
        "dataset": _dataset(benchmark.get("dataset")),
        "client": _str(client.get("name")),
        "client_version": _str(client.get("version")),
        "status": _status(path, record),
        "reason_codes": ";".join(str(reason["code"]) for reason in _part(record, "validity").get("reasons") or []),
        "failure_kind": _str(failure.get("kind")),
        "failure_cause": _str(failure.get("cause")),
        "num_prompts": prompts,
        "wall_s": number("wall", wall, "duration_s"),
        "prompt_tokens_server": number("server_metrics", metrics, "prompt_tokens"),
        "generation_tokens_server": number("server_metrics", metrics, "generation_tokens"),
        "prefix_cache_hit_rate": hits / queries if hits is not None and queries else None,
        "preemptions": number("server_metrics", metrics, "preemptions"),
        "client_cpu_fraction": number("client", client, "cpu_fraction"),
        "power_w": number("power", power, "mean_w"),
        "energy_j": number("power", power, "energy_j"),
        "tokens_per_j": number("power", power, "tokens_per_j"),
        "client_loop_lag_p99_ms": number("client.loop_lag", _part(client, "loop_lag"), "p99_ms"),
        "start": _str(wall.get("start")),
        "end": _str(wall.get("end")),
    }
    for name, value in row.items():
        if BY_NAME[name].kind == "integer" and isinstance(value, float) and not value.is_integer():
            raise BerthError(f"{path}: {name} is {value}, but it is counted in whole numbers. Delete the file.")
    return row


def _status(path: Path, record: Mapping[str, Any]) -> str:
    """What became of the point: a refused one crashed when the server died during it, and failed otherwise."""
    verdict = _part(record, "validity").get("verdict")
    crashed = _part(record, "failure").get("kind") == "crash"
    status = {"accepted": "ok", "flagged": "flagged", "refused": "crashed" if crashed else "failed"}.get(str(verdict))
    if status is None:
        raise BerthError(f"{path}: validity.verdict is {verdict!r}; allowed are accepted, flagged, refused.")
    return status


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _str(value: Any) -> str | None:
    return None if value is None else str(value)


def _dataset(value: Any) -> str | None:
    """The dataset's name, which a spec gives as it is or in an object with more about it."""
    return _str(value.get("name")) if isinstance(value, dict) else _str(value)


def _number(path: Path, key: str, value: Any) -> float | None:
    """The number, or None when there is none or it is not finite: clients write NaN for a statistic of nothing."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BerthError(f"{path}: {key} is {value!r}, but a number is expected. Delete the file to measure it again.")
    return value if math.isfinite(value) else None
