"""A baseline: points of one day, kept under a name, to compare later ones with. Stored once, never changed.

results/baselines/{name}.json, schema 1, mode 0444: what is stored, when, one entry per point with the SHA-256 of its
file and its row of the tidy table, the definitions by hash, and the SHA-256 of all this.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from berth.columns import PLOTTED
from berth.errors import BerthError
from berth.frames import plain_rows
from berth.fsio import canonical_json, sha256_file, sha256_text, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from berth.sources import Source

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def baseline_path(results: Path, name: str) -> Path:
    """Where a baseline of this name is or will be.

    Raises:
        BerthError: the name cannot be a file's.
    """
    if not _NAME.fullmatch(name):
        raise BerthError(f'baseline: "{name}" is no name. Use letters, digits, dot, underscore and hyphen.')
    return results / "baselines" / f"{name}.json"


def baselines(results: Path) -> list[str]:
    """The names of the stored ones."""
    return sorted(path.stem for path in (results / "baselines").glob("*.json"))


def store_baseline(source: Source, name: str, results: Path) -> Path:
    """Store the valid points of a source under a name; its file.

    Nothing happens where the same points are stored under it already.

    Raises:
        BerthError: the name holds other points, or there is no valid point.
        OSError: as the file system says.
    """
    path = baseline_path(results, name)
    kept = source.rows["status"].isin(PLOTTED)
    points: list[dict[str, Any]] = []
    for number, row in zip(source.rows.index[kept], plain_rows(source.rows[kept]), strict=True):
        file = source.files.get(number)
        digest = sha256_file(file) if file else sha256_text(canonical_json(row))
        points.append({"sha256_of": "file" if file else "row", "sha256": digest, "row": row})
    if not points:
        raise BerthError(f"{source.name}: it has no valid point, so there is no baseline to store.")
    used = {point["row"].get("spec") for point in points}
    content = {
        "schema": SCHEMA_VERSION,
        "name": name,
        "source": source.name,
        "stored": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "specs": {spec: full for spec, full in source.specs.items() if spec in used},
        "points": points,
    }
    if path.exists():
        return _same(path, content)
    # A hard link is made or refused in one step, also on NFS: two who store at once cannot both have the name.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_json(temporary, {**content, "sha256": _digest(content)}, mode=0o444)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return _same(path, content)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    left = len(source.rows) - len(points)
    logger.info("Stored %s: %d points%s", path, len(points), f", {left} left out that are not valid" if left else "")
    return path


def read_baseline(path: Path) -> dict[str, Any]:
    """A stored baseline.

    Raises:
        BerthError: absent, of a newer schema, no baseline, or changed since it was stored.
    """
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        known = ", ".join(each.stem for each in sorted(path.parent.glob("*.json"))) or "none"
        raise BerthError(f"{path}: no such baseline. Stored: {known}. Store one with the target baseline.") from None
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: cannot be read as a baseline ({error}).") from None
    if not isinstance(stored, dict) or not {"schema", "points", "sha256", "specs"} <= set(stored):
        raise BerthError(f"{path}: no baseline of Berth. Store one with `snakemake baseline`.")
    if stored["schema"] != SCHEMA_VERSION:
        raise BerthError(
            f"{path}: a baseline of schema {stored['schema']}; this Berth reads {SCHEMA_VERSION}. Update it."
        )
    if _digest({key: value for key, value in stored.items() if key != "sha256"}) != stored["sha256"]:
        raise BerthError(
            f"{path}: it was changed after it was stored: its SHA-256 is another. Take a whole copy, or store it anew "
            "under another name."
        )
    return stored


def _same(path: Path, content: dict[str, Any]) -> Path:
    stored = read_baseline(path)
    if [point["sha256"] for point in stored["points"]] != [point["sha256"] for point in content["points"]]:
        raise BerthError(
            f"{path}: a baseline of this name holds other points, stored {stored['stored']}. Baselines are not "
            "changed. Choose another name."
        )
    logger.info("%s holds these points already", path)
    return path


def _digest(content: dict[str, Any]) -> str:
    return sha256_text(canonical_json(content))
