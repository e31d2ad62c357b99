"""What a model directory holds: the name, size and SHA-256 of each file, and where they came from.

The manifest is a JSON file outside the directory that it describes:

    {"schema": 1, "source": {...}, "files": [{"path", "size", "sha256"}], "total_bytes": N}

`source` has `kind` ("hub" or "generate"), `repo`, `revision`, `licence` (a name or null), and whatever else tells two
sources apart. The manifest is written after everything else, so its presence means that the directory was whole.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from berth.errors import BerthError
from berth.fsio import sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 1

# huggingface_hub keeps its bookkeeping in this folder of a download; it is no part of the model.
HUB_CACHE = PurePosixPath(".cache/huggingface")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMED_IN_ERROR = 20
_HASH_WORKERS = 4


@dataclass(frozen=True)
class FileEntry:
    """One file: POSIX path below the directory, size in bytes, SHA-256 in lower-case hexadecimal."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a model directory, sorted by path, and their source."""

    source: dict[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def total_bytes(self) -> int:
        """The sum of the file sizes."""
        return sum(entry.size_bytes for entry in self.files)


@dataclass(frozen=True)
class Problem:
    """One difference between a directory and its manifest."""

    path: str
    kind: Literal["missing", "size", "sha256", "unexpected"]
    detail: str


def list_tree(root: Path) -> tuple[str, ...]:
    """The POSIX paths of all files below `root`, sorted, without the hub's bookkeeping."""
    found = []
    for folder, subfolders, names in os.walk(root):
        # Text, not paths: of 10,000 files that is a tenth of a second at every start.
        below = os.path.relpath(folder, root)
        prefix = "" if below == os.curdir else f"{below}/"
        subfolders[:] = [name for name in subfolders if f"{prefix}{name}" != str(HUB_CACHE)]
        found += [f"{prefix}{name}" for name in names]
    return tuple(sorted(found))


def sha256_files(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each of the files, several read at a time."""
    with ThreadPoolExecutor(_HASH_WORKERS) as pool:
        return dict(zip(paths, pool.map(lambda path: sha256_file(root / path), paths), strict=True))


def build_manifest(root: Path, source: dict[str, Any], known_sha256: Mapping[str, str] | None = None) -> Manifest:
    """The manifest of the files that are in `root` now.

    Files in `known_sha256` (path -> SHA-256, verified by the caller) are not read again.

    Raises:
        BerthError: `root` has no files.
    """
    paths = list_tree(root)
    if not paths:
        raise BerthError(f"{root} has no files, so there is nothing to make a manifest of.")
    known = dict(known_sha256 or {})
    known |= sha256_files(root, [path for path in paths if path not in known])
    return Manifest(source, tuple(FileEntry(path, (root / path).stat().st_size, known[path]) for path in paths))


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as the JSON object that is written."""
    return {
        "schema": SCHEMA,
        "source": manifest.source,
        "files": [{"path": f.path, "size": f.size_bytes, "sha256": f.sha256} for f in manifest.files],
        "total_bytes": manifest.total_bytes,
    }


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    write_json(path, manifest_json(manifest))


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        BerthError: no such file, cut short, not a manifest, of a newer schema, or at odds with itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BerthError(f"{path}: there is no manifest; get the model first (rule download_model).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _unreadable(path, f"it is cut short or no JSON ({error})") from error
    return parse_manifest(value, str(path))


def parse_manifest(value: Any, where: str) -> Manifest:
    """The manifest in a JSON value; `where` names its origin in errors.

    Raises:
        BerthError: see read_manifest.
    """
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise _unreadable(where, "it has no schema number, so it is no manifest of Berth")
    if value["schema"] > SCHEMA:
        raise BerthError(
            f"{where}: schema {value['schema']} is newer than this Berth, which reads up to {SCHEMA}: update Berth."
        )
    source, files = value.get("source"), value.get("files")
    if not isinstance(source, dict) or not isinstance(files, list) or not files:
        raise _unreadable(where, "`source` or `files` is missing")
    manifest = Manifest(source, tuple(_parse_entry(entry, where) for entry in files))
    if value.get("total_bytes") != manifest.total_bytes:
        raise _unreadable(
            where, f"total_bytes is {value.get('total_bytes')}, its files add up to {manifest.total_bytes}"
        )
    if len({entry.path for entry in manifest.files}) != len(files):
        raise _unreadable(where, "a path is listed twice")
    return manifest


def _parse_entry(value: Any, where: str) -> FileEntry:
    if not isinstance(value, dict):
        raise _unreadable(where, f"{value!r} in `files` is no object")
    path, size, sha256 = value.get("path"), value.get("size"), value.get("sha256")
    # A path that leaves the directory would let a foreign manifest overwrite files elsewhere.
    if not isinstance(path, str) or not path or path.startswith("/") or ".." in path.split("/"):
        raise _unreadable(where, f"path {path!r} is not below the model directory")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _unreadable(where, f"the size of {path} is {size!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _unreadable(where, f"the sha256 of {path} is {sha256!r}")
    return FileEntry(path, size, sha256)


def _unreadable(where: Path | str, reason: str) -> BerthError:
    return BerthError(f"{where}: not a usable manifest: {reason}. Delete it and get the model again.")


def tree_problems(root: Path, manifest: Manifest, *, checksums: bool = True) -> tuple[Problem, ...]:
    """Every difference between the directory and the manifest; empty if there is none.

    Without `checksums` only names and sizes are compared, which reads no file.
    """
    problems, same_size = [], []
    present = set(list_tree(root)) if root.is_dir() else set()
    for entry in manifest.files:
        if entry.path not in present:
            problems.append(Problem(entry.path, "missing", "is missing"))
            continue
        size = os.stat(f"{root}/{entry.path}").st_size  # noqa: PTH116
        if size != entry.size_bytes:
            problems.append(Problem(entry.path, "size", f"has {size} bytes instead of {entry.size_bytes}"))
        else:
            same_size.append(entry)
    if checksums:
        found = sha256_files(root, [entry.path for entry in same_size])
        problems += [
            Problem(entry.path, "sha256", f"has SHA-256 {found[entry.path]} instead of {entry.sha256}")
            for entry in same_size
            if found[entry.path] != entry.sha256
        ]
    expected = {entry.path for entry in manifest.files}
    problems += [Problem(path, "unexpected", "is not in the manifest") for path in sorted(present - expected)]
    return tuple(problems)


def verify_tree(root: Path, manifest: Manifest, *, checksums: bool = True) -> None:
    """Do nothing if the directory is exactly what the manifest says.

    Raises:
        BerthError: names each file that is missing, of another size or SHA-256, or unexpected.
    """
    problems = tree_problems(root, manifest, checksums=checksums)
    if problems:
        lines = [f"  {problem.path} {problem.detail}" for problem in problems[:_NAMED_IN_ERROR]]
        if len(problems) > _NAMED_IN_ERROR:
            lines.append(f"  and {len(problems) - _NAMED_IN_ERROR} more")
        raise BerthError(
            f"{root} is not what its manifest says:\n" + "\n".join(lines) + "\nDelete the manifest and get it again."
        )
