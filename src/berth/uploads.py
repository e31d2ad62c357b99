"""One file on its way into an object: hashed once, in parts, and given up if it is not what the manifest says."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import botocore.exceptions
from awscrt.checksums import crc32c

from berth.engine import Body, ChecksumName, Session, crc32c_text, md5_text
from berth.errors import BerthError
from berth.fsio import CHUNK_BYTES
from berth.s3 import SHA256, stored_sha256
from berth.s3errors import error_code

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from berth.manifest import FileEntry
    from berth.moving import Moving

_PARTS_ALLOWED = 10_000
_MOST_PARTS = 9_000
# S3 refuses shorter ones, but for the last.
_LEAST_PART_BYTES = 5 * 1024 * 1024
_LOST = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})
_RESTARTS = 2


def part_bytes_for(size_bytes: int, wanted_bytes: int) -> int:
    """A part size with which a file has no more parts than S3 allows (10,000)."""
    return max(wanted_bytes, -(-size_bytes // _MOST_PARTS))


@dataclass(frozen=True)
class _Part:
    number: int
    offset: int
    size_bytes: int
    checksum: tuple[ChecksumName, str]
    md5: str


class Upload:
    """A crew's job: send `path` as `key`. The object appears when all of it is sent and its SHA-256 is right.

    Args:
        moving: what all files of a push share.
        entry: what the file must be.
        path: the file.
        key: of the object.
        begun: upload ids of earlier pushes for this key; the parts that one of them has are not sent again.
    """

    def __init__(self, moving: Moving, entry: FileEntry, path: Path, key: str, begun: Sequence[str] = ()) -> None:
        self._moving, self.entry, self._path, self._key = moving, entry, path, key
        self._begun = list(begun)
        self._lock = threading.Lock()
        self._size = part_bytes_for(entry.size_bytes, moving.part_bytes)
        self._parts = max(1, -(-entry.size_bytes // self._size))
        self._fd = -1
        self._restarts = 0
        self._failed: BaseException | None = None
        self.etag = ""
        self._reset()

    def _reset(self) -> None:
        self.untaken = self._parts
        self._taken = self._in_flight = 0
        self._digest = hashlib.sha256()
        self._upload_id = ""
        self._resumed = False
        self._there: dict[int, dict[str, Any]] = {}
        self._sent: dict[int, dict[str, Any]] = {}
        self._lost = False

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self.entry.size_bytes

    def step(self, session: Session) -> None:
        """Send the next part; see crew.Job."""
        try:
            with self._lock:
                part = self._take()
                if part is None:
                    return
                self._in_flight += 1
            try:
                self._send(session, part)
            finally:
                with self._lock:
                    self._in_flight -= 1
                    last = self._in_flight == 0 and self.untaken == 0
            if last:
                self._finish()
        except BaseException:
            with self._lock:
                self._close()
            raise

    def _take(self) -> _Part | None:
        """The next part, hashed. In order, because SHA-256 knows no other; the caller holds the lock."""
        if not self.untaken:
            return None
        if self._fd < 0:
            self._fd = self._open()
        if self._taken == 0 and self._parts > 1 and not self._upload_id:
            self._resume_or_create()
        offset = self._taken * self._size
        size = min(self._size, self.entry.size_bytes - offset)
        number = self._taken + 1
        part = self._hashed(number, offset, size, with_md5=number in self._there or not self._moving.with_crc)
        self._taken += 1
        if self._taken == self._parts:
            # Before the last byte leaves: a file that is wrong never becomes an object.
            self._require_right(offset + size)
        self.untaken -= 1
        return part

    def _hashed(self, number: int, offset: int, size: int, *, with_md5: bool) -> _Part:
        buffer = memoryview(bytearray(min(CHUNK_BYTES, max(size, 1))))
        crc, md5, at = 0, hashlib.md5(usedforsecurity=False) if with_md5 else None, offset
        while at < offset + size:
            self._moving.retries.check()
            count = os.preadv(self._fd, [buffer[: min(len(buffer), offset + size - at)]], at)
            if not count:
                raise self._wrong(f"has {at} bytes instead of {self.entry.size_bytes}")
            chunk = buffer[:count]
            self._digest.update(chunk)
            if self._moving.with_crc:
                crc = crc32c(chunk, crc)
            if md5 is not None:
                md5.update(chunk)
            at += count
        checksum = crc32c_text(crc) if md5 is None or self._moving.with_crc else md5_text(md5)
        return _Part(number, offset, size, checksum, md5.hexdigest() if md5 else "")

    def _send(self, session: Session, part: _Part) -> None:
        there = self._there.get(part.number)
        if there is not None and (there["ETag"].strip('"'), there["Size"]) == (part.md5, part.size_bytes):
            self._moving.progress.already(part.size_bytes)
            self._note(part, there["ETag"])
            return
        body = Body(self._fd, part.offset, part.size_bytes, part.checksum, self._moving.account)
        target = (self._upload_id, part.number) if self._parts > 1 else None
        metadata = {SHA256: self.entry.sha256} if target is None else {}
        try:
            etag = self._moving.retries.call(
                lambda: session.put(self._key, body, metadata, target), lambda: 0, f"{self._key} part {part.number}"
            )
        except botocore.exceptions.ClientError as error:
            if target is None or error_code(error) not in _LOST:
                raise
            with self._lock:
                self._lost, self.untaken = True, 0
            return
        self._note(part, etag)

    def _note(self, part: _Part, etag: str) -> None:
        sent = {"PartNumber": part.number, "ETag": etag}
        if self._moving.with_crc:
            sent["ChecksumCRC32C"] = part.checksum[1]
        with self._lock:
            self._sent[part.number] = sent

    def _finish(self) -> None:
        if self._parts == 1:
            self.etag = self._sent[1]["ETag"].strip('"')
        else:
            self.etag = "" if self._lost else self._complete()
            if not self.etag:
                self._again()
                return
        with self._lock:
            self._close()

    def _complete(self) -> str:
        """The ETag of the object; "" if the upload is gone or has become another object."""
        parts = [self._sent[number] for number in sorted(self._sent)]
        arguments = {"Bucket": self._moving.bucket, "Key": self._key}
        try:
            answer = self._moving.client.complete_multipart_upload(
                **arguments, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )
        except botocore.exceptions.ClientError as error:
            # An upload of an earlier process may have been begun in another way, with other checksums.
            if error_code(error) not in _LOST and not self._resumed:
                raise
            # Another process, or an attempt whose answer was lost, may have completed it.
            answer = {}
        if answer and not self._resumed:
            return str(answer["ETag"]).strip('"')
        # The SHA-256 was given when the upload was begun, perhaps for another content of this file.
        with contextlib.suppress(botocore.exceptions.ClientError):
            head = self._moving.client.head_object(**arguments)
            if (head["ContentLength"], stored_sha256(head)) == (self.entry.size_bytes, self.entry.sha256):
                return str(head["ETag"]).strip('"')
        return ""

    def _again(self) -> None:
        """Begin this file anew: what was sent cannot be used."""
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise BerthError(
                f"{self._moving.store}: the upload of {self._key} was ended {self._restarts} times by somebody else. "
                "Does another process write there? Run again."
            )
        with self._lock:
            self._moving.progress.back(self.entry.size_bytes)
            self._begun = []
            self._reset()

    def _resume_or_create(self) -> None:
        found = [(upload_id, self._moving.parts_of(self._key, upload_id)) for upload_id in self._begun]
        upload_id, parts = max(found, key=lambda item: len(item[1]), default=("", {}))
        # Only parts of one size line up with the file; the last one is shorter.
        sizes = {part["Size"] for number, part in parts.items() if number != max(parts)} or {
            part["Size"] for part in parts.values()
        }
        if len(sizes) == 1 and self._fits(size := sizes.pop(), parts):
            self._size, self._parts = size, -(-self.entry.size_bytes // size)
            self.untaken = self._parts
            self._upload_id, self._there, self._resumed = upload_id, parts, True
            return
        algorithm = {"ChecksumAlgorithm": "CRC32C"} if self._moving.with_crc else {}
        answer = self._moving.client.create_multipart_upload(
            Bucket=self._moving.bucket, Key=self._key, Metadata={SHA256: self.entry.sha256}, **algorithm
        )
        self._upload_id = answer["UploadId"]

    def _fits(self, size: int, parts: dict[int, dict[str, Any]]) -> bool:
        count = -(-self.entry.size_bytes // size)
        return size >= min(self._size, _LEAST_PART_BYTES) and 1 < count <= _PARTS_ALLOWED and max(parts) <= count

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror})") from error

    def _require_right(self, end: int) -> None:
        size, sha256 = os.fstat(self._fd).st_size, self._digest.hexdigest()
        if max(size, end) != self.entry.size_bytes:
            raise self._wrong(f"has {size} bytes instead of {self.entry.size_bytes}")
        if sha256 != self.entry.sha256:
            raise self._wrong(f"has SHA-256 {sha256} instead of {self.entry.sha256}")

    def _wrong(self, problem: str) -> BerthError:
        """The error for a file that is not the manifest's; what was sent of it is given up."""
        if self._upload_id:
            self._moving.abort(self._key, self._upload_id)
        return BerthError(f"{self._path} {problem}, so it is not pushed. Get the model again (rule download_model).")

    def _close(self) -> None:
        # Another thread may still send from it when one has failed; it is then closed by the last.
        if self._fd >= 0 and self._in_flight == 0:
            os.close(self._fd)
            self._fd = -1
