"""What a push or a stage has to move: decided by checksums, before anything is moved."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from berth.disk import human_bytes
from berth.errors import BerthError
from berth.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.manifest import FileEntry
    from berth.objects import StoredObject

_NAMED = 20


@dataclass(frozen=True)
class PushPlan:
    """What becomes of each file of a manifest.

    Args:
        right: objects that are right already, by path.
        copies: files whose content another object of the model has, with that object's path: the store copies it.
        sends: files that have to go over the network.
        extra: objects below the prefix that are not in the manifest.
    """

    right: Mapping[str, StoredObject]
    copies: tuple[tuple[FileEntry, str], ...]
    sends: tuple[FileEntry, ...]
    extra: Mapping[str, StoredObject]


def plan_push(manifest: Manifest, known: Mapping[str, StoredObject]) -> PushPlan:
    """What has to be done so that the store has exactly the manifest's files; `known` is of objects.known_objects."""
    right = {
        entry.path: found
        for entry in manifest.files
        if (found := known.get(entry.path)) and (found.size, found.sha256) == (entry.size_bytes, entry.sha256)
    }
    contents = {(found.size, found.sha256): path for path, found in known.items() if found.sha256}
    copies, sends = [], []
    # Objects that are overwritten are no source: the copy might come after.
    changed = {entry.path for entry in manifest.files} - set(right)
    for entry in manifest.files:
        if entry.path in right:
            continue
        source = contents.get((entry.size_bytes, entry.sha256))
        if source is not None and source not in changed and entry.size_bytes:
            copies.append((entry, source))
        else:
            sends.append(entry)
    paths = {entry.path for entry in manifest.files}
    extra = {path: found for path, found in known.items() if path not in paths}
    return PushPlan(right, tuple(copies), tuple(sends), extra)


def select(manifest: Manifest, include: Sequence[str], exclude: Sequence[str]) -> Manifest:
    """The files of a manifest that the patterns leave: `*.json`, `original/*`; a star crosses folders.

    Raises:
        BerthError: no file is left.
    """
    if not include and not exclude:
        return manifest

    def matches(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in patterns)

    files = tuple(
        entry
        for entry in manifest.files
        if (not include or matches(entry.path, include)) and not matches(entry.path, exclude)
    )
    if not files:
        raise BerthError(
            f"include {list(include)} and exclude {list(exclude)} leave no file of the {len(manifest.files)} of this "
            "model: correct `store.include` and `store.exclude` in the platform file."
        )
    if len(files) == len(manifest.files):
        return manifest
    chosen = {"include": list(include), "exclude": list(exclude)}
    return Manifest({**manifest.source, "selected": chosen}, files)


def counted(sizes: Sequence[int]) -> dict[str, int]:
    """Objects and bytes, as receipts have them."""
    return {"objects": len(sizes), "bytes": sum(sizes)}


def told(counts: Mapping[str, Any]) -> str:
    """Objects and bytes for people."""
    return f"{counts['objects']} files ({human_bytes(counts['bytes'])})"


def told_plan(plan: Mapping[str, Any]) -> str:
    """What a dry run found, for people."""
    words = {"moved": "to move", "copied": "that the store copies itself", "skipped": "there already"}
    words["extra"] = "in the store that are not in the manifest"
    parts = [f"{told(plan[name])} {text}" for name, text in words.items() if plan.get(name, {}).get("objects")]
    files = "".join(f"\n    {path}" for path in plan["files"][:_NAMED])
    more = len(plan["files"]) - _NAMED
    return (", ".join(parts) or "nothing to move") + files + (f"\n    and {more} more" if more > 0 else "")
