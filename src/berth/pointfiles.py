"""The two files of a measured point on the disk: their digests, whether they are whole, how they get their place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth import seal
from berth.accept import REQUESTS_SUFFIX
from berth.coordinates import parse_point
from berth.errors import BerthError
from berth.fsio import fsync_dir, sha256_file
from berth.record import is_valid, read_record, read_requests
from berth.shelf import NO_REQUESTS, Digests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class PointFiles:
    """A point below a folder such as results/points."""

    folder: Path
    key: str

    @property
    def record_path(self) -> Path:
        """Its record."""
        return self.folder / f"{self.key}.json"

    @property
    def requests_path(self) -> Path:
        """Its per-request lists."""
        return self.folder / f"{self.key}{REQUESTS_SUFFIX}"

    def digests(self) -> Digests:
        """The SHA-256 of both files as they are."""
        requests = sha256_file(self.requests_path) if self.requests_path.exists() else NO_REQUESTS
        return Digests(sha256_file(self.record_path), requests)

    def whole(self) -> dict[str, Any]:
        """The record, when both files are a valid measurement of this point and are as they were written.

        Raises:
            BerthError: cut short, changed, foreign, of a newer schema, of another point, or a failure.
        """
        record = read_record(self.record_path, key=self.key)
        if not is_valid(record):
            raise BerthError(f"{self.record_path}: a failure and no measurement. Move it out of results/points.")
        read_requests(self.record_path, record)
        if seal.has_seal(record):
            seal.check_record(str(self.record_path), self.record_path.read_bytes())
            own = sha256_file(self.requests_path) if record["requests_file"] else None
            seal.check_requests(str(self.requests_path), record, own)
        return record

    def place(self, target: PointFiles) -> bool:
        """Give the files their names in another folder of this file system, requests first; False if one is there.

        A record is never written over, whoever writes one at the same moment.
        """
        target.record_path.parent.mkdir(parents=True, exist_ok=True)
        if target.record_path.exists():
            return False
        if self.requests_path.exists():
            self.requests_path.replace(target.requests_path)
            fsync_dir(target.requests_path.parent)
        try:
            os.link(self.record_path, target.record_path)
        except FileExistsError:
            return False
        fsync_dir(target.record_path.parent)
        return True


def points_below(folder: Path, wanted: Callable[[str], bool]) -> tuple[list[PointFiles], list[Path]]:
    """The points below a folder whose keys are wanted, and files with names that no point has."""
    points, foreign = [], []
    for path in sorted(folder.glob("*/*/*/run*/[cq]*.json")):
        key = path.relative_to(folder).as_posix().removesuffix(".json")
        if not wanted(key):
            continue
        if parse_point(key) is None:
            foreign.append(path)
        else:
            points.append(PointFiles(folder, key))
    return points, foreign


def measured(record: dict[str, Any]) -> str:
    """When and where a point was measured, for people."""
    server = record["server"]
    job = f", job {server['job_id']}" if server["job_id"] else ""
    return f"measured {record['wall']['start']} on {server['host']}{job}"
