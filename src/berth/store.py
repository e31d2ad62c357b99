"""Models in an S3 store: push a model directory, stage it on a cluster, and never take half a model for a whole one.

Objects: `{prefix}/{path}` for each file of the manifest, its SHA-256 in the metadata, `{prefix}.objects.json` (see
objects.py), and `{prefix}.manifest.json`, written last. Whoever changes an object removes the manifest first, so a
manifest means that all objects are there.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import botocore.exceptions

from berth import bytes_engine, filelocks, objects, s3, staging
from berth.bandwidth import Limit
from berth.crew import Crew
from berth.disk import full_disk_error, human_bytes, is_disk_full, require_space
from berth.downloads import Download
from berth.errors import BerthError
from berth.fsio import sha256_text, write_json
from berth.manifest import Manifest, manifest_json, parse_manifest, read_manifest
from berth.moving import Moving, Progress
from berth.pushing import Push
from berth.retries import Retries
from berth.s3errors import MISSING, error_code
from berth.storeplan import counted, plan_push, select, told
from berth.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from berth.manifest import FileEntry

logger = logging.getLogger(__name__)

SCHEMA = 1
# For the first request: a wrong address should not take minutes.
_FIRST_ATTEMPTS = 3


def manifest_key(prefix: str) -> str:
    """The key of the manifest object of a model."""
    return f"{_clean(prefix)}.manifest.json"


def push_model(
    *,
    model_dir: Path,
    manifest_path: Path,
    bucket: str,
    prefix: str,
    receipt_path: Path,
    endpoint_url: str | None = None,
    region: str | None = None,
    addressing_style: s3.AddressingStyle = "auto",
    credentials: Mapping[str, str] | None = None,
    create_bucket: bool = True,
    max_attempts: int = 10,
    tuning: Tuning | None = None,
    delete_extra: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Upload the files of a manifest, verify them, write the manifest object last, and then the receipt.

    Objects whose size and stored SHA-256 are right already are skipped; one whose content another object of the model
    has is copied by the store. Files are verified as they are read. Of two processes that share the manifest's folder,
    one works and the other waits and finds it done.

    Args:
        model_dir: holds the files of the manifest.
        manifest_path: uploaded byte by byte.
        bucket: made if it is missing and `create_bucket` allows it.
        prefix: of the keys, such as ORG/NAME.
        receipt_path: JSON, written last; no credentials in it.
        endpoint_url: http(s)://host[:port]; None is AWS itself.
        region: None lets boto3 find it.
        addressing_style: of boto3; most stores of sites need "path".
        credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; None uses boto3's chain.
        create_bucket: whether a missing bucket is made.
        max_attempts: per request, the first included.
        tuning: how the bytes are moved.
        delete_extra: remove objects below the prefix that are not in the manifest.
        dry_run: change nothing, write no receipt.

    Returns:
        The receipt: schema, action, endpoint, bucket, prefix, manifest {key, sha256}, objects [{key, size, sha256,
        etag}], total_bytes; moved, copied, skipped, extra {objects, bytes}; sent_bytes, deleted, engine, checksum_mode,
        duration_s. Of a dry run: action "dry_run", moved, copied, skipped, extra, files (the paths to move).

    Raises:
        BerthError: a local file that differs from the manifest, or what the store answered, with a remedy.
    """
    started = time.monotonic()
    # Python's collector looked through all loaded modules again and again while the entries of 10,000 files were made.
    gc.freeze()
    tuning = tuning or Tuning()
    store = s3.Store(bucket, endpoint_url, region, addressing_style, credentials, max_attempts)
    prefix = _clean(prefix)
    manifest = read_manifest(manifest_path)
    manifest_bytes = manifest_path.read_bytes()
    place = sha256_text(f"{endpoint_url} {bucket} {prefix}")[:12]
    lock = manifest_path.with_name(f".{manifest_path.name}.{place}.lock")
    with filelocks.exclusive(lock, f"push of {prefix}"):
        first = replace(store, max_attempts=min(max_attempts, _FIRST_ATTEMPTS))
        with first.client("when_required") as client:
            found = objects.read_object(client, bucket, objects.index_key(prefix))
        if found is None:
            require_bucket(first, create=create_bucket and not dry_run)
        index = objects.parse_index(found)
        mode = s3.environment_mode() or index.checksum_mode
        if mode is None:
            mode = "when_required" if dry_run else s3.probe_write(store, prefix)
        with store.access(mode) as access:
            known = objects.known_objects(access.client, bucket, prefix, manifest, index)
            plan = plan_push(manifest, known)
            counts = {
                "moved": counted([entry.size_bytes for entry in plan.sends]),
                "copied": counted([entry.size_bytes for entry, _ in plan.copies]),
                "skipped": counted([found.size for found in plan.right.values()]),
                "extra": counted([found.size for found in plan.extra.values()]),
            }
            if dry_run:
                return {"action": "dry_run", **counts, "files": [entry.path for entry in plan.sends]}
            push = Push(access, store, prefix, mode, tuning)
            whole = not plan.sends and not plan.copies
            whole = whole and objects.read_object(access.client, bucket, manifest_key(prefix)) == manifest_bytes
            if not whole:
                push.delete([manifest_key(prefix)])
            copied, left = push.copy(plan)
            sent = push.send(model_dir, [*plan.sends, *left])
            have = {**plan.right, **copied, **sent}
            if not whole:
                have = push.listed_whole(manifest, have)
            deleted = [f"{prefix}/{path}" for path in plan.extra] if delete_extra else []
            push.delete(deleted)
            kept = {} if delete_extra else {path: found for path, found in plan.extra.items() if found.sha256}
            after = objects.Index(mode, {**kept, **have})
            if after != index:
                push.put(objects.index_key(prefix), objects.index_bytes(after))
            if not whole:
                push.put(manifest_key(prefix), manifest_bytes)
    receipt = _receipt("push", store, prefix, manifest, manifest_bytes)
    receipt |= {
        "objects": [
            {"key": f"{prefix}/{e.path}", "size": e.size_bytes, "sha256": e.sha256, "etag": have[e.path].etag}
            for e in manifest.files
        ],
        **counts,
        "sent_bytes": push.sent_bytes,
        "deleted": len(deleted),
        "engine": push.engine,
        "checksum_mode": mode,
        "duration_s": round(time.monotonic() - started, 3),
    }
    write_json(receipt_path, receipt, indent=None)
    logger.info("%s/%s is whole: %s", store, prefix, _counts_text(receipt))
    if plan.extra and not delete_extra:
        logger.info("%s/%s also has %s that are not in the manifest", store, prefix, told(counts["extra"]))
    return receipt


def stage_model(
    *,
    bucket: str,
    prefix: str,
    dest: Path,
    receipt_path: Path,
    manifest_path: Path | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    addressing_style: s3.AddressingStyle = "auto",
    credentials: Mapping[str, str] | None = None,
    verify_checksums: bool = False,
    max_attempts: int = 10,
    unsigned: bool = False,
    tuning: Tuning | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Download a model that was pushed whole; `dest` appears at once, with every file verified.

    Files go to `DEST.partial` first; an interrupted stage goes on there and downloads no verified file again, and no
    whole part of another. A `dest` that is right already is kept: its sizes are compared, or its checksums if asked
    for. Of two processes, one works and the other waits and finds it done.

    Args:
        bucket: where it was pushed.
        prefix: of the keys, such as ORG/NAME.
        dest: the model directory; on the file system of its parent.
        receipt_path: JSON, written last.
        manifest_path: the manifest expected; None takes the store's.
        endpoint_url: http(s)://host[:port]; None is AWS itself.
        region: None lets boto3 find it.
        addressing_style: of boto3; most stores of sites need "path".
        credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; None uses boto3's chain.
        verify_checksums: read a `dest` that is there already, and compare its SHA-256.
        max_attempts: per request, the first included.
        unsigned: the bucket is public, and requests carry no signature.
        tuning: how the bytes are moved.
        include: patterns of files to take; none takes all.
        exclude: patterns of files to leave.
        dry_run: change nothing, write no receipt.

    Returns:
        The receipt: as of push_model, with `dest` and `files` [{path, size, sha256}] in the place of objects, and
        `fetched_bytes`. Of a dry run: action "dry_run", moved, skipped, files (the paths to move).

    Raises:
        BerthError: no whole model in the store, another one than expected, a damaged object (named), no room, or what
            the store answered, with a remedy.
    """
    started = time.monotonic()
    gc.freeze()  # As in push_model.
    tuning = tuning or Tuning()
    store = s3.Store(bucket, endpoint_url, region, addressing_style, credentials, max_attempts, unsigned)
    prefix = _clean(prefix)
    dest = dest.absolute()
    pushed, mode = _pushed_manifest(replace(store, max_attempts=min(max_attempts, _FIRST_ATTEMPTS)), prefix)
    whole = _parse(pushed, f"{store}: {manifest_key(prefix)}")
    if manifest_path is not None and read_manifest(manifest_path) != whole:
        raise BerthError(
            f"{store}: {manifest_key(prefix)} is not the manifest {manifest_path}: the store has another revision of "
            "this model. Push the one you want, or correct the prefix."
        )
    manifest = select(whole, include, exclude)
    manifest_bytes = pushed if manifest is whole else json.dumps(manifest_json(manifest)).encode()
    if dry_run:
        return staging.would_move(dest, manifest)
    engine, fetched_bytes = "none", 0
    with filelocks.exclusive(dest.with_name(f".{dest.name}.lock"), f"staging of {dest}"), _disk_errors(dest):
        moved: list[FileEntry] = []
        if not staging.is_staged(dest, manifest, manifest_bytes, verify_checksums=verify_checksums):
            partial = staging.resume(dest, manifest, manifest_bytes, durable=tuning.durable)
            moved = [entry for entry in manifest.files if not (partial / entry.path).exists()]
            require_space(partial, _missing_bytes(partial, moved), f"Staging {prefix}")
            stop, progress = threading.Event(), Progress("Staged", sum(entry.size_bytes for entry in moved))
            with store.access(mode) as access:
                trial = bytes_engine.read_trial(manifest_key(prefix), pushed)
                retries, limit = Retries(max_attempts, stop), Limit(tuning.max_bandwidth_bytes_s)
                moving = Moving(
                    access.client, store, tuning.part_bytes, mode == "when_supported", retries, limit, progress
                )
                downloads = [
                    Download(moving, e, partial / e.path, f"{prefix}/{e.path}", durable=tuning.durable) for e in moved
                ]
                if downloads:
                    engine, connect = bytes_engine.connector(access, bucket, tuning.engine, trial)
                    Crew(connect, tuning.connections, stop).work(downloads)
            fetched_bytes = progress.transferred_bytes
            staging.appear(partial, dest, manifest_bytes)
    receipt = _receipt("stage", store, prefix, manifest, manifest_bytes)
    moved_paths = {entry.path for entry in moved}
    receipt |= {
        "dest": str(dest),
        "files": [{"path": e.path, "size": e.size_bytes, "sha256": e.sha256} for e in manifest.files],
        "moved": counted([entry.size_bytes for entry in moved]),
        "skipped": counted([e.size_bytes for e in manifest.files if e.path not in moved_paths]),
        "fetched_bytes": fetched_bytes,
        "engine": engine,
        "checksum_mode": mode,
        "duration_s": round(time.monotonic() - started, 3),
    }
    write_json(receipt_path, receipt, indent=None)
    logger.info("%s is whole: %s", dest, _counts_text(receipt))
    return receipt


def _missing_bytes(partial: Path, moved: Sequence[FileEntry]) -> int:
    """What the disk must still take: parts of files that are there already count as they lie there."""
    missing = 0
    for entry in moved:
        begun = partial / entry.path
        with contextlib.suppress(FileNotFoundError):
            missing -= min(entry.size_bytes, begun.with_name(f".{begun.name}.part").stat().st_blocks * 512)
        missing += entry.size_bytes
    return missing


def _clean(prefix: str) -> str:
    cleaned = prefix.strip("/")
    if not cleaned or any(part in {"", ".", ".."} for part in cleaned.split("/")):
        raise BerthError(f"prefix {prefix!r}: write the model's place in the bucket, such as `ORG/NAME`.")
    return cleaned


def require_bucket(store: s3.Store, *, create: bool) -> None:
    """Do nothing if the bucket is there or was made.

    Raises:
        BerthError: it is missing and `create` is False, or what the store answered.
    """
    # A listing, because the answer to HEAD has no body and so no reason.
    with store.client("when_required") as client:
        try:
            client.list_objects_v2(Bucket=store.bucket, MaxKeys=1)
        except botocore.exceptions.ClientError as error:
            if error_code(error) != "NoSuchBucket" or not create:
                raise
        else:
            return
        region = client.meta.region_name
        # AWS refuses us-east-1 as a location constraint and demands one everywhere else; other stores take none.
        on_aws = store.endpoint_url is None and region != "us-east-1"
        extra = {"CreateBucketConfiguration": {"LocationConstraint": region}} if on_aws else {}
        try:
            client.create_bucket(Bucket=store.bucket, **extra)
            logger.info("Made the bucket %s", store)
        except botocore.exceptions.ClientError as error:
            if error_code(error) != "BucketAlreadyOwnedByYou":
                raise


def _pushed_manifest(store: s3.Store, prefix: str) -> tuple[bytes, s3.ChecksumMode]:
    try:
        return s3.read_object(store, manifest_key(prefix))
    except BerthError as error:
        if error_code(error) in MISSING:
            raise BerthError(
                f"{store}: there is no {manifest_key(prefix)}, so {prefix} was not pushed, or not to the end. "
                "Push it (rule push_model); what is there already is not sent again."
            ) from error
        raise


def _parse(manifest_bytes: bytes, where: str) -> Manifest:
    try:
        return parse_manifest(json.loads(manifest_bytes), where)
    except ValueError as error:
        raise BerthError(
            f"{where} is no manifest of Berth ({error}). Push the model again (rule push_model)."
        ) from error


@contextlib.contextmanager
def _disk_errors(dest: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise full_disk_error(dest.parent, str(dest)) from error
        raise BerthError(
            f"{error.filename or dest}: {error.strerror or error}. Staging {dest} needs to write there."
        ) from error


def _receipt(action: str, store: s3.Store, prefix: str, manifest: Manifest, manifest_bytes: bytes) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "action": action,
        "endpoint": store.endpoint_url,
        "bucket": store.bucket,
        "prefix": prefix,
        "source": manifest.source,
        "manifest": {"key": manifest_key(prefix), "sha256": hashlib.sha256(manifest_bytes).hexdigest()},
        "total_bytes": manifest.total_bytes,
    }


def _counts_text(receipt: dict[str, Any]) -> str:
    over_network = receipt.get("sent_bytes", receipt.get("fetched_bytes", 0))
    copied = f"{told(receipt['copied'])} copied by the store, " if receipt.get("copied", {}).get("objects") else ""
    return (
        f"{told(receipt['moved'])} moved, {copied}{told(receipt['skipped'])} already there; "
        f"{human_bytes(over_network)} over the network, {receipt['duration_s']:.1f} s"
    )
