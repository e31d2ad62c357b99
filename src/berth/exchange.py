"""Measured points between clusters, through an S3 store that they share.

Points are immutable: what is on one side only is copied, what is the same is left, and what has the same coordinates
and other bytes is a conflict, which is shown and changes nothing on either side.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import botocore.exceptions

from berth import filelocks, s3
from berth.disk import full_disk_error, human_bytes, is_disk_full
from berth.errors import BerthError
from berth.fsio import write_bytes
from berth.pointfiles import PointFiles, measured, points_below
from berth.shelf import Contents, Digests, Shelf, record_object, requests_object
from berth.stages import opened
from berth.store import require_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    Told = Callable[["Outcome"], None]

logger = logging.getLogger(__name__)

# Points are small, so that the store's answers and not the bytes take the time.
_AT_ONCE = 8


@dataclass(frozen=True)
class Exchange:
    """One exchange: the folder of results, where points are in the store, and which of them.

    Args:
        results: the folder of results.
        store: the fields of config.Store.
        include: patterns of keys (`EXPERIMENT/PLATFORM/SPEC/runN/cN`, with * and ?) or of experiments; none is all.
        data_dir: of an embedded store.
        dry_run: say what would be moved, and move nothing.
    """

    results: Path
    store: dict[str, Any]
    include: tuple[str, ...] = ()
    data_dir: str = ""
    dry_run: bool = False

    @property
    def points(self) -> Path:
        """The folder of measured points."""
        return self.results / "points"

    def wanted(self, key: str) -> bool:
        """Whether the point with this key is to be looked at."""
        names = (key, key.partition("/")[0])
        return not self.include or any(fnmatch.fnmatchcase(name, each) for each in self.include for name in names)


@dataclass
class Outcome:
    """What an exchange did: the keys that moved, how many were there, and what was refused, one sentence each."""

    verb: str
    moved: list[str] = field(default_factory=list)
    same: int = 0
    refused: list[str] = field(default_factory=list)

    def tell(self, exchange: Exchange, where: str) -> None:
        """Say it.

        Raises:
            BerthError: something was refused; everything else was done.
        """
        would = "would be " if exchange.dry_run else ""
        logger.info("%s: %d points %s%s, %d are there already", where, len(self.moved), would, self.verb, self.same)
        if self.refused:
            counted = f"{len(self.refused)} of the points or files could not be {self.verb}"
            raise BerthError("\n".join([f"{where}: {counted}; the others are not touched by that:", *self.refused]))


def push_results(exchange: Exchange) -> Outcome:
    """Send the measured points that the store does not have.

    Raises:
        BerthError: conflicts and damaged files, after everything else was sent; or the store cannot be used.
    """
    outcome = Outcome("pushed")
    with opened(exchange.store, exchange.data_dir) as store:
        prefix = exchange.store["results_prefix"]
        if not exchange.dry_run:
            require_bucket(store, create=True)
        # A dry run changes nothing, so it does not probe with an object of its own.
        mode = "when_required" if exchange.dry_run else s3.probe_write(store, prefix)
        with _shelf(store, prefix, mode) as shelf:
            own, foreign = points_below(exchange.points, exchange.wanted)
            outcome.refused += [f"{path}: no path of a point. Move it away, or correct its name." for path in foreign]
            there = shelf.contents(exchange.wanted)
            outcome.refused += _foreign(shelf, there)
            for told in _each(own, lambda point: _push(exchange, shelf, there, point)):
                told(outcome)
        outcome.tell(exchange, f"{store}, {prefix}")
    return outcome


def pull_results(exchange: Exchange) -> Outcome:
    """Bring the measured points that are in the store and not here; each is verified before it appears.

    Raises:
        BerthError: conflicts and objects that are damaged, foreign or of a newer schema, after everything else was
            brought; or the store cannot be used.
    """
    outcome = Outcome("pulled")
    incoming = exchange.results / "exchange" / "incoming"
    with opened(exchange.store, exchange.data_dir) as store, _disk_errors(exchange.results):
        prefix = exchange.store["results_prefix"]
        with (
            filelocks.exclusive(incoming.with_name(".pull.lock"), "pull_results"),
            _shelf(store, prefix, s3.environment_mode() or "when_supported") as shelf,
        ):
            shutil.rmtree(incoming, ignore_errors=True)
            there = shelf.contents(exchange.wanted)
            outcome.refused += _foreign(shelf, there)
            try:
                for told in _each(sorted(there.points), lambda key: _pull(exchange, shelf, there, key, incoming)):
                    told(outcome)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        outcome.tell(exchange, f"{store}, {prefix}")
    return outcome


def _each(items: Iterable[Any], work: Callable[[Any], Told]) -> Iterator[Told]:
    """What was found of each, in their order, told by one thread."""

    def one(item: Any) -> Told:
        try:
            return work(item)
        except BerthError as error:
            # Without an answer the store is gone, and so it would be for every other point.
            if isinstance(error.__cause__, botocore.exceptions.BotoCoreError):
                raise
            return _refused(str(error))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(one, items)


def _push(exchange: Exchange, shelf: Shelf, there: Contents, point: PointFiles) -> Told:
    digests = point.digests()
    others = there.points.get(point.key, set())
    if others:
        return _same_or_conflict(shelf, point, digests, others)
    point.whole()
    requests = point.requests_path.read_bytes() if point.requests_path.exists() else None
    record = point.record_path.read_bytes()
    if not exchange.dry_run:
        shelf.put(point.key, digests, record, requests)
    return _moved(point.key, len(record) + len(requests or b""), exchange.dry_run, "push")


def _pull(exchange: Exchange, shelf: Shelf, there: Contents, key: str, incoming: Path) -> Told:
    others = there.points[key]
    target = PointFiles(exchange.points, key)
    spooled = PointFiles(exchange.results / "spool", key)
    for own in (target, spooled):
        # One that waits in the spool was measured here: it must not be hidden by another.
        if own.record_path.exists():
            return _same_or_conflict(shelf, own, own.digests(), others)
    if len(others) > 1:
        return _refused(_conflict(shelf, key, [], others))
    (digests,) = others
    size_bytes = sum(there.sizes.get(path, 0) for path in (record_object(key, digests), requests_object(key, digests)))
    if exchange.dry_run:
        return _moved(key, size_bytes, True, "pull")
    arrived = PointFiles(incoming, key)
    requests = shelf.requests(key, digests)
    if requests is not None:
        write_bytes(arrived.requests_path, requests)
    write_bytes(arrived.record_path, shelf.record(key, digests))
    try:
        arrived.whole()
    except BerthError as error:
        name = shelf.name(record_object(key, digests))
        return _refused(f"{name} is refused: {str(error).replace(f'{incoming}/', '')}")
    if not arrived.place(target):
        return _same_or_conflict(shelf, target, target.digests(), others)
    return _moved(key, size_bytes, False, "pull")


def _same_or_conflict(shelf: Shelf, own: PointFiles, digests: Digests, others: set[Digests]) -> Told:
    if others == {digests}:
        return _same
    try:
        here = f"{own.record_path} ({digests}), {measured(own.whole())}"
    except BerthError as error:
        here = f"{own.record_path} ({digests}), which is damaged: {error}"
    return _refused(_conflict(shelf, own.key, [here], others))


def _conflict(shelf: Shelf, key: str, here: list[str], others: set[Digests]) -> str:
    places = [f"{shelf.name(record_object(key, each))} ({each}), {_told(shelf, key, each)}" for each in sorted(others)]
    return "\n".join(
        [
            f"{key}: CONFLICT: measured more than once; nothing was changed on either side.",
            *(f"  here: {each}" for each in here),
            *(f"  there: {each}" for each in places),
            "  Points are immutable: keep one, and delete the other's files or objects (record and requests) yourself.",
        ]
    )


def _told(shelf: Shelf, key: str, digests: Digests) -> str:
    try:
        return measured(json.loads(shelf.record(key, digests)))
    except (BerthError, ValueError, KeyError, TypeError) as error:
        return f"which cannot be read: {error}"


def _foreign(shelf: Shelf, there: Contents) -> list[str]:
    remedy = "not an object of Berth's points. Move it out of the prefix."
    return [f"{shelf.store}: {key}: {remedy}" for key in there.foreign]


def _moved(key: str, size_bytes: int, dry_run: bool, verb: str) -> Told:
    def tell(outcome: Outcome) -> None:
        logger.info("%s%s %s (%s)", "would " if dry_run else "", verb, key, human_bytes(size_bytes))
        outcome.moved.append(key)

    return tell


def _same(outcome: Outcome) -> None:
    outcome.same += 1


def _refused(why: str) -> Told:
    return lambda outcome: outcome.refused.append(why)


@contextlib.contextmanager
def _shelf(store: s3.Store, prefix: str, mode: s3.ChecksumMode) -> Iterator[Shelf]:
    with store.client(mode) as client:
        yield Shelf(store, prefix, client)


@contextlib.contextmanager
def _disk_errors(results: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise full_disk_error(results, "pulled points") from error
        raise BerthError(
            f"{error.filename or results}: {error.strerror or error}. Pulled points are written there."
        ) from error
