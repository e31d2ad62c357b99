"""What all files of one push or stage share: the client, limits, progress."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import botocore.exceptions

from berth.disk import human_bytes
from berth.progress import span

if TYPE_CHECKING:
    from berth.bandwidth import Limit
    from berth.retries import Retries
    from berth.s3 import Store

logger = logging.getLogger(__name__)

_EVERY_S = 10.0


@dataclass
class Progress:
    """Counts bytes from many threads and says every few seconds how far it is, how fast, and how long it will take."""

    verb: str
    total_bytes: int
    done_bytes: int = 0
    transferred_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def moved(self, size_bytes: int) -> None:
        """Bytes went over the network."""
        with self.lock:
            self.done_bytes += size_bytes
            self.transferred_bytes += size_bytes
            now = time.monotonic()
            if now - self.said < _EVERY_S:
                return
            self.said = now
            rate = self.transferred_bytes / (now - self.started)
            left = max(0, self.total_bytes - self.done_bytes)
        logger.info(
            "%s %s of %s, %s/s, %s left",
            self.verb,
            human_bytes(min(self.done_bytes, self.total_bytes)),
            human_bytes(self.total_bytes),
            human_bytes(int(rate)),
            span(left / rate if rate else 0),
        )

    def already(self, size_bytes: int) -> None:
        """Bytes need not be moved: an earlier process did it."""
        with self.lock:
            self.done_bytes += size_bytes

    def back(self, size_bytes: int) -> None:
        """Bytes that were counted have to be moved again."""
        with self.lock:
            self.done_bytes -= size_bytes


@dataclass(frozen=True)
class Moving:
    """See the module.

    Args:
        client: boto3's, for everything but the bytes.
        store: for its bucket, and for errors.
        part_bytes: wanted size of a part.
        with_crc: whether parts carry a CRC32C that the store compares; an MD5 otherwise, which every store knows.
        retries: of every part.
        limit: of the bandwidth.
        progress: counts.
    """

    client: Any
    store: Store
    part_bytes: int
    with_crc: bool
    retries: Retries
    limit: Limit
    progress: Progress

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.store.bucket

    def account(self, size_bytes: int) -> None:
        """Called for all bytes that are sent or have arrived: waits for the limit, counts, ends what was stopped."""
        self.retries.check()
        self.limit.wait(size_bytes)
        self.progress.moved(size_bytes)

    def parts_of(self, key: str, upload_id: str) -> dict[int, dict[str, Any]]:
        """The parts that an upload has, by number; none if the upload is gone."""
        parts: dict[int, dict[str, Any]] = {}
        with contextlib.suppress(botocore.exceptions.ClientError):
            pages = self.client.get_paginator("list_parts")
            for page in pages.paginate(Bucket=self.bucket, Key=key, UploadId=upload_id):
                parts |= {part["PartNumber"]: part for part in page.get("Parts", [])}
        return parts

    def abort(self, key: str, upload_id: str) -> None:
        """Give up an upload; the store frees its parts."""
        with contextlib.suppress(botocore.exceptions.ClientError):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    def warn(self, text: str) -> None:
        """Something is unusual, and the work goes on."""
        logger.warning("%s: %s", self.store, text)
