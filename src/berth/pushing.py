"""Files into a store: what is missing there is copied by the store or sent, and then everything is looked at again."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from berth import bytes_engine, objects
from berth.bandwidth import Limit
from berth.crew import Crew
from berth.errors import BerthError
from berth.moving import Moving, Progress
from berth.objects import StoredObject
from berth.retries import Retries
from berth.s3 import SHA256
from berth.s3errors import error_code
from berth.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from berth.manifest import FileEntry, Manifest
    from berth.s3 import Access, ChecksumMode, Store
    from berth.storeplan import PushPlan
    from berth.tuning import Tuning

logger = logging.getLogger(__name__)

_DELETE_AT_ONCE = 8
_GONE = frozenset({"PreconditionFailed", "NoSuchKey", "404"})


class Push:
    """Changes the objects below `prefix`/ of a store.

    Args:
        access: to the store.
        store: the store.
        prefix: of every key, without a slash at the end.
        mode: which checksums the store takes.
        tuning: how.
    """

    def __init__(self, access: Access, store: Store, prefix: str, mode: ChecksumMode, tuning: Tuning) -> None:
        self._access, self._store, self._prefix, self._tuning = access, store, prefix, tuning
        self._client, self._bucket = access.client, store.bucket
        self._with_crc = mode == "when_supported"
        self.engine = "none"
        self.sent_bytes = 0

    def copy(self, plan: PushPlan) -> tuple[dict[str, StoredObject], list[FileEntry]]:
        """Let the store copy what it has under another name; the new objects, and what must be sent after all."""
        made, left = {}, []
        for entry, source in plan.copies:
            etag = (plan.right.get(source) or plan.extra[source]).etag
            try:
                self._client.copy(
                    {"Bucket": self._bucket, "Key": f"{self._prefix}/{source}"},
                    self._bucket,
                    f"{self._prefix}/{entry.path}",
                    ExtraArgs={
                        "Metadata": {SHA256: entry.sha256},
                        "MetadataDirective": "REPLACE",
                        "CopySourceIfMatch": f'"{etag}"',
                    },
                    Config=TransferConfig(preferred_transfer_client="classic"),
                )
            except botocore.exceptions.ClientError as error:
                if error_code(error) not in _GONE:
                    raise
                left.append(entry)
                continue
            head = self._client.head_object(Bucket=self._bucket, Key=f"{self._prefix}/{entry.path}")
            made[entry.path] = StoredObject(head["ContentLength"], entry.sha256, head["ETag"].strip('"'))
        return made, left

    def send(self, model_dir: Path, entries: list[FileEntry]) -> dict[str, StoredObject]:
        """Send files; the objects as the store has them. An upload that an earlier process began goes on.

        Raises:
            BerthError: a file is missing or not what the manifest says.
        """
        begun = self._begun_uploads()
        stop = threading.Event()
        progress = Progress("Pushed", sum(entry.size_bytes for entry in entries))
        moving = Moving(
            self._client,
            self._store,
            self._tuning.part_bytes,
            self._with_crc,
            Retries(self._store.max_attempts, stop),
            Limit(self._tuning.max_bandwidth_bytes_s),
            progress,
        )
        uploads = [
            Upload(moving, entry, model_dir / entry.path, key, tuple(begun.get(key, {})))
            for entry in entries
            for key in [f"{self._prefix}/{entry.path}"]
        ]
        if uploads:
            trial = bytes_engine.write_trial(self._access, self._bucket, self._prefix, with_crc=self._with_crc)
            self.engine, connect = bytes_engine.connector(self._access, self._bucket, self._tuning.engine, trial)
            Crew(connect, self._tuning.connections, stop).work(uploads)
        self._abort_abandoned(moving, begun)
        self.sent_bytes = progress.transferred_bytes
        return {u.entry.path: StoredObject(u.entry.size_bytes, u.entry.sha256, u.etag) for u in uploads}

    def listed_whole(self, manifest: Manifest, sent: Mapping[str, StoredObject]) -> dict[str, StoredObject]:
        """The objects of a manifest as a listing has them, each of which is what was sent.

        An object that is listed with another ETag than it was sent with is asked: some stores (`rclone serve s3`) list
        an object of several parts with another than they answered.

        Raises:
            BerthError: names the first object that is missing or another one.
        """
        listed = objects.list_objects(self._client, self._bucket, self._prefix)
        whole = {entry.path: sent[entry.path] for entry in manifest.files}
        other = [path for path, wanted in whole.items() if path in listed and listed[path].etag != wanted.etag]
        for path, told in objects.ask_objects(self._client, self._bucket, self._prefix, other).items():
            if told == replace(whole[path], etag=listed[path].etag):
                whole[path] = told
        for path, wanted in whole.items():
            found = listed.get(path)
            if found is None or (found.size, found.etag) != (wanted.size, wanted.etag):
                raise BerthError(
                    f"{self._store}: {self._prefix}/{path} is {found and (found.size, found.etag)} after the "
                    f"upload instead of {(wanted.size, wanted.etag)} (bytes, ETag): does another process write there? "
                    "Run again."
                )
        return whole

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, or do nothing about those that are not there."""
        # One by one: DeleteObjects always carries a checksum, which some stores refuse.
        with ThreadPoolExecutor(_DELETE_AT_ONCE) as pool:
            list(pool.map(lambda key: self._client.delete_object(Bucket=self._bucket, Key=key), keys))

    def put(self, key: str, body: bytes) -> None:
        """Write a small object.

        Raises:
            BerthError: it came back changed.
        """
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body)
        if objects.read_object(self._client, self._bucket, key) != body:
            raise BerthError(f"{self._store}: {key} came back changed: does another process write there? Run again.")

    def _begun_uploads(self) -> dict[str, dict[str, dt.datetime]]:
        """Uploads that were begun and neither completed nor given up: by key and id, when."""
        found: dict[str, dict[str, dt.datetime]] = {}
        try:
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/"):
                for upload in page.get("Uploads", []):
                    found.setdefault(upload["Key"], {})[upload["UploadId"]] = upload["Initiated"]
        except botocore.exceptions.ClientError as error:
            logger.info("%s does not list unfinished uploads, so none goes on: %s", self._store, error)
        return found

    def _abort_abandoned(self, moving: Moving, begun: Mapping[str, Mapping[str, dt.datetime]]) -> None:
        """Give up uploads below the prefix that no push goes on with. Young ones may be another machine's."""
        latest = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=self._tuning.abandoned_after_s)
        for key, uploads in begun.items():
            for upload_id, initiated in uploads.items():
                if initiated <= latest:
                    moving.abort(key, upload_id)
                    logger.info("%s: gave up an upload of %s that nobody went on with", self._store, key)
