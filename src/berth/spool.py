"""Where a sweep keeps what it measured: written at once, outside every rule's outputs, so that nothing deletes it."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.coordinates import POINT_FILES, level_name, parse_level
from berth.errors import BerthError
from berth.record import read_record, write_record
from berth.stopping import Seen, decide

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from berth.coordinates import Level, RunId
    from berth.stopping import Asked, Decision

logger = logging.getLogger(__name__)

# A record and its compressed per-request lists: measured at 3 kB and up to 6 kB per request with ITLs of 1,000 tokens.
_RESERVE_BASE_BYTES = 4 * 1024 * 1024
_RESERVE_PER_REQUEST_BYTES = 16 * 1024


@dataclass(frozen=True)
class Spool:
    """The spool of one run, below the folder of results."""

    results: Path
    run: RunId

    @property
    def folder(self) -> Path:
        """Holds c{N}.json or q{RATE}.json, their .requests.json.gz, leases, the reserve and progress.json."""
        return self.results / "spool" / self.run.key

    @property
    def progress(self) -> Path:
        """Where a sweep says how it gets on, for `berth.watch`."""
        return self.folder / "progress.json"

    def missing(self, levels: Iterable[Level]) -> list[Level]:
        """The levels that neither results nor the spool hold, in the order given."""
        return [
            level
            for level in levels
            if not (self.folder / f"{level_name(level)}.json").exists()
            and not (self.results / "points" / f"{self.run.point(level).key}.json").exists()
        ]

    def reserve(self, num_prompts: int) -> None:
        """Claim disk space for the next record before its point is measured.

        Raises:
            BerthError: there is no room; nothing was measured yet, so nothing is lost.
        """
        size = _RESERVE_BASE_BYTES + num_prompts * _RESERVE_PER_REQUEST_BYTES
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._reserve
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.posix_fallocate(fd, 0, size)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise BerthError(
                    f"{self.folder}: no room for the next point's record ({size / 1e6:.0f} MB are reserved before "
                    "it is measured). Every finished point is kept. Free some space and start again."
                ) from None
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise

    def keep(self, level: Level, record: dict[str, Any], requests: dict[str, Any]) -> None:
        """Write the record of a valid point; the reserved space is given back for it."""
        self.release()
        write_record(self.folder / f"{level_name(level)}.json", record, requests)

    def fail(self, level: Level, record: dict[str, Any], requests: dict[str, Any] | None) -> None:
        """Write the record of a point that failed into results/failures, where figures and people find it."""
        self.release()
        write_record(self.results / "failures" / f"{self.run.point(level).key}.json", record, requests)

    def release(self) -> None:
        """Give the reserved space back."""
        self._reserve.unlink(missing_ok=True)

    @property
    def _reserve(self) -> Path:
        return self.folder / ".reserve"


def seen_points(results: Path, run: RunId) -> dict[Level, Seen]:
    """What the valid points of a run say, from results and from the spool.

    Raises:
        BerthError: a record is truncated, foreign, or of another point.
    """
    seen: dict[Level, Seen] = {}
    for name in ("spool", "points"):
        for path in sorted((results / name / run.key).glob(POINT_FILES)):
            level = parse_level(path.stem)
            if level is not None:
                record = read_record(path, key=run.point(level).key)
                found = record["result"] or {}
                seen[level] = Seen.of(found.get("output_throughput"), found)
    return seen


def decided(results: Path, run: RunId, asked: Asked, failed: Iterable[Level] = ()) -> Decision:
    """What belongs to a run, from the points that it has; `failed` have failed in the sweep that asks."""
    return decide(asked, seen_points(results, run), failed=frozenset(failed))
