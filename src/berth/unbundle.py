"""Verify and unpack a bundle that `snakemake pack_bundle` made, on a machine without Berth and without a network.

    tar -xf BUNDLE unpack.py
    python3 unpack.py BUNDLE DEST          # DEST becomes a checkout with models, datasets, images and wheels
    python3 unpack.py --verify BUNDLE      # read everything, put nothing anywhere

It needs Python 3.11 and nothing else: this file is in every bundle as unpack.py, so it imports nothing of Berth.

Every member is compared with the SHA-256 in MANIFEST.json, the last member. They gather in DEST.partial, where an
interrupted call goes on, and DEST appears when all are right.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import Any

SCHEMA = 1
MANIFEST = "MANIFEST.json"
# In texts that are filled in, it stands for the folder in which the bundle is unpacked.
DEST_MARK = "@DEST@"
# As berth.fsio has it, and why.
_CHUNK_BYTES = 256 * 1024
_PROGRESS_S = 10.0


class BundleError(Exception):
    """What is wrong with a bundle or with the place for it, and what to do."""


def read_index(tar: tarfile.TarFile, bundle: Path) -> tuple[dict[str, Any], dict[str, tarfile.TarInfo]]:
    """The manifest and the members by name; nothing but headers and the manifest is read.

    Raises:
        BundleError: cut short, no bundle, of a newer Berth, or its members are not those of its manifest.
    """
    again = "Copy it again, and compare its size with the original's."
    try:
        infos = tar.getmembers()
    except tarfile.TarError as error:
        raise BundleError(f"{bundle}: cut short or damaged ({error}). {again}") from error
    if not infos or infos[-1].name != MANIFEST:
        raise BundleError(f"{bundle}: {MANIFEST} is not its last member, so it is cut short or no bundle. {again}")
    try:
        handle = tar.extractfile(infos[-1])
        manifest: dict[str, Any] = json.loads(handle.read() if handle else b"")
        listed = {each["name"]: each for each in manifest["members"]}
        schema = int(manifest["schema"])
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle}: {MANIFEST} cannot be read ({error}). {again}") from error
    if schema > SCHEMA:
        raise BundleError(f"{bundle}: of schema {schema}, and this unpack.py reads {SCHEMA}: use the bundle's own.")
    members = {info.name: info for info in infos[:-1]}
    if len(members) != len(infos) - 1 or set(members) != set(listed):
        odd = sorted(set(members) ^ set(listed))[:5]
        raise BundleError(
            f"{bundle}: its members are not those of {MANIFEST} ({', '.join(odd) or 'one twice'}). {again}"
        )
    for name, info in members.items():
        if not info.isreg() or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{bundle}: member {name} is no plain file below the bundle. Do not use this bundle.")
        if info.size != listed[name]["size"]:
            raise BundleError(f"{bundle}: {name} has {info.size} bytes instead of {listed[name]['size']}. {again}")
    return manifest, members


def verify(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle whose members all have their SHA-256; errors as of unpack()."""
    with _opened(bundle) as tar:
        manifest, members = read_index(tar, bundle)
        said = _Progress(bundle, "verified", sum(each["size"] for each in manifest["members"]))
        for each in manifest["members"]:
            _take(tar, members[each["name"]], each["sha256"], None, said)
    return manifest


def unpack(bundle: Path, dest: Path) -> dict[str, Any]:
    """Put the contents of a bundle at `dest`, whole or not at all; returns its manifest.

    Raises:
        BundleError: see read_index; a member has another SHA-256, no room, or something else is at `dest`.
    """
    dest = dest.absolute()
    marker = dest / "bundle" / MANIFEST
    with _opened(bundle) as tar:
        manifest, members = read_index(tar, bundle)
        text = json.dumps(manifest, indent=2) + "\n"
        if marker.exists() and marker.read_text() == text:
            print(f"{dest} holds this bundle already.")
            return manifest
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise BundleError(f"{dest} exists and is not this bundle. Name a new folder, or move that one away.")
        partial = dest.with_name(f"{dest.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        todo = [each for each in manifest["members"] if not _is_there(partial, each)]
        _require_space(partial, sum(each["size"] for each in todo))
        said = _Progress(bundle, "unpacked", sum(each["size"] for each in todo))
        for each in todo:
            target = partial / place_of(each["name"])
            target.parent.mkdir(parents=True, exist_ok=True)
            _take(tar, members[each["name"]], each["sha256"], target, said)
    _finish(partial, dest, manifest)
    (partial / "bundle").mkdir(exist_ok=True)
    (partial / "bundle" / MANIFEST).write_text(text)
    if dest.exists():
        dest.rmdir()
    partial.rename(dest)
    return manifest


def place_of(name: str) -> str:
    """Where a member belongs below the destination."""
    head, _, rest = name.partition("/")
    return rest if head == "checkout" else name if head == "results" else f"bundle/{name}"


def _opened(bundle: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(bundle, "r:")
    except (tarfile.TarError, OSError) as error:
        raise BundleError(f"{bundle}: no plain tar file that can be read ({error}).") from error


def _take(tar: tarfile.TarFile, info: tarfile.TarInfo, sha256: str, target: Path | None, said: _Progress) -> None:
    """Read one member, and give it its name at `target` when it is right."""
    digest = hashlib.sha256()
    source = tar.extractfile(info)
    temporary = target.with_name(f".{target.name}.part") if target else Path(os.devnull)
    with temporary.open("wb") as writer:
        while source and (chunk := source.read(_CHUNK_BYTES)):
            digest.update(chunk)
            writer.write(chunk)
            said.more(len(chunk))
        if target:
            writer.flush()
            os.fsync(writer.fileno())
    if digest.hexdigest() != sha256:
        if target:
            temporary.unlink()
        raise BundleError(
            f"{said.bundle}: {info.name} has SHA-256 {digest.hexdigest()} instead of {sha256}: the bundle was "
            "damaged on its way. Copy it again; what was unpacked and is right is kept."
        )
    if target:
        temporary.chmod(0o755 if info.mode & 0o100 else 0o644)
        temporary.replace(target)


def _is_there(partial: Path, expected: dict[str, Any]) -> bool:
    path = partial / place_of(expected["name"])
    if not path.is_file() or path.stat().st_size != expected["size"]:
        return False
    with path.open("rb") as handle:
        return bool(hashlib.file_digest(handle, "sha256").hexdigest() == expected["sha256"])


def _finish(partial: Path, dest: Path, manifest: dict[str, Any]) -> None:
    """Fill the destination into the receipts, and let receipts be newer than what they are of."""
    now = time.time()
    order = {name: number for number, name in enumerate(manifest["receipts"])}
    for each in manifest["members"]:
        path = partial / place_of(each["name"])
        if each["name"] in order:
            path.write_text(path.read_text().replace(DEST_MARK, str(dest)))
        age = len(order) - order.get(each["name"], -1)
        os.utime(path, (now - age, now - age))


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise BundleError(
            f"{folder}: unpacking needs {needed_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. Free some, or "
            "name a folder on a larger disk."
        )


class _Progress:
    """Says every few seconds how far it is."""

    def __init__(self, bundle: Path, verb: str, total_bytes: int) -> None:
        self.bundle = bundle
        self._verb, self._total_bytes, self._done_bytes = verb, total_bytes, 0
        self._said = time.monotonic()

    def more(self, count_bytes: int) -> None:
        """So many bytes more."""
        self._done_bytes += count_bytes
        if time.monotonic() - self._said > _PROGRESS_S:
            self._said = time.monotonic()
            print(f"{self._verb} {self._done_bytes / 1e9:.1f} of {self._total_bytes / 1e9:.1f} GB", flush=True)


def main(words: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Verify and unpack a bundle of Berth.")
    parser.add_argument("--verify", action="store_true", help="read and compare everything, and unpack nothing")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dest", type=Path, nargs="?", help="a folder that does not exist yet")
    given = parser.parse_args(words)
    if given.verify == bool(given.dest):
        parser.error("give DEST, or --verify")
    try:
        manifest = verify(given.bundle) if given.verify else unpack(given.bundle, given.dest)
    except BundleError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"ERROR: {error.filename or given.dest}: {error.strerror or error}. Run again.", file=sys.stderr)
        return 1
    for line in (f"{len(manifest['members'])} files, all with the SHA-256 of the manifest.", *manifest["notes"]):
        print(line.replace(DEST_MARK, str(given.dest)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
