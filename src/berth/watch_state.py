"""What goes on in a folder of results: its spool, leases, logs and points are read, and nothing is written."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from berth import leasefiles
from berth.coordinates import RunId, level_of, parse_point
from berth.errors import BerthError
from berth.holder import Identity
from berth.progress import Standing, read_standing
from berth.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from berth.coordinates import Level
    from berth.holder import Holder

# The default of sweep.lease_stale_s: a holder elsewhere that was silent for so long may be dead.
SILENT_S = 120.0
_TAIL_BYTES = 16 * 1024


@dataclass(frozen=True)
class PointSeen:
    """A point that has ended: its output tokens per second where it has them, its reason codes, and why it failed."""

    level: Level
    rate_tok_s: float | None
    codes: tuple[str, ...]
    failure: str


@dataclass(frozen=True)
class RunSeen:
    """One run: what holds it, where its sweep stands, the points that ended, and what its server said last.

    `alive` is whether the holder of the lease lives, as far as can be seen from here; `silent_s` is how long ago it
    gave a sign of life. `standing` is None where no sweep tells how it gets on.
    """

    run: RunId
    holder: Holder | None
    alive: bool | None
    silent_s: float
    standing: Standing | None
    done: tuple[PointSeen, ...]
    failed: tuple[PointSeen, ...]
    said: str

    @property
    def active(self) -> bool:
        """A sweep holds the run and is not known to be dead."""
        return self.holder is not None and self.alive is not False

    @property
    def state(self) -> Literal["starting", "ready", "measuring", "dead", "silent", "idle"]:
        """What goes on: "dead" and "silent" are sweeps that ended, or may have ended, without a word."""
        if self.holder is None:
            return "idle"
        if self.alive is False:
            return "dead"
        if self.alive is None and self.silent_s > SILENT_S:
            return "silent"
        return self.standing.state if self.standing else "starting"

    @property
    def waiting(self) -> tuple[Level, ...]:
        """The levels that the sweep has still to begin."""
        if self.standing is None:
            return ()
        return tuple(
            level
            for level in self.standing.levels
            if level not in self.standing.ended_s and level != self.standing.level
        )


@dataclass
class Watched:
    """A folder of results that is looked at again and again; records that were read once are remembered."""

    results: Path
    _seen: dict[Path, PointSeen | None] = field(default_factory=dict)

    def look(self) -> list[RunSeen]:
        """The runs that have a point, a failure or a lease, active ones first.

        Raises:
            BerthError: there is no such folder.
        """
        if not self.results.is_dir():
            raise BerthError(
                f"{self.results}: no such folder. Name the folder of results, where `snakemake` runs: results."
            )
        points, failures = (self._by_run(name) for name in ("points", "failures"))
        spooled = self._by_run("spool")
        leased = {run for path in self.results.glob("spool/*/*/*/run*") if (run := _run_of(path, self.results))}
        runs = sorted({*points, *failures, *spooled, *leased})
        seen = [self._run(run, {**spooled.get(run, {}), **points.get(run, {})}, failures.get(run, {})) for run in runs]
        return sorted(seen, key=lambda each: (not each.active, each.run))

    def _by_run(self, name: str) -> dict[RunId, dict[Level, Path]]:
        found: dict[RunId, dict[Level, Path]] = {}
        folder = self.results / name
        for path in folder.glob("*/*/*/run*/[cq]*.json"):
            point = parse_point(path.relative_to(folder).as_posix().removesuffix(".json"))
            if point is not None:
                found.setdefault(point.run, {})[point.level] = path
        return found

    def _run(self, run: RunId, done: dict[Level, Path], failures: dict[Level, Path]) -> RunSeen:
        spool = Spool(self.results, run)
        holder, alive, silent_s = _lease(spool.folder)
        standing = read_standing(spool.progress) if holder is not None else None
        # A file that a killed sweep left says nothing about its successor.
        if holder is not None and standing is not None and standing.pid != holder.identity.pid:
            standing = None
        measured = [seen for level in sorted(done) if (seen := self._point(done[level]))]
        # An earlier failure of a point that this sweep measures again says nothing any more.
        again = set(standing.levels) - set(standing.failed) if standing else set()
        left = sorted(failures.keys() - done.keys() - again)
        failed = [seen for level in left if (seen := self._point(failures[level]))]
        said = ""
        if holder is not None and alive is not False and (standing is None or standing.state == "starting"):
            said = _last_line(self.results / "logs" / "server" / run.key / "server.log")
        return RunSeen(run, holder, alive, silent_s, standing, tuple(measured), tuple(failed), said)

    def _point(self, path: Path) -> PointSeen | None:
        if path not in self._seen or path.parts[-6] == "failures":
            self._seen[path] = _read_point(path)
        return self._seen[path]


def _run_of(folder: Path, results: Path) -> RunId | None:
    point = parse_point(f"{folder.relative_to(results / 'spool').as_posix()}/c1")
    return point.run if point else None


def _lease(folder: Path) -> tuple[Holder | None, bool | None, float]:
    """Who holds the run, whether it lives, and seconds since its last sign of life; (None, False, 0) for nobody."""
    with contextlib.suppress(OSError, BerthError):
        generation = leasefiles.highest(folder)
        holder, beat_ns = leasefiles.read(folder, generation) if generation else (None, 0)
        if holder is not None and not holder.released:
            alive = Identity.current().knows_dead(holder.identity)
            return holder, None if alive is None else not alive, max(0.0, time.time() - beat_ns / 1e9)
    return None, False, 0.0


def _read_point(path: Path) -> PointSeen | None:
    """What a record says, None where it cannot be read now: it may be written, moved or deleted at this moment."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads(path.read_text())
        failure: dict[str, Any] = record.get("failure") or {}
        codes = tuple(str(reason["code"]) for reason in record["validity"].get("reasons") or ())
        rate = (record.get("result") or {}).get("output_throughput")
        why = f"{failure['kind']}: {failure['cause']}" if failure else ""
        rate_tok_s = float(rate) if isinstance(rate, int | float) else None
        return PointSeen(level_of(record["point"]), rate_tok_s, codes, why)
    return None


def _last_line(path: Path) -> str:
    """The last line of a log that has any text, "" for none."""
    with contextlib.suppress(OSError), path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _TAIL_BYTES))
        return next(_lines_from_the_end(handle.read().decode(errors="replace")), "")
    return ""


def _lines_from_the_end(text: str) -> Iterator[str]:
    return (line.strip() for line in reversed(text.splitlines()) if line.strip())
