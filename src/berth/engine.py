"""How bytes get from a file into an object and back: one small interface, and boto3 behind it, which always works."""

from __future__ import annotations

import base64
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import botocore.exceptions

from berth.fsio import CHUNK_BYTES

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Callable, Mapping

ChecksumName = Literal["crc32c", "md5"]
EngineName = Literal["auto", "wire", "boto3"]


@dataclass(frozen=True)
class Body:
    """A stretch of an open file that is sent.

    Args:
        fd: of the file, open for reading.
        offset: of the first byte.
        size_bytes: how many.
        checksum: "crc32c" or "md5" and its value of these bytes in base64; the store refuses other bytes.
        moved: called with a number of bytes before they go out; may wait or raise to stop.
    """

    fd: int
    offset: int
    size_bytes: int
    checksum: tuple[ChecksumName, str]
    moved: Callable[[int], None]


@dataclass(frozen=True)
class Span:
    """The bytes from `start` to before `stop` of an object that has `total_bytes`."""

    start: int
    stop: int
    total_bytes: int

    @property
    def size_bytes(self) -> int:
        """How many bytes these are."""
        return self.stop - self.start

    @property
    def header(self) -> str | None:
        """The value of Range; None where the whole object is empty, of which no range can be asked."""
        return f"bytes={self.start}-{self.stop - 1}" if self.size_bytes else None

    def check(self, answered_bytes: int | None, content_range: str | None) -> None:
        """Do nothing if an answer has these bytes; `content_range` is its header, None without one.

        Raises:
            OtherSizeError: the object has another size.
            HTTPClientError: the answer is cut short.
        """
        total = content_range.rpartition("/")[2] if content_range else ""
        known = int(total) if total.isdigit() else answered_bytes if not content_range else None
        if known is not None and known != self.total_bytes:
            raise OtherSizeError(known)
        if answered_bytes != self.size_bytes:
            raise botocore.exceptions.HTTPClientError(
                error=f"the answer has {answered_bytes} bytes instead of {self.size_bytes}"
            )


def crc32c_text(value: int) -> tuple[ChecksumName, str]:
    """A CRC32C as Body has it."""
    return "crc32c", base64.b64encode(value.to_bytes(4, "big")).decode()


def md5_text(digest: hashlib._Hash) -> tuple[ChecksumName, str]:
    """An MD5 as Body has it."""
    return "md5", base64.b64encode(digest.digest()).decode()


class OtherSizeError(Exception):
    """An object has another size than expected."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"{size_bytes} bytes")
        self.size_bytes = size_bytes


class Session(Protocol):
    """One connection, used by one thread. Errors of the store and of the way to it are those of botocore."""

    def put(self, key: str, body: Body, metadata: Mapping[str, str], part: tuple[str, int] | None) -> str:
        """Send an object, or a part (upload id, number) of one; returns its ETag as the store writes it."""

    def get(self, key: str, span: Span, etag: str | None, sink: Callable[[memoryview], None]) -> str:
        """Receive a stretch of an object; returns the object's ETag.

        `sink` gets the bytes in order, in buffers that are used again. With `etag` an object that was replaced is the
        error PreconditionFailed.

        Raises:
            OtherSizeError: the object has another size.
        """

    def close(self) -> None:
        """End the connection."""


class Boto3Session:
    """The fallback: boto3's own requests, whatever is between here and the store."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client, self._bucket = client, bucket

    def put(self, key: str, body: Body, metadata: Mapping[str, str], part: tuple[str, int] | None) -> str:
        """See Session."""
        arguments: dict[str, Any] = {"Bucket": self._bucket, "Key": key, "Body": _Reader(body)}
        arguments["ContentLength"] = body.size_bytes
        name, value = body.checksum
        arguments["ChecksumCRC32C" if name == "crc32c" else "ContentMD5"] = value
        if part is not None:
            answer = self._client.upload_part(**arguments, UploadId=part[0], PartNumber=part[1])
        else:
            answer = self._client.put_object(**arguments, Metadata=dict(metadata))
        return str(answer["ETag"])

    def get(self, key: str, span: Span, etag: str | None, sink: Callable[[memoryview], None]) -> str:
        """See Session."""
        arguments = {"IfMatch": etag, "Range": span.header}
        given = {name: value for name, value in arguments.items() if value is not None}
        answer = self._client.get_object(Bucket=self._bucket, Key=key, **given)
        with contextlib.closing(answer["Body"]) as stream:
            span.check(answer["ContentLength"], answer.get("ContentRange"))
            received = 0
            for chunk in stream.iter_chunks(CHUNK_BYTES):
                received += len(chunk)
                sink(memoryview(chunk))
        if received != span.size_bytes:
            raise botocore.exceptions.IncompleteReadError(actual_bytes=received, expected_bytes=span.size_bytes)
        return str(answer["ETag"])

    def close(self) -> None:
        """The client belongs to whoever made it."""


class _Reader:
    """A Body as the file that boto3 reads, perhaps twice: once to sign and once to send."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._at = 0

    def __len__(self) -> int:
        return self._body.size_bytes

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all that is left if it is negative."""
        left = self._body.size_bytes - self._at
        data = os.pread(self._body.fd, left if size < 0 else min(size, left), self._body.offset + self._at)
        self._at += len(data)
        self._body.moved(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of files."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._body.size_bytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """As of files."""
        return self._at
