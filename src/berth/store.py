"""Models in an S3 store: push a model directory, stage it on a cluster, and never take half a model for a whole one.

Objects: `{prefix}/{path}` for each file of the manifest, its SHA-256 in the metadata, and `{prefix}.manifest.json`,
written last. Whoever changes an object removes the manifest first, so a manifest means that all objects are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions

from berth import filelocks, s3, staging
from berth.disk import full_disk_error, human_bytes, is_disk_full, require_space
from berth.errors import BerthError
from berth.fsio import write_json
from berth.manifest import FileEntry, Manifest, read_manifest
from berth.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger(__name__)

SCHEMA = 1


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
    max_attempts: int = 5,
    max_bandwidth_bytes_s: int | None = None,
) -> dict[str, Any]:
    """Upload the files of a manifest, verify them, write the manifest object last, and then the receipt.

    Objects whose size and stored SHA-256 are right already are skipped. Files are verified before they are sent.

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
        max_bandwidth_bytes_s: limit of the upload; None is no limit.

    Returns:
        The receipt: schema, action, endpoint, bucket, prefix, manifest {key, sha256}, objects [{key, size, sha256,
        etag}], total_bytes, moved and skipped {objects, bytes}, checksum_mode, duration_s.

    Raises:
        BerthError: a local file that differs from the manifest, or what the store answered, with a remedy.
    """
    started = time.monotonic()
    store = s3.Store(bucket, endpoint_url, region, addressing_style, credentials, max_attempts)
    prefix = _clean(prefix)
    manifest = read_manifest(manifest_path)
    manifest_bytes = manifest_path.read_bytes()
    require_bucket(store, create=create_bucket)
    mode = s3.probe_write(store, prefix)
    with store.client(mode) as client:
        transfer = Transfer(client, store, prefix, max_bandwidth_bytes_s)
        present = transfer.present(manifest)
        moved = [entry for entry in manifest.files if entry.path not in present]
        whole = not moved and transfer.get(manifest_key(prefix)) == manifest_bytes
        if not whole:
            transfer.delete(manifest_key(prefix))
        transfer.upload(model_dir, moved)
        objects = [transfer.verified(entry) for entry in manifest.files]
        if not whole:
            transfer.put(manifest_key(prefix), manifest_bytes)
    receipt = _receipt("push", store, prefix, manifest, manifest_bytes)
    receipt |= {"objects": objects, **_counts(manifest, moved), "checksum_mode": mode}
    receipt["duration_s"] = round(time.monotonic() - started, 3)
    write_json(receipt_path, receipt)
    logger.info("%s/%s is whole: %s", store, prefix, _counts_text(receipt))
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
    max_attempts: int = 5,
    max_bandwidth_bytes_s: int | None = None,
) -> dict[str, Any]:
    """Download a model that was pushed whole; `dest` appears at once, with every file verified.

    Files go to `DEST.partial` first; an interrupted stage goes on there and downloads no verified file again. A `dest`
    that is right already is kept: its sizes are compared, or its checksums if asked for. Of two processes, one works
    and the other waits and finds it done.

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
        max_bandwidth_bytes_s: limit of the download; None is no limit.

    Returns:
        The receipt: as of push_model, with `dest` and `files` [{path, size, sha256}] in the place of objects.

    Raises:
        BerthError: no whole model in the store, another one than expected, a damaged object (named), no room, or what
            the store answered, with a remedy.
    """
    started = time.monotonic()
    store = s3.Store(bucket, endpoint_url, region, addressing_style, credentials, max_attempts)
    prefix = _clean(prefix)
    dest = dest.absolute()
    manifest_bytes, mode = _pushed_manifest(store, prefix)
    manifest = _parse(manifest_bytes)
    if manifest_path is not None and read_manifest(manifest_path) != manifest:
        raise BerthError(
            f"{store}: {manifest_key(prefix)} is not the manifest {manifest_path}: the store has another revision of "
            "this model. Push the one you want, or correct the prefix."
        )
    with filelocks.exclusive(dest.with_name(f".{dest.name}.lock"), f"staging of {dest}"), _disk_errors(dest):
        moved: list[FileEntry] = []
        if not staging.is_staged(dest, manifest, manifest_bytes, verify_checksums=verify_checksums):
            partial = staging.resume(dest, manifest, manifest_bytes)
            moved = [entry for entry in manifest.files if not (partial / entry.path).exists()]
            require_space(partial, sum(entry.size_bytes for entry in moved), f"Staging {prefix}")
            with store.client(mode) as client:
                Transfer(client, store, prefix, max_bandwidth_bytes_s).download(partial, moved)
            staging.appear(partial, dest, manifest_bytes)
    receipt = _receipt("stage", store, prefix, manifest, manifest_bytes)
    receipt |= {
        "dest": str(dest),
        "files": [{"path": e.path, "size": e.size_bytes, "sha256": e.sha256} for e in manifest.files],
        **_counts(manifest, moved),
        "checksum_mode": mode,
        "duration_s": round(time.monotonic() - started, 3),
    }
    write_json(receipt_path, receipt)
    logger.info("%s is whole: %s", dest, _counts_text(receipt))
    return receipt


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
            if s3.error_code(error) != "NoSuchBucket" or not create:
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
            if s3.error_code(error) != "BucketAlreadyOwnedByYou":
                raise


def _pushed_manifest(store: s3.Store, prefix: str) -> tuple[bytes, s3.ChecksumMode]:
    try:
        return s3.read_object(store, manifest_key(prefix))
    except BerthError as error:
        if s3.error_code(error) in {"NoSuchKey", "404"}:
            raise BerthError(
                f"{store}: there is no {manifest_key(prefix)}, so {prefix} was not pushed, or not to the end. "
                "Push it (rule push_model); what is there already is not sent again."
            ) from error
        raise


def _parse(manifest_bytes: bytes) -> Manifest:
    with tempfile.TemporaryDirectory(prefix="berth-") as folder:
        path = Path(folder) / "manifest.json"
        path.write_bytes(manifest_bytes)
        return read_manifest(path)


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


def _counts(manifest: Manifest, moved: list[FileEntry]) -> dict[str, Any]:
    moved_bytes = sum(entry.size_bytes for entry in moved)
    return {
        "moved": {"objects": len(moved), "bytes": moved_bytes},
        "skipped": {"objects": len(manifest.files) - len(moved), "bytes": manifest.total_bytes - moved_bytes},
    }


def _counts_text(receipt: dict[str, Any]) -> str:
    moved, skipped = receipt["moved"], receipt["skipped"]
    return (
        f"{moved['objects']} files moved ({human_bytes(moved['bytes'])}), {skipped['objects']} already there "
        f"({human_bytes(skipped['bytes'])}), {receipt['duration_s']:.1f} s"
    )
