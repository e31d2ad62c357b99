"""Curves that other people published, as rows of the tidy table. A set is a folder with set.yaml and CSV files."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth._schema import check, load_yaml, nearest
from berth.columns import BY_NAME, STATUSES
from berth.errors import BerthError

if TYPE_CHECKING:
    from pathlib import Path

# The source and the note come from set.yaml, and a row cannot say that it was measured here.
_FROM_SET = {"source", "experiment", "figure", "note"}
_REQUIRED = ("platform", "run", "concurrency", "status")


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of a set: its name (the file's without .csv), its CSV file, its title and what all its rows share."""

    name: str
    path: Path
    title: str
    note: str
    shared: dict[str, Any]


@dataclass(frozen=True)
class PublishedSet:
    """A published set: its name, where its numbers come from, and its figures by name."""

    name: str
    citation: str
    licence: str
    source: str
    platforms: dict[str, dict[str, str]]
    figures: dict[str, PublishedFigure]


def read_set(folder: Path) -> PublishedSet:
    """The description of a published set.

    Raises:
        BerthError: set.yaml is absent or no YAML, has an unknown key, lacks one, has a value of a wrong type, names a
            file that is not in the folder, or lists a file twice.
    """
    path = folder / "set.yaml"
    raw = load_yaml(path)
    check(raw, "published", str(path))
    if raw["name"] != folder.resolve().name:
        raise BerthError(f'{path}: name: "{raw["name"]}" is not the name of its folder. Rename one of them.')
    figures: dict[str, PublishedFigure] = {}
    for entry in raw["figures"]:
        name = entry["file"].removesuffix(".csv")
        if name in figures:
            raise BerthError(f'{path}: figures: the file "{entry["file"]}" is listed twice. Remove one.')
        file = folder / entry["file"]
        if not file.is_file():
            present = sorted(found.name for found in folder.glob("*.csv"))
            raise BerthError(
                f'{path}: figures: there is no file "{entry["file"]}" in this folder.{nearest(entry["file"], present)}'
                f" Present: {', '.join(present) or 'none'}."
            )
        settings = {k: v for k, v in entry.items() if k not in {"file", "title", "note"}}
        figures[name] = PublishedFigure(
            name=name,
            path=file,
            title=entry["title"],
            note=entry.get("note", ""),
            shared={**raw.get("common", {}), **settings},
        )
    return PublishedSet(
        name=raw["name"],
        citation=raw["citation"],
        licence=raw["licence"],
        source=raw.get("source", ""),
        platforms=raw.get("platforms", {}),
        figures=figures,
    )


def find_figure(published_dir: Path, reference: str) -> tuple[PublishedSet, PublishedFigure]:
    """The set and the figure that a reference such as "beltre2025/fig9" names.

    Raises:
        BerthError: there is no such set or figure, or the set is wrong (as `read_set` says).
    """
    set_name, _, name = reference.partition("/")
    sets = published_sets(published_dir)
    if set_name not in sets:
        known = ", ".join(sets) or "none"
        raise BerthError(f'{published_dir}: no published set "{set_name}".{nearest(set_name, sets)} Known: {known}.')
    found = read_set(published_dir / set_name)
    if name not in found.figures:
        known = ", ".join(found.figures)
        raise BerthError(
            f'{published_dir / set_name}/set.yaml: no figure "{name}".{nearest(name, list(found.figures))}'
            f" Known: {known}."
        )
    return found, found.figures[name]


def published_sets(published_dir: Path) -> list[str]:
    """The names of the sets."""
    return sorted(found.parent.name for found in published_dir.glob("*/set.yaml"))


def read_points(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file of points that belongs to no set, by columns of the tidy table.

    Raises:
        BerthError: as for a file of a set.
    """
    return _distinct(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one published CSV file, with columns of the tidy table as keys, in the order of the file.

    `source` is "published", `experiment` the set's name and `figure` the file's name without .csv. What set.yaml says
    about the figure and its platforms fills the columns that the file leaves out.

    Raises:
        BerthError: the set is wrong (as `read_set` says) or does not list the file; the file has an unknown or
            repeated column, lacks a required one, or holds a wrong value (file, line, column and value are named).
    """
    described = read_set(path.parent)
    figure = described.figures.get(path.stem)
    if figure is None:
        raise BerthError(
            f"{path}: {path.parent / 'set.yaml'} does not list this file. Add it under figures, with a title and model."
        )
    return [_complete(row, described, figure) for row in _distinct(path)]


def _distinct(path: Path) -> list[dict[str, Any]]:
    seen: dict[tuple[Any, ...], int] = {}
    rows = []
    for line, row in _read_csv(path):
        key = (row["platform"], row.get("deployment"), row["run"], row["concurrency"])
        if key in seen:
            raise BerthError(f"{path}: lines {seen[key]} and {line} are the same point. Remove one.")
        seen[key] = line
        rows.append(row)
    return rows


def _complete(row: dict[str, Any], described: PublishedSet, figure: PublishedFigure) -> dict[str, Any]:
    platform = described.platforms.get(row["platform"], {})
    shared = {
        "platform_label": platform.get("label", row["platform"][:1].upper() + row["platform"][1:]),
        "accelerator": platform.get("accelerator"),
        **figure.shared,
    }
    full = {**shared, **{name: value for name, value in row.items() if value is not None}}
    full |= {
        "source": "published",
        "experiment": described.name,
        "figure": figure.name,
        "note": figure.note,
    }
    if full.get("accelerators") is None and full.get("tensor_parallel"):
        full["accelerators"] = full["tensor_parallel"] * full.get("pipeline_parallel", 1)
    return full


def _read_csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows with their line numbers, values converted to the kinds of their columns, empty cells as None."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.reader(handle)
            header = next(reader, [])
            _check_header(path, header)
            rows = []
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise BerthError(
                        f"{path}: line {reader.line_num} has {len(cells)} cells, but there are {len(header)} columns."
                    )
                row = {n: _value(path, reader.line_num, n, c.strip()) for n, c in zip(header, cells, strict=True)}
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BerthError(f"{path}: not a readable UTF-8 CSV file ({error}).") from error


def _check_header(path: Path, header: list[str]) -> None:
    allowed = [name for name in BY_NAME if name not in _FROM_SET]
    for name in header:
        if name not in allowed:
            hint = " It is filled in from set.yaml, or by Berth." if name in _FROM_SET else nearest(name, allowed)
            raise BerthError(
                f'{path}: unknown column "{name}".{hint} The columns of docs/tidy.md are allowed: {", ".join(allowed)}.'
            )
        if header.count(name) > 1:
            raise BerthError(f'{path}: the column "{name}" stands twice. Remove one.')
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise BerthError(f"{path}: the column {missing[0]} is missing. Required are {', '.join(_REQUIRED)}.")


def _value(path: Path, line: int, name: str, cell: str) -> Any:
    where = f"{path}: line {line}, column {name}"
    if not cell:
        if name in _REQUIRED:
            raise BerthError(f"{where}: the cell is empty, but every point needs its {name}.")
        return None
    if name == "status" and cell not in STATUSES:
        raise BerthError(
            f'{where}: "{cell}" is no status.{nearest(cell, list(STATUSES))} Use one of: {", ".join(STATUSES)}.'
        )
    kind = BY_NAME[name].kind
    if kind == "text":
        return cell
    try:
        number: float = int(cell) if kind == "integer" else float(cell)
    except ValueError:
        wanted = "a whole number" if kind == "integer" else "a number"
        raise BerthError(f'{where}: "{cell}" is not {wanted}. Correct it, or leave the cell empty.') from None
    least = 1 if name in {"run", "concurrency"} else 0
    if not math.isfinite(number) or number < least:
        raise BerthError(f'{where}: "{cell}" is not allowed; {least} is the least.')
    return number
