"""Measured points in an S3 store, where clusters share them.

A point is two objects below `{prefix}/{experiment}/{platform}/{spec}/run{run}/`:

    c{N}.{requests SHA-256}.requests.json.gz      first
    c{N}.{record SHA-256}.{requests SHA-256}.json      last; "none" where a record has no requests file

Both digests stand in the record's key. So no object is ever written over by another, on any store, and one listing
tells what is there: a point is there when its record is. Each object has its SHA-256 in its metadata too.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from berth import s3
from berth.coordinates import LEVEL_PATTERN, parse_point
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Callable

NO_REQUESTS = "none"
_SHA = r"[0-9a-f]{64}"
_RECORD = re.compile(rf"(?P<key>.+/{LEVEL_PATTERN})\.(?P<record>{_SHA})\.(?P<requests>{_SHA}|{NO_REQUESTS})\.json")
_REQUESTS = re.compile(rf"(?P<key>.+/{LEVEL_PATTERN})\.(?P<requests>{_SHA})\.requests\.json\.gz")


@dataclass(frozen=True, order=True)
class Digests:
    """The SHA-256 of a record's file, and that of its requests file or "none"."""

    record: str
    requests: str

    def __str__(self) -> str:
        """For people."""
        return f"record {self.record}, requests {self.requests}"


@dataclass
class Contents:
    """What a store holds: the digests of each point by its key, and keys that are nothing of Berth's."""

    points: dict[str, set[Digests]] = field(default_factory=lambda: defaultdict(set))
    sizes: dict[str, int] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)


class Shelf:
    """The points below `prefix` of a store; use it inside a block of `Store.client` and `Store.explained`."""

    def __init__(self, store: s3.Store, prefix: str, client: Any) -> None:
        self.store = store
        self.prefix = prefix.strip("/")
        self._client = client

    def contents(self, wanted: Callable[[str], bool], below: str = "") -> Contents:
        """What is there of the points whose keys are wanted and begin with `below`: one listing."""
        found = Contents()
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.store.bucket, Prefix=f"{self.prefix}/{below}"
        )
        for page in pages:
            for item in page.get("Contents", []):
                self._sort(found, item["Key"].removeprefix(f"{self.prefix}/"), item["Size"], wanted)
        return found

    def _sort(self, found: Contents, name: str, size_bytes: int, wanted: Callable[[str], bool]) -> None:
        match = _RECORD.fullmatch(name) or _REQUESTS.fullmatch(name)
        if match is None or parse_point(match["key"]) is None:
            # Some programs leave an empty object where they see a folder.
            if not (name.endswith("/") and size_bytes == 0) and wanted(name):
                found.foreign.append(f"{self.prefix}/{name}")
            return
        if wanted(match["key"]):
            found.sizes[name] = size_bytes
            if "record" in match.groupdict():
                found.points[match["key"]].add(Digests(match["record"], match["requests"]))

    def put(self, key: str, digests: Digests, record: bytes, requests: bytes | None) -> None:
        """Add a point: its requests, and when they are there its record.

        Raises:
            BerthError: an object came back changed, or what the store answered.
        """
        if requests is not None:
            self._put(requests_object(key, digests), requests, digests.requests)
        self._put(record_object(key, digests), record, digests.record)

    def record(self, key: str, digests: Digests) -> bytes:
        """The bytes of a record.

        Raises:
            BerthError: they are not what was sent, or there are none, or what the store answered.
        """
        return self._get(record_object(key, digests), digests.record)

    def requests(self, key: str, digests: Digests) -> bytes | None:
        """The bytes of a requests file, None where the point has none; errors as of record()."""
        if digests.requests == NO_REQUESTS:
            return None
        return self._get(requests_object(key, digests), digests.requests)

    def name(self, path: str) -> str:
        """An object's name for people."""
        return f"{self.store}: {self.prefix}/{path}"

    def _put(self, path: str, body: bytes, sha256: str) -> None:
        with self.store.explained():
            self._client.put_object(
                Bucket=self.store.bucket, Key=f"{self.prefix}/{path}", Body=body, Metadata={"sha256": sha256}
            )
        self._get(path, sha256)

    def _get(self, path: str, sha256: str) -> bytes:
        try:
            with self.store.explained():
                answer = self._client.get_object(Bucket=self.store.bucket, Key=f"{self.prefix}/{path}")
                body: bytes = answer["Body"].read()
        except BerthError as error:
            if s3.error_code(error) in {"NoSuchKey", "404"}:
                raise BerthError(f"{self.name(path)} is missing, and a record names it. {_PUSH_AGAIN}") from error
            raise
        found = hashlib.sha256(body).hexdigest()
        kept = s3.stored_sha256(answer)
        if found != sha256 or kept != sha256:
            raise BerthError(
                f"{self.name(path)} has SHA-256 {found} ({kept or 'none'} in its metadata) instead of {sha256}: it "
                f"changed after it was sent. {_PUSH_AGAIN}"
            )
        return body


def record_object(key: str, digests: Digests) -> str:
    """The path of a record below the prefix."""
    return f"{key}.{digests.record}.{digests.requests}.json"


def requests_object(key: str, digests: Digests) -> str:
    """The path of a requests file below the prefix."""
    return f"{key}.{digests.requests}.requests.json.gz"


_PUSH_AGAIN = "Delete it there, and push the point again from where it was measured (rule push_results)."
