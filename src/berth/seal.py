"""The SHA-256 that a point record carries of itself and of its requests file, so that a changed byte is seen later.

The record's own digest is that of its file with this digest as 64 zeros. Records that were written before it existed
carry none; nothing can be said of them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.fsio import json_text, sha256_text

if TYPE_CHECKING:
    from collections.abc import Mapping

BLANK = "0" * 64
_SEAL = re.compile(rb'"record_sha256": "([0-9a-f]{64})"')


def sealed_text(record: Mapping[str, Any]) -> str:
    """The text of a record that has `custody`, with its own digest in it."""
    custody = {**record["custody"], "record_sha256": BLANK}
    text = json_text({**record, "custody": custody})
    before, _, after = text.rpartition(f'"record_sha256": "{BLANK}"')
    return f'{before}"record_sha256": "{sha256_text(text)}"{after}'


def has_seal(record: Mapping[str, Any]) -> bool:
    """Whether the record carries digests of itself and of its requests file."""
    return bool(record.get("custody"))


def check_record(where: str, data: bytes) -> None:
    """Do nothing if the bytes of a sealed record are those that were written.

    Raises:
        BerthError: they are not; `where` names them.
    """
    found = list(_SEAL.finditer(data))
    if not found:
        raise BerthError(f"{where}: it has no digest of itself in `custody`, so it was changed. {_COPY_AGAIN}")
    start, end = found[-1].span(1)
    digest = hashlib.sha256(data[:start] + BLANK.encode() + data[end:]).hexdigest()
    if digest != data[start:end].decode():
        raise BerthError(
            f"{where}: changed after it was written: it says SHA-256 {data[start:end].decode()} of itself, and has "
            f"{digest}. {_COPY_AGAIN}"
        )


def check_requests(where: str, record: Mapping[str, Any], requests_sha256: str | None) -> None:
    """Do nothing if a sealed record names this digest of its requests file, None where there is no such file.

    Raises:
        BerthError: it names another; `where` names the requests file.
    """
    expected = record["custody"]["requests_sha256"]
    if requests_sha256 != expected:
        raise BerthError(
            f"{where}: changed after it was written: its record says SHA-256 {expected}, and it has "
            f"{requests_sha256}. {_COPY_AGAIN}"
        )


_COPY_AGAIN = (
    "Copy record and requests file again from where they are right, or delete both to measure the point again."
)
