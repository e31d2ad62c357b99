"""One tar file with all that a site without internet needs: checkout, models, datasets, images, wheels; see unbundle.

The order of members follows from the request, their headers hold no time and no user, and MANIFEST.json comes last. So
a call that was interrupted goes on in BUNDLE.partial after the last member that is whole there.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from berth import filelocks
from berth.bundle_contents import Member, contents_of
from berth.disk import full_disk_error, human_bytes, is_disk_full, require_space
from berth.errors import BerthError
from berth.fsio import CHUNK_BYTES, fsync_dir
from berth.unbundle import MANIFEST, SCHEMA, BundleError, verify

if TYPE_CHECKING:
    from berth.bundle_contents import BundleRequest

logger = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE


def pack_bundle(request: BundleRequest) -> dict[str, Any]:
    """Pack what the request names; the bundle appears at once, when it is whole. Returns its manifest.

    A bundle that is there already with the same contents is kept.

    Raises:
        BerthError: another file is there, a source is missing or damaged, no room, or wheels cannot be had.
    """
    bundle = Path(request.bundle).expanduser().absolute()
    contents = contents_of(request)
    partial = bundle.with_name(f"{bundle.name}.partial")
    with filelocks.exclusive(bundle.with_name(f".{bundle.name}.lock"), f"packing of {bundle}"):
        try:
            return _pack(bundle, partial, contents.members, contents.receipts, contents.notes)
        except OSError as error:
            if is_disk_full(error):
                raise full_disk_error(bundle.parent, str(bundle)) from error
            raise BerthError(
                f"{error.filename or bundle}: {error.strerror or error}. Packing {bundle} needs it."
            ) from error


def _pack(bundle: Path, partial: Path, members: list[Member], receipts: list[str], notes: list[str]) -> dict[str, Any]:
    total = sum(member.size_bytes for member in members)
    if bundle.exists():
        return _kept(bundle, members)
    done, position = _resume(partial, members)
    require_space(bundle.parent, total - sum(each["size"] for each in done), f"The bundle {bundle.name}")
    if done:
        logger.info("going on after %d of %d files in %s", len(done), len(members), partial)
    with partial.open("r+b" if partial.exists() else "w+b") as handle:
        handle.truncate(position)
        handle.seek(position)
        with tarfile.TarFile(fileobj=handle, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for member in members[len(done) :]:
                done.append({"name": member.name, "size": member.size_bytes, "sha256": _add(tar, member)})
            manifest = {"schema": SCHEMA, "members": done, "receipts": receipts, "notes": notes}
            text = (json.dumps(manifest, indent=2) + "\n").encode()
            tar.addfile(_header(Member(MANIFEST, text)), io.BytesIO(text))
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(bundle)
    fsync_dir(bundle.parent)
    logger.info("%s is whole: %d files, %s", bundle, len(members), human_bytes(total))
    return manifest


def _kept(bundle: Path, members: list[Member]) -> dict[str, Any]:
    try:
        manifest = verify(bundle)
    except BundleError as error:
        raise BerthError(f"{error} Or remove it, and run again, so that it is packed anew.") from None
    listed = {each["name"]: each["sha256"] for each in manifest["members"]}
    if listed != {member.name: member.digest() for member in members}:
        raise BerthError(
            f"{bundle} is a bundle of other contents, and no bundle is written over. Remove it, or name another file."
        )
    logger.info("%s is there already, whole", bundle)
    return manifest


def _header(member: Member) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.name)
    info.size, info.mode = member.size_bytes, 0o755 if member.executable else 0o644
    return info


def _add(tar: tarfile.TarFile, member: Member) -> str:
    """Write one member; its SHA-256.

    Raises:
        BerthError: the file is not what its own manifest says, or changed while it was read.
    """
    logger.debug("packing %s", member.name)
    with member.opened() as source:
        reader = _Hashing(source)
        try:
            tar.addfile(_header(member), reader)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise BerthError(f"{member.where}: it became shorter while it was packed. Run again.") from error
    found = reader.digest.hexdigest()
    if member.sha256 not in (None, found):
        raise BerthError(
            f"{member.where} has SHA-256 {found} instead of {member.sha256}, so it is not packed. `custody` says what "
            "else has changed; delete its receipt or manifest and get it again."
        )
    return found


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        data = self._source.read(count)
        self.digest.update(data)
        return data


@dataclass
class _Read:
    name: str
    size_bytes: int
    sha256: str
    end: int


def _resume(partial: Path, members: list[Member]) -> tuple[list[dict[str, Any]], int]:
    """What an interrupted call has packed of these members, in their order, and where it ends in the file."""
    done: list[dict[str, Any]] = []
    position = 0
    for found, member in zip(_read(partial), members, strict=False):
        same = (found.name, found.size_bytes) == (member.name, member.size_bytes) and found.sha256 == member.digest()
        if not same:
            break
        done.append({"name": found.name, "size": found.size_bytes, "sha256": found.sha256})
        position = found.end
    return done, position


def _read(partial: Path) -> Any:
    """The whole members at the beginning of a tar file that may be cut short."""
    if not partial.exists():
        return
    size = partial.stat().st_size
    with partial.open("rb") as handle:
        try:
            tar = tarfile.TarFile(fileobj=handle, mode="r")
        except tarfile.TarError:
            return
        while True:
            try:
                info = tar.next()
            except tarfile.TarError:
                return
            if info is None or info.offset_data + info.size > size:
                return
            end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
            handle.seek(info.offset_data)
            digest, left = hashlib.sha256(), info.size
            while left and (chunk := handle.read(min(left, CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
            yield _Read(info.name, info.size, digest.hexdigest(), end)
