"""What a store has of a model, known from one listing and one small object that the last push left.

`{prefix}.objects.json` says which content each object had when it was pushed: {"schema": 1, "checksum_mode",
"objects": {path: {"size", "sha256", "etag"}}}. An object whose size and ETag in the listing are still those has still
that SHA-256, so that nothing is asked about single objects. Objects that it does not know are asked for their metadata.
"""

from __future__ import annotations

import http
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import botocore.exceptions
from botocore.compat import unquote_str

from berth.s3 import stored_sha256
from berth.s3errors import NOT_THERE, error_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth import s3
    from berth.manifest import Manifest

SCHEMA = 1
_ASK_AT_ONCE = 16
_BEFORE_PARSE = "before-parse.s3.ListObjectsV2"


@dataclass(frozen=True)
class StoredObject:
    """One object: bytes, SHA-256 in lower-case hexadecimal ("" if unknown), ETag without quotes."""

    size: int
    sha256: str
    etag: str


@dataclass(frozen=True)
class Index:
    """What the last push left: the checksum mode that the store took, and its objects by path."""

    checksum_mode: s3.ChecksumMode | None
    objects: Mapping[str, StoredObject]


def index_key(prefix: str) -> str:
    """The key of the index of a model; beside the files, as the manifest's."""
    return f"{prefix}.objects.json"


def parse_index(body: bytes | None) -> Index:
    """The index in an object; an empty one if there is none, or one that cannot be used, which only costs requests."""
    try:
        value = json.loads(body or b"{}")
        if value.get("schema") != SCHEMA:
            return Index(None, {})
        mode = value["checksum_mode"]
        return Index(mode, {path: StoredObject(**entry) for path, entry in value["objects"].items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Index(None, {})


def index_bytes(index: Index) -> bytes:
    """The object that parse_index reads."""
    objects = {path: asdict(entry) for path, entry in sorted(index.objects.items())}
    return json.dumps({"schema": SCHEMA, "checksum_mode": index.checksum_mode, "objects": objects}).encode()


def read_object(client: Any, bucket: str, key: str) -> bytes | None:
    """The bytes of a small object, None if there is none, perhaps because there is no bucket."""
    try:
        body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except botocore.exceptions.ClientError as error:
        if error_code(error) in NOT_THERE:
            return None
        raise
    return body


def list_objects(client: Any, bucket: str, prefix: str) -> dict[str, StoredObject]:
    """Every object below `prefix`/, by its path there, with no SHA-256."""
    found: dict[str, StoredObject] = {}

    def take(response_dict: dict[str, Any], **_: Any) -> None:
        for key, size, etag in _taken_contents(response_dict):
            found[key.removeprefix(f"{prefix}/")] = StoredObject(size, "", etag.strip('"'))

    # boto3 asks, tries again and turns the pages; its reader takes 20 times as long for the objects themselves.
    client.meta.events.register(_BEFORE_PARSE, take)
    try:
        for _ in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            pass
    finally:
        client.meta.events.unregister(_BEFORE_PARSE, take)
    return found


def _taken_contents(response: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Key, size and ETag of the objects in an answer to ListObjectsV2, which are taken out of its body.

    What is no such answer stays as it is: boto3 tells what is wrong with it.
    """
    if response["status_code"] != http.HTTPStatus.OK:
        return []
    try:
        # A reader of XML from a store that the user has named; entities are not expanded by this parser's defaults.
        root = ET.fromstring(response["body"])  # noqa: S314
    except ET.ParseError:
        return []
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    encoded = root.findtext(f"{space}EncodingType") == "url"
    taken = []
    for item in root.iter(f"{space}Contents"):
        key, size, etag = (item.findtext(f"{space}{name}", "") for name in ("Key", "Size", "ETag"))
        taken.append((unquote_str(key) if encoded else key, int(size), etag))
    root[:] = [child for child in root if child.tag != f"{space}Contents"]
    response["body"] = ET.tostring(root)
    return taken


def known_objects(client: Any, bucket: str, prefix: str, manifest: Manifest, index: Index) -> dict[str, StoredObject]:
    """What is below `prefix`/, with each SHA-256 that the index or the object itself tells.

    Only objects of the manifest whose size is right and whom the index does not know are asked, several at a time.
    """
    listed = list_objects(client, bucket, prefix)
    known = {}
    for path, entry in listed.items():
        recorded = index.objects.get(path)
        same = recorded is not None and (recorded.size, recorded.etag) == (entry.size, entry.etag)
        known[path] = recorded if same and recorded is not None else entry
    doubtful = [e.path for e in manifest.files if (o := known.get(e.path)) and not o.sha256 and o.size == e.size_bytes]

    return known | ask_objects(client, bucket, prefix, doubtful)


def ask_objects(client: Any, bucket: str, prefix: str, paths: Sequence[str]) -> dict[str, StoredObject]:
    """What each of some objects says of itself, several at a time."""

    def ask(path: str) -> StoredObject:
        head = client.head_object(Bucket=bucket, Key=f"{prefix}/{path}")
        return StoredObject(head["ContentLength"], stored_sha256(head), head["ETag"].strip('"'))

    with ThreadPoolExecutor(_ASK_AT_ONCE) as pool:
        return dict(zip(paths, pool.map(ask, paths), strict=True))
