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
    from collections.abc import Iterable, Mapping
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
        for path in sorted((results / FOLDER / experiment).glob("*/*/run*/c*.json")):
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


def write_imported(results: Path, record: Mapping[str, Any]) -> tuple[Path, bool]:
    """Keep an imported point: its file, and whether it is new.

    Raises:
        BerthError: the record is not of its schema's form, or the file holds another point.
        OSError: as the file system says.
    """
    path = imported_path(results, record["point"])
    _schema.check(record, "imported", str(path))
    if path.exists():
        before = read_imported(path)
        if canonical_json(before) == canonical_json(record):
            return path, False
        raise BerthError(
            f"{path}: another file was imported as this point ({before['origin']['file']}, SHA-256 "
            f"{before['origin']['sha256'][:12]}; now {record['origin']['file']}, {record['origin']['sha256'][:12]}). "
            "Give the new one another run, or delete the old one."
        )
    write_json(path, record)
    return path, True


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
    return {
        **values,
        **record["point"],
        "source": "imported",
        "client": origin["tool"],
        "client_version": origin["tool_version"],
        "status": "failed" if validity["verdict"] == "refused" else "flagged",
        "reason_codes": ";".join([NOT_CHECKED, *(reason["code"] for reason in validity["reasons"])]),
        "note": f"Imported, not checked: {origin['file'].rpartition('/')[2]} by {tool or 'an unnamed tool'}.",
    }


def _key(results: Path, path: Path) -> str:
    return path.relative_to(results / FOLDER).as_posix().removesuffix(".json")
