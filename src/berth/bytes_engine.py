"""Which engine moves the bytes of this push or stage."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import uuid
from typing import TYPE_CHECKING

import botocore.exceptions
from awscrt.checksums import crc32c

from berth.engine import Body, Boto3Session, EngineName, Session, Span, crc32c_text, md5_text
from berth.s3errors import explain
from berth.wire import Place, WireSession, through_proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from berth.s3 import Access

logger = logging.getLogger(__name__)

_FAILURES = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError)


def connector(
    access: Access, bucket: str, asked: EngineName, trial: Callable[[Session], bool]
) -> tuple[str, Callable[[], Session]]:
    """The engine's name, and what makes a session of it.

    `auto` takes the quick one, unless there is a proxy or `trial` (one small request that must come out right) fails.
    """
    place = None if asked == "boto3" else Place.of(access, bucket)
    if place is not None and asked == "auto":
        if through_proxy(place.url):
            place = None
        else:
            problem = _problem(place, trial)
            if problem:
                logger.warning("%s: the quick way does not work here, so boto3 moves the bytes: %s", place.url, problem)
                place = None
    if place is None:
        return "boto3", lambda: Boto3Session(access.client, bucket)
    found = place
    return "wire", lambda: WireSession(found)


def _problem(place: Place, trial: Callable[[Session], bool]) -> str:
    with contextlib.closing(WireSession(place)) as session:
        try:
            return "" if trial(session) else "a small object came back changed"
        except _FAILURES as error:
            return explain(error)


def read_trial(key: str, content: bytes) -> Callable[[Session], bool]:
    """Whether an object that is known is read right."""

    def trial(session: Session) -> bool:
        received: list[bytes] = []
        session.get(key, Span(0, len(content), len(content)), None, lambda chunk: received.append(bytes(chunk)))
        return b"".join(received) == content

    return trial


def write_trial(access: Access, bucket: str, prefix: str, *, with_crc: bool) -> Callable[[Session], bool]:
    """Whether a small object that is written is what boto3 reads; it is removed again."""
    key, content = f"{prefix}.probe-{uuid.uuid4().hex}", b"berth " * 20

    def trial(session: Session) -> bool:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            checksum = (
                crc32c_text(crc32c(content)) if with_crc else md5_text(hashlib.md5(content, usedforsecurity=False))
            )
            session.put(key, Body(file.fileno(), 0, len(content), checksum, lambda _: None), {}, None)
        came_back: bytes = access.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        access.client.delete_object(Bucket=bucket, Key=key)
        return came_back == content

    return trial
