"""Single objects: what is there already, upload, check, download; with progress for people."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from berth import s3
from berth.disk import human_bytes
from berth.errors import BerthError
from berth.fsio import sha256_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from berth.manifest import FileEntry, Manifest

logger = logging.getLogger(__name__)

_SHA256 = "sha256"
# Memory: at most some ten parts of one file at a time.
_PART_BYTES = 16 * 1024 * 1024
_PARTS_AT_ONCE = 4
_PROGRESS_EVERY_S = 10.0
_MISSING = frozenset({"NoSuchKey", "404"})


@dataclass(frozen=True)
class Transfer:
    """Moves the files of one model between a directory and `prefix` of a store.

    Args:
        client: a boto3 client of the store.
        store: the store, for its bucket and for errors.
        prefix: of every key, without a slash at the end.
        max_bandwidth_bytes_s: limit; None is no limit.
    """

    client: Any
    store: s3.Store
    prefix: str
    max_bandwidth_bytes_s: int | None = None

    def key(self, entry: FileEntry) -> str:
        """The key of a file's object."""
        return f"{self.prefix}/{entry.path}"

    def present(self, manifest: Manifest) -> set[str]:
        """The paths whose objects are right already: one listing, then one HEAD for each object of the right size."""
        sizes: dict[str, int] = {}
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.store.bucket, Prefix=f"{self.prefix}/"
        )
        for page in pages:
            sizes |= {item["Key"]: item["Size"] for item in page.get("Contents", [])}
        same_size = [entry for entry in manifest.files if sizes.get(self.key(entry)) == entry.size_bytes]
        return {entry.path for entry in same_size if self._head(entry)["Metadata"].get(_SHA256) == entry.sha256}

    def verified(self, entry: FileEntry) -> dict[str, Any]:
        """The object of a file for the receipt: key, size, sha256, etag.

        Raises:
            BerthError: its size or its stored SHA-256 is not the file's.
        """
        head = self._head(entry)
        size, sha256 = head["ContentLength"], head["Metadata"].get(_SHA256)
        if (size, sha256) != (entry.size_bytes, entry.sha256):
            raise BerthError(
                f"{self.store}: {self.key(entry)} has {size} bytes and SHA-256 {sha256} after the upload instead of "
                f"{entry.size_bytes} and {entry.sha256}: does another process write there? Run again."
            )
        return {"key": self.key(entry), "size": size, "sha256": sha256, "etag": head["ETag"].strip('"')}

    def upload(self, model_dir: Path, entries: Iterable[FileEntry]) -> None:
        """Send files, each verified just before, with its SHA-256 in the object's metadata.

        Raises:
            BerthError: a file is missing or not what the manifest says.
        """
        entries = list(entries)
        progress = _Progress("Pushed", sum(entry.size_bytes for entry in entries))
        for entry in entries:
            path = model_dir / entry.path
            _require_right(path, entry)
            self.client.upload_file(
                str(path),
                self.store.bucket,
                self.key(entry),
                ExtraArgs={"Metadata": {_SHA256: entry.sha256}},
                Config=self._config(),
                Callback=progress,
            )

    def download(self, folder: Path, entries: Iterable[FileEntry]) -> None:
        """Fetch files; each gets its name in `folder` once it is on the disk with the right SHA-256.

        Raises:
            BerthError: an object is missing or not what the manifest says.
            OSError: the disk.
        """
        entries = list(entries)
        progress = _Progress("Staged", sum(entry.size_bytes for entry in entries))
        for entry in entries:
            path = folder / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.part")
            with temporary.open("wb") as handle:
                self._fetch(entry, handle, progress)
                handle.flush()
                os.fsync(handle.fileno())
            problem = _difference(temporary, entry)
            if problem:
                temporary.unlink()
                raise self._damaged(entry, problem)
            temporary.replace(path)

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, None if there is none."""
        try:
            body: bytes = self.client.get_object(Bucket=self.store.bucket, Key=key)["Body"].read()
        except botocore.exceptions.ClientError as error:
            if s3.error_code(error) in _MISSING:
                return None
            raise
        return body

    def put(self, key: str, body: bytes) -> None:
        """Write a small object.

        Raises:
            BerthError: it came back changed.
        """
        self.client.put_object(Bucket=self.store.bucket, Key=key, Body=body)
        if self.get(key) != body:
            raise BerthError(f"{self.store}: {key} came back changed: does another process write there? Run again.")

    def delete(self, key: str) -> None:
        """Remove an object, or do nothing if there is none."""
        self.client.delete_object(Bucket=self.store.bucket, Key=key)

    def _head(self, entry: FileEntry) -> dict[str, Any]:
        head: dict[str, Any] = self.client.head_object(Bucket=self.store.bucket, Key=self.key(entry))
        return head

    def _fetch(self, entry: FileEntry, handle: Any, progress: _Progress) -> None:
        try:
            self.client.download_fileobj(
                self.store.bucket, self.key(entry), handle, Config=self._config(), Callback=progress
            )
        except botocore.exceptions.ClientError as error:
            if s3.error_code(error) in _MISSING:
                raise self._damaged(entry, "is missing") from error
            raise

    def _damaged(self, entry: FileEntry, problem: str) -> BerthError:
        return BerthError(
            f"{self.store}: the object {self.key(entry)} {problem}, so it changed after the push. Delete it there and "
            "push the model again (rule push_model); files that are right are kept."
        )

    def _config(self) -> TransferConfig:
        return TransferConfig(
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            max_concurrency=_PARTS_AT_ONCE,
            max_bandwidth=self.max_bandwidth_bytes_s,
            # The CRT client fails against plain HTTP (AWS_IO_SOCKET_CLOSED).
            preferred_transfer_client="classic",
        )


def _difference(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file on the disk, None if nothing is."""
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"has {size} bytes instead of {entry.size_bytes}"
    sha256 = sha256_file(path)
    return None if sha256 == entry.sha256 else f"has SHA-256 {sha256} instead of {entry.sha256}"


def _require_right(path: Path, entry: FileEntry) -> None:
    try:
        problem = _difference(path, entry)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise BerthError(f"{path} {problem}, so it is not pushed. Get the model again (rule download_model).")


@dataclass
class _Progress:
    """Counts bytes from boto3's threads and says every few seconds how far it is."""

    verb: str
    total_bytes: int
    done_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    lock: Lock = field(default_factory=Lock)

    def __call__(self, count_bytes: int) -> None:
        """More bytes were moved; boto3 counts back when it sends a part again."""
        with self.lock:
            self.done_bytes += count_bytes
            now = time.monotonic()
            if now - self.said < _PROGRESS_EVERY_S:
                return
            self.said = now
            rate = self.done_bytes / (now - self.started)
        left_s = (self.total_bytes - self.done_bytes) / rate if rate > 0 else 0
        logger.info(
            "%s %s of %s, %s/s, %.0f s left",
            self.verb,
            human_bytes(self.done_bytes),
            human_bytes(self.total_bytes),
            human_bytes(int(rate)),
            left_s,
        )
