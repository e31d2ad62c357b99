"""A client for any S3 endpoint: how to reach it, what to sign with, which checksums it takes."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
import botocore
import botocore.config
import botocore.exceptions
import botocore.loaders
import botocore.session

from berth.errors import BerthError
from berth.s3errors import CHANGE_KEYS, error_code, explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "SHA256",
    "Access",
    "Store",
    "environment_mode",
    "error_code",
    "explain",
    "probe_write",
    "read_object",
    "stored_sha256",
]

logger = logging.getLogger(__name__)

# The name of an object's metadata that has the SHA-256 of its content.
SHA256 = "sha256"

AddressingStyle = Literal["auto", "path", "virtual"]
ChecksumMode = Literal["when_supported", "when_required"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CHECKSUM_VARIABLES = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
_POOL = 32
_MODES: tuple[ChecksumMode, ...] = ("when_supported", "when_required")


@dataclass(frozen=True)
class Store:
    """One bucket of one S3 endpoint, and how to talk to it.

    Args:
        bucket: 3 to 63 characters.
        endpoint_url: http(s)://host[:port]; None is AWS itself.
        region: None lets boto3 find it, us-east-1 if nothing says otherwise.
        addressing_style: of boto3; most stores of sites need "path".
        credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, optionally AWS_SESSION_TOKEN; None uses boto3's chain.
        max_attempts: attempts per request, the first included.
        unsigned: requests carry no signature, for buckets that everybody may read.
    """

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: AddressingStyle = "auto"
    credentials: Mapping[str, str] | None = field(default=None, repr=False)
    max_attempts: int = 10
    unsigned: bool = False

    def __str__(self) -> str:
        """The endpoint and the bucket, for people."""
        return f"{self.endpoint_url or 'https://s3.amazonaws.com'} bucket {self.bucket}"

    def check(self) -> None:
        """Do nothing if name, endpoint and CA file can be right.

        Raises:
            BerthError: names the value, and what is allowed.
        """
        if not _BUCKET.fullmatch(self.bucket):
            raise BerthError(
                f"bucket {self.bucket!r}: a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens, "
                "with a letter or digit at both ends. Correct `bucket` in the platform file."
            )
        if self.endpoint_url is not None:
            try:
                parts = urlsplit(self.endpoint_url)
                host, _ = parts.hostname, parts.port
            except ValueError:
                host = None
            if host is None or parts.scheme not in {"http", "https"}:
                raise BerthError(f"endpoint_url {self.endpoint_url!r}: write http://HOST:PORT or https://HOST.")
            if parts.username or parts.password:
                raise BerthError(
                    f"endpoint_url of host {host}: credentials in an address end up in logs. {CHANGE_KEYS}"
                )
        bundle = os.environ.get("AWS_CA_BUNDLE")
        if bundle and not Path(bundle).exists():
            raise BerthError(f"AWS_CA_BUNDLE={bundle}: no such file. Correct or unset it.")

    @contextlib.contextmanager
    def client(self, mode: ChecksumMode) -> Iterator[Any]:
        """A boto3 client with one checksum mode; every error of S3 in the block becomes a BerthError.

        Raises:
            BerthError: a wrong value (see check), no credentials, or what the store answered.
        """
        with self.access(mode) as access:
            yield access.client

    @contextlib.contextmanager
    def access(self, mode: ChecksumMode) -> Iterator[Access]:
        """A client as of `client`, with what signs requests that it does not make itself."""
        self.check()
        given = self.credentials or {}
        with self.explained():
            core = botocore.session.get_session()
            core.register_component("data_loader", _loader())
            session = boto3.session.Session(
                botocore_session=core,
                aws_access_key_id=given.get("AWS_ACCESS_KEY_ID"),
                aws_secret_access_key=given.get("AWS_SECRET_ACCESS_KEY"),
                aws_session_token=given.get("AWS_SESSION_TOKEN"),
            )
            credentials = None if self.unsigned else session.get_credentials()
            if credentials is None and not self.unsigned:
                raise botocore.exceptions.NoCredentialsError
            config = botocore.config.Config(
                s3={"addressing_style": self.addressing_style},
                retries={"mode": "standard", "total_max_attempts": self.max_attempts},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=_POOL,
                request_checksum_calculation=mode,
                response_checksum_validation=mode,
                user_agent_extra="berth",
                signature_version=botocore.UNSIGNED if self.unsigned else None,
            )
            region = self.region or session.region_name or "us-east-1"
            with contextlib.closing(
                session.client("s3", endpoint_url=self.endpoint_url, region_name=region, config=config)
            ) as client:
                yield Access(client, credentials, region)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of boto3 in the block become a BerthError that names this store and a remedy."""
        try:
            yield
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
        ) as error:
            raise BerthError(f"{self}: {explain(error)}") from error


@dataclass(frozen=True)
class Access:
    """A boto3 client, and what it signs with: the credentials of botocore (None: nothing is signed) and the region."""

    client: Any
    credentials: Any = field(repr=False)
    region: str


@functools.cache
def _loader() -> Any:
    """boto3's description of S3, read once per process: it takes longer than many a request."""
    return botocore.loaders.create_loader()


def environment_mode() -> ChecksumMode | None:
    """The checksum mode that the user's environment asks for; None if it asks for nothing.

    Raises:
        BerthError: a value that is neither of the two.
    """
    asked = {name: value.lower() for name in _CHECKSUM_VARIABLES if (value := os.environ.get(name))}
    for name, value in asked.items():
        if value not in _MODES:
            raise BerthError(f"{name}={value}: allowed are {' and '.join(_MODES)}.")
    if not asked:
        return None
    return "when_required" if "when_required" in asked.values() else "when_supported"


def probe_write(store: Store, prefix: str) -> ChecksumMode:
    """The checksum mode with which a small object comes back as it was sent.

    Newer AWS SDKs add checksums that some stores refuse or, worse, keep as part of the object.

    Raises:
        BerthError: the store takes neither mode; the message is of the more lenient one.
    """
    asked = environment_mode()
    key, body = f"{prefix}.probe-{uuid.uuid4().hex}", b"berth " * 20
    for mode in (asked,) if asked else _MODES:
        last = asked is not None or mode == _MODES[-1]
        with store.client(mode) as client:
            try:
                client.put_object(Bucket=store.bucket, Key=key, Body=body)
                came_back = client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
                client.delete_object(Bucket=store.bucket, Key=key)
            except (botocore.exceptions.ClientError, botocore.exceptions.FlexibleChecksumError) as error:
                if last:
                    raise
                logger.info("%s does not take the checksums of mode %s (%s)", store, mode, error)
                continue
        if came_back == body:
            return mode
        if not last:
            logger.info("%s changes objects that are sent with checksums of mode %s", store, mode)
    raise BerthError(
        f"{store}: a small object came back changed with every checksum mode. This store, or a proxy before it, "
        "cannot be trusted with a model."
    )


def read_object(store: Store, key: str) -> tuple[bytes, ChecksumMode]:
    """A small object, and the checksum mode with which it could be read; needs no right to write.

    Raises:
        BerthError: what the store answered (error_code tells a missing object), or it cannot be used.
    """
    asked = environment_mode()
    mode: ChecksumMode = asked or "when_supported"
    with store.client(mode) as client:
        try:
            return client.get_object(Bucket=store.bucket, Key=key)["Body"].read(), mode
        except (botocore.exceptions.ClientError, botocore.exceptions.FlexibleChecksumError) as error:
            if asked or error_code(error) in {"NoSuchKey", "NoSuchBucket", "AccessDenied"}:
                raise
            logger.info("%s does not answer requests of mode %s (%s)", store, mode, error)
    with store.client("when_required") as client:
        return client.get_object(Bucket=store.bucket, Key=key)["Body"].read(), "when_required"


def stored_sha256(answer: Mapping[str, Any]) -> str:
    """What an answer about an object says in the metadata that Berth gave it, "" if nothing.

    Some stores (MinIO, `rclone serve s3`) begin the name with a capital letter: to HTTP that is the same.
    """
    return next((str(value) for name, value in answer["Metadata"].items() if name.lower() == SHA256), "")
