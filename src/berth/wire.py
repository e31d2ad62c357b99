"""S3 requests for bytes alone: botocore signs, http.client sends, the kernel copies files into sockets.

Measured against the clients that it competes with in docs/data-plane.md. It carries no retries and knows no proxies.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import struct
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import botocore.utils

from berth.fsio import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from berth.engine import Body, Span
    from berth.s3 import Access

_TIMEOUT_S = 60.0
_SEND_BYTES = 1024 * 1024
_ANSWER_BYTES = 65_536


def through_proxy(url: str) -> bool:
    """Whether requests to this address go through a proxy, by the usual variables."""
    parts = urlsplit(url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")


@dataclass(frozen=True)
class Place:
    """Where the objects of a bucket are, and how requests for them are signed; made once and shared by sessions."""

    url: str
    access: Access
    tls: ssl.SSLContext | None = field(repr=False)

    @classmethod
    def of(cls, access: Access, bucket: str) -> Place:
        """The address that boto3 itself would use: path or virtual-host style, of the endpoint or of AWS."""
        signed = access.client.generate_presigned_url("head_bucket", Params={"Bucket": bucket}, ExpiresIn=60)
        url = signed.partition("?")[0].rstrip("/")
        bundle = os.environ.get("AWS_CA_BUNDLE") or None
        tls = ssl.create_default_context(cafile=bundle) if url.startswith("https:") else None
        return cls(url, access, tls)

    def signed(self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        """A prepared request of botocore. Not the body is signed, but the header with its checksum."""
        url = f"{self.url}/{botocore.utils.percent_encode(key, safe='/~')}"
        request = botocore.awsrequest.AWSRequest(method, url, headers=dict(headers), params=dict(query))
        if self.access.credentials is not None:
            _Signer(self.access.credentials, "s3", self.access.region).add_auth(request)
        return request.prepare()


class _Signer(botocore.auth.S3SigV4Auth):  # type: ignore[misc]
    def payload(self, request: Any) -> str:
        """What stands in the place of the body's SHA-256."""
        del request
        return "UNSIGNED-PAYLOAD"


class WireSession:
    """One connection, used by one thread, opened when it is first needed. See engine.Session."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._connection: http.client.HTTPConnection | None = None
        self._buffer = memoryview(bytearray(CHUNK_BYTES))

    def put(self, key: str, body: Body, metadata: Mapping[str, str], part: tuple[str, int] | None) -> str:
        """See engine.Session."""
        headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        name, value = body.checksum
        headers["x-amz-checksum-crc32c" if name == "crc32c" else "Content-MD5"] = value
        query = {} if part is None else {"uploadId": part[0], "partNumber": str(part[1])}
        operation = "PutObject" if part is None else "UploadPart"
        with self._closed_by_errors(), self._errors_of_the_way():
            connection = self._start("PUT", key, query, headers, body.size_bytes)
            try:
                self._send(connection, body)
            except OSError:
                # A store that refuses a request answers and hangs up while the body is still on its way.
                with contextlib.suppress(OSError, http.client.HTTPException):
                    self._answer(connection, operation).read()
                raise
            answer = self._answer(connection, operation)
            answer.read()
        etag = answer.headers.get("ETag")
        if not etag:
            raise botocore.exceptions.HTTPClientError(error=f"the answer to {operation} of {key} has no ETag")
        return etag

    def get(self, key: str, span: Span, etag: str | None, sink: Callable[[memoryview], None]) -> str:
        """See engine.Session."""
        asked = {"Range": span.header, "If-Match": etag}
        headers = {name: value for name, value in asked.items() if value is not None}
        with self._closed_by_errors():
            with self._errors_of_the_way():
                connection = self._start("GET", key, {}, headers, None)
                answer = self._answer(connection, "GetObject")
            span.check(answer.length, answer.headers.get("Content-Range"))
            left = span.size_bytes
            while left:
                with self._errors_of_the_way():
                    wanted = min(len(self._buffer), left)
                    count = self._receive(connection, answer, wanted, first=left == span.size_bytes)
                    if not count:
                        raise http.client.IncompleteRead(b"", left)
                left -= count
                sink(self._buffer[:count])
            with self._errors_of_the_way():
                answer.read()
        return answer.headers.get("ETag") or ""

    def close(self) -> None:
        """See engine.Session."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _start(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body_bytes: int | None
    ) -> http.client.HTTPConnection:
        request = self._place.signed(method, key, query, headers)
        parts = urlsplit(request.url)
        connection = self._connected(parts.hostname or "", parts.port)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() != "content-length":
                connection.putheader(name, value if isinstance(value, bytes) else str(value))
        if body_bytes is not None:
            connection.putheader("Content-Length", str(body_bytes))
        connection.endheaders()
        return connection

    def _connected(self, host: str, port: int | None) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._place.tls is None:
                connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
            else:
                connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=self._place.tls)
            self._connection = connection
            connection.connect()
            _wait_in_the_kernel(connection.sock)
        return self._connection

    def _send(self, connection: http.client.HTTPConnection, body: Body) -> None:
        at, end = body.offset, body.offset + body.size_bytes
        while at < end:
            count = min(_SEND_BYTES, end - at)
            body.moved(count)
            if self._place.tls is None:
                _sendfile(connection.sock, body.fd, at, count)
            else:
                connection.sock.sendall(_read(body.fd, at, count))
            at += count

    def _receive(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, wanted: int, *, first: bool
    ) -> int:
        """Fill the buffer from an answer's body; returns how many bytes came, 0 at its end.

        Python's own reader goes to the kernel, and takes its lock again, for each piece that has arrived: 2 GiB took
        7.9 s by it and 5.9 s without. It is asked for what came with the headers alone, which it holds.
        """
        if self._place.tls is not None:
            return answer.readinto(self._buffer[:wanted])
        if first:
            return answer.readinto(self._buffer[: min(wanted, len(answer.fp.peek(1)))])
        count = connection.sock.recv_into(self._buffer, wanted, socket.MSG_WAITALL)
        # What is left of it, by which the connection is free for the next request.
        answer.length = (answer.length or 0) - count
        return count

    def _answer(self, connection: http.client.HTTPConnection, operation: str) -> http.client.HTTPResponse:
        answer = connection.getresponse()
        if answer.status >= 300:
            content = answer.read(_ANSWER_BYTES)
            self.close()
            raise _client_error(answer, content, operation)
        return answer

    @contextlib.contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        """What is left of an answer or a request would be taken for part of the next one."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _errors_of_the_way(self) -> Iterator[None]:
        """Errors of sockets as those of botocore, so that they are none of the disk."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise botocore.exceptions.SSLError(endpoint_url=self._place.url, error=error) from error
        except (OSError, http.client.HTTPException) as error:
            raise botocore.exceptions.HTTPClientError(error=f"{type(error).__name__}: {error}") from error


def _wait_in_the_kernel(connection: socket.socket) -> None:
    """Let the kernel keep the timeouts: Python's own cost a poll before each call. A call that waited long fails."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit = struct.pack("ll", int(_TIMEOUT_S), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.settimeout(None)


def _sendfile(connection: socket.socket, fd: int, offset: int, size_bytes: int) -> None:
    """Send from a file without a copy through this process."""
    end = offset + size_bytes
    while offset < end:
        sent = os.sendfile(connection.fileno(), fd, offset, end - offset)
        if not sent:
            raise OSError("the file became shorter while it was sent")
        offset += sent


def _read(fd: int, offset: int, size_bytes: int) -> bytes:
    data = os.pread(fd, size_bytes, offset)
    if len(data) != size_bytes:
        raise OSError("the file became shorter while it was sent")
    return data


def _client_error(answer: http.client.HTTPResponse, content: bytes, operation: str) -> Exception:
    """An answer that is no success, as botocore has it."""
    found = {"Code": str(answer.status), "Message": answer.reason}
    with contextlib.suppress(ET.ParseError):
        # A reader of XML from a store that the user has named; entities are not expanded by this parser's defaults.
        for child in ET.fromstring(content) if re.search(rb"<Error", content) else ():  # noqa: S314
            if child.tag.rpartition("}")[2] in found and child.text:
                found[child.tag.rpartition("}")[2]] = child.text
    where = {"HTTPStatusCode": answer.status}
    made: Exception = botocore.exceptions.ClientError({"Error": found, "ResponseMetadata": where}, operation)
    return made
