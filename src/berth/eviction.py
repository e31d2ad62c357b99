"""Room on a node's own disk for one more model: copies that nobody serves go, the one served longest ago first.

Beside a copy NAME lie NAME.manifest.json, .NAME.use (the lock that whoever serves it holds) and .NAME.served, whose
time stamp says when that was last.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from berth import filelocks
from berth.disk import free_bytes, human_bytes
from berth.errors import BerthError
from berth.staging import staged_manifest

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"


def use_lock(copy: Path) -> Path:
    """The lock file that whoever serves a copy shares."""
    return copy.with_name(f".{copy.name}.use")


def touch_served(copy: Path) -> None:
    """Remember that a copy is served now."""
    path = copy.with_name(f".{copy.name}.served")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def make_room(folder: Path, needed_bytes: int, *, keep: Path, evict: bool) -> list[str]:
    """Return when `needed_bytes` fit into `folder`; the names of the copies that were removed for it.

    `keep` is the copy that is to be made. Call it with a lock on `folder` held.

    Raises:
        BerthError: they do not fit; nothing was removed where even all copies that nobody serves would not do.
    """
    shortage = needed_bytes - free_bytes(folder)
    if shortage <= 0:
        return []
    for leftover in folder.glob("*/.*.evicted"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = _candidates(folder, keep)
    shortage = needed_bytes - free_bytes(folder)
    possible = sum(size for _, size in found)
    if shortage > 0 and (not evict or possible < shortage):
        raise _no_room(folder, needed_bytes, shortage, possible, evict=evict)
    removed = []
    for copy, size_bytes in found:
        if needed_bytes <= free_bytes(folder):
            break
        with filelocks.unless_held(use_lock(copy)) as idle:
            if idle:
                _remove(copy)
                removed.append(copy.relative_to(folder).as_posix())
                logger.info("%s was removed to make room (%s)", copy, human_bytes(size_bytes))
    shortage = needed_bytes - free_bytes(folder)
    if shortage > 0:
        raise _no_room(folder, needed_bytes, shortage, 0, evict=evict)
    return removed


def _candidates(folder: Path, keep: Path) -> list[tuple[Path, int]]:
    """Copies that nobody serves now, with their bytes, the one served longest ago first."""
    copies = {
        path.with_name(path.name.removesuffix(".manifest.json").removesuffix(_PARTIAL)) for path in _known(folder)
    }
    idle = []
    for copy in copies - {keep}:
        with filelocks.unless_held(use_lock(copy)) as free:
            if free:
                idle.append((_served(copy), copy, sum(map(_tree_bytes, (copy, _partial(copy))))))
    return [(copy, size_bytes) for _, copy, size_bytes in sorted(idle)]


def _known(folder: Path) -> list[Path]:
    # Only what Berth put there has a manifest beside it.
    return list(folder.glob("*/*.manifest.json"))


def _served(copy: Path) -> float:
    for path in (copy.with_name(f".{copy.name}.served"), staged_manifest(copy), staged_manifest(_partial(copy))):
        if path.exists():
            return path.stat().st_mtime
    return 0.0


def _partial(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}{_PARTIAL}")


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _remove(copy: Path) -> None:
    for folder in (copy, _partial(copy)):
        # Without its manifest, and under another name, nobody takes what is left for a model.
        staged_manifest(folder).unlink(missing_ok=True)
        if folder.exists():
            gone = folder.with_name(f".{folder.name}.evicted")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    copy.with_name(f".{copy.name}.served").unlink(missing_ok=True)


def _no_room(folder: Path, needed_bytes: int, shortage: int, possible: int, *, evict: bool) -> BerthError:
    told = f"Copying the model to the node needs {human_bytes(needed_bytes)} at {folder}, and "
    told += f"{human_bytes(free_bytes(folder))} are free"
    if possible >= shortage and not evict:
        return BerthError(
            f"{told}. Copies that nobody serves take {human_bytes(possible)} there: remove some, or set "
            "`node_models.evict: true` in the platform file, and Berth removes the one that was served longest ago."
        )
    return BerthError(
        f"{told}; copies that nobody serves take {human_bytes(possible)}, which is not enough. Free "
        f"{human_bytes(shortage)} there, or name a larger disk in paths.node_models."
    )
