"""Points that other tools measured: results/imported/{experiment}/{platform}/{spec}/run{run}/c{concurrency}.json.

They lie beside results/points and not in it: no plan counts them as measured here, and no rule can make or replace one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from berth import _schema
from berth.columns import BY_NAME
from berth.coordinates import parse_point
from berth.errors import BerthError
from berth.fsio import canonical_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

FOLDER = "imported"
# The reason code that every imported point carries: its numbers passed no gate of Berth.
NOT_CHECKED = "imported_not_checked"


def imported_paths(results: Path, experiments: Iterable[str]) -> list[Path]:
    """The imported points of experiments, in order.

    Raises:
        BerthError: a file there is not at the path of a point.
    """
    found = []
    for experiment in sorted(experiments):
        for path in sorted((results / FOLDER / experiment).glob("*/*/run*/[cq]*.json")):
            if parse_point(_key(results, path)) is None:
                raise BerthError(f"{path}: this is no path of a point. Import the file anew, or move it away.")
            found.append(path)
    return found


def imported_path(results: Path, point: Mapping[str, Any]) -> Path:
    """Where the imported point of these coordinates is kept."""
    return (
        results
        / FOLDER
        / f"{point['experiment']}/{point['platform']}/{point['spec']}/run{point['run']}/c{point['concurrency']}.json"
    )


def write_imported(results: Path, records: Sequence[Mapping[str, Any]]) -> list[tuple[Path, bool]]:
    """Keep imported points: the file of each, and whether it is new. All are checked before the first is written.

    Raises:
        BerthError: a record is not of its schema's form, or is another one than is kept at its place, or than a record
            before it.
        OSError: as the file system says.
    """
    kept: dict[Path, Mapping[str, Any]] = {}
    new: dict[Path, Mapping[str, Any]] = {}
    for record in records:
        path = imported_path(results, record["point"])
        _schema.check(record, "imported", str(path))
        if path not in kept and path.exists():
            kept[path] = read_imported(path)
        if path not in kept:
            kept[path] = new[path] = record
        elif canonical_json(kept[path]) != canonical_json(record):
            before, now = kept[path]["origin"], record["origin"]
            raise BerthError(
                f"{path}: another file is imported as this point ({before['file']}, SHA-256 {before['sha256'][:12]}; "
                f"now {now['file']}, {now['sha256'][:12]}). Give one of them another run, or delete the old one."
            )
    for path, record in new.items():
        write_json(path, record)
    return [(path, path in new) for path in (imported_path(results, record["point"]) for record in records)]


def read_imported(path: Path) -> dict[str, Any]:
    """An imported point.

    Raises:
        BerthError: absent, no JSON, or not of the form of its schema.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: cannot be read ({error}). Import its file again.") from None
    _schema.check(record, "imported", str(path))
    return dict(record)


def imported_row(path: Path) -> dict[str, Any]:
    """An imported point as a row of the tidy table.

    It is "flagged", so that every figure shows it hollow and every table tells it, or "failed" where it was refused.

    Raises:
        BerthError: as read_imported().
    """
    record = read_imported(path)
    origin, validity = record["origin"], record["validity"]
    tool = " ".join(word for word in (origin["tool"], origin["tool_version"]) if word)
    values = {name: value for name, value in record["values"].items() if name in BY_NAME}
    codes = [*(reason["code"] for reason in validity["reasons"]), NOT_CHECKED]
    return {
        **values,
        **record["point"],
        "source": "imported",
        "client": origin["tool"],
        "client_version": origin["tool_version"],
        "status": "failed" if validity["verdict"] == "refused" else "flagged",
        # What figures show is the first: why it was refused, and otherwise that it was not checked.
        "reason_codes": ";".join(codes if validity["verdict"] == "refused" else codes[::-1]),
        "note": f"Imported, not checked: {origin['file'].rpartition('/')[2]} by {tool or 'an unnamed tool'}.",
    }


def _key(results: Path, path: Path) -> str:
    return path.relative_to(results / FOLDER).as_posix().removesuffix(".json")
