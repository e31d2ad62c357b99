"""A plain CSV: one row per point, columns named as in docs/tidy.md or mapped to them, times in any unit."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from berth._schema import nearest
from berth.columns import BY_NAME, STATUSES
from berth.errors import BerthError
from berth.reading import Reading, known, to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What an import sets itself.
_NOT_THEIRS = {"source", "experiment", "figure", "spec", "reason_codes", "failure_kind", "failure_cause", "note"}


def read_csv(path: Path, columns: Mapping[str, Mapping[str, str]]) -> list[Reading]:
    """One reading per row. `columns` maps names of the file to {"to": column, "unit": unit of a time}.

    Raises:
        BerthError: no UTF-8 CSV, a column that is neither known nor mapped, or a value of the wrong kind.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            header = list(reader.fieldnames or ())
            targets = {name: _target(path, name, columns) for name in header}
            return [_reading(path, reader.line_num, row, targets) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BerthError(f"{path}: not a readable UTF-8 CSV file ({error}).") from error


def _target(path: Path, name: str, columns: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """The column that one of the file's becomes, and the unit of its times."""
    mapped = columns.get(name, {})
    column = mapped.get("to", name)
    if column not in BY_NAME or column in _NOT_THEIRS:
        allowed = [each for each in BY_NAME if each not in _NOT_THEIRS]
        raise BerthError(
            f'{path}: the column "{name}" is none of docs/tidy.md.{nearest(column, allowed)} Say in the import file '
            f"under columns what it becomes, as in {{{name}: {{to: median_ttft_ms, unit: s}}}}, or take it out."
        )
    unit = mapped.get("unit", BY_NAME[column].unit)
    if "unit" in mapped and BY_NAME[column].unit not in ("s", "ms"):
        raise BerthError(f"{path}: columns.{name}.unit: {column} is no time, so that it has no such unit.")
    return column, unit


def _reading(path: Path, line: int, row: Mapping[str, Any], targets: Mapping[str, tuple[str, str]]) -> Reading:
    if None in row or None in row.values():
        raise BerthError(f"{path}: line {line} has not as many cells as there are columns.")
    values = {
        column: _value(f"{path}: line {line}, {name}", row[name], column, unit)
        for name, (column, unit) in targets.items()
    }
    level = values.pop("concurrency", None)
    status = values.pop("status", None) or "ok"
    reasons = () if status == "ok" else (("told_" + str(status), f"The file says that this point is {status}."),)
    return Reading(
        entry=f"line {line}",
        tool=values.pop("client", None),
        tool_version=values.pop("client_version", None),
        values=known(values),
        result={name: cell for name, cell in row.items() if cell},
        concurrency=level,
        reasons=reasons,
    )


def _value(where: str, cell: str, column: str, unit: str) -> Any:
    text = cell.strip()
    if not text:
        return None
    if column == "status" and text not in STATUSES:
        raise BerthError(f'{where}: "{text}" is no status. Use one of: {", ".join(STATUSES)}.')
    kind = BY_NAME[column].kind
    if kind == "text":
        return text
    try:
        value: float = int(text) if kind == "integer" else float(text)
    except ValueError:
        wanted = "a whole number" if kind == "integer" else "a number"
        raise BerthError(f'{where}: "{text}" is not {wanted}. Correct it, or leave the cell empty.') from None
    if not 0 <= value < float("inf"):
        raise BerthError(f'{where}: "{text}" is not allowed; 0 is the least.')
    if BY_NAME[column].unit in ("s", "ms") and unit != BY_NAME[column].unit:
        milliseconds = to_ms(value, unit, where)
        assert milliseconds is not None
        return milliseconds if BY_NAME[column].unit == "ms" else milliseconds / 1000
    return value
