"""Tables that have exactly the columns of the tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from berth.columns import BY_NAME, COLUMNS, Column
from berth.published import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


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


def plain_rows(df: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain values by column, without what is unknown."""
    kinds = {"text": str, "integer": int, "number": float}
    return [
        {str(name): kinds[BY_NAME[str(name)].kind](value) for name, value in row.items() if not pd.isna(value)}
        for row in df.astype(object).to_dict(orient="records")
    ]


def dtype_of(column: Column) -> str:
    """The pandas dtype of a column; each of them has a value for "unknown"."""
    return {"text": "string", "integer": "Int64", "number": "Float64"}[column.kind]


def arrow_schema() -> pa.Schema:
    """The Parquet schema of the table."""
    return pa.schema([_field(column) for column in COLUMNS])


def read_published(path: Path) -> pd.DataFrame:
    """The rows of one published CSV file, in the order of the file.

    Raises:
        BerthError: as read_rows().
    """
    return frame(read_rows(path))


def _field(column: Column) -> pa.Field:
    types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64()}
    return pa.field(column.name, types[column.kind], metadata={"unit": column.unit})


def _series(column: Column, values: list[Any]) -> pd.Series[Any]:
    dtype: Any = dtype_of(column)
    return pd.Series([None if value == "" else value for value in values], dtype=dtype)
