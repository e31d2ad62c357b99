"""A proxy before a real S3 server that misbehaves as it is told: the faults of networks and of busy stores."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

_DROPPED = {"transfer-encoding", "connection", "content-length"}


@dataclass
class Exchange:
    """A request and, once the store has answered, what it said; a fault may change the answer."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    # What the client is told that the answer's length is, and where the connection is cut.
    said_length: int | None = None
    cut_after: int | None = None

    def fail(self, status: int, code: str) -> None:
        """Answer with an error of S3."""
        self.status, self.answer_headers = status, {}
        self.answer = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()


@dataclass
class Faults:
    """What goes wrong: `before` the store is asked (a status set there is the answer), and `after` it has answered."""

    upstream: str
    before: Callable[[Exchange], None] = lambda _: None
    after: Callable[[Exchange], None] = lambda _: None
    seen: list[Exchange] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, text: str = "") -> int:
        """How many requests there were."""
        return sum(1 for exchange in self.seen if exchange.method == method and text in exchange.path)


class _Handler(http.server.BaseHTTPRequestHandler):
    faults: Faults
    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        faults = self.faults
        body = self.body()
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        with faults.lock:
            exchange = Exchange(len(faults.seen) + 1, self.command, self.path, headers, body)
            faults.seen.append(exchange)
        faults.before(exchange)
        if not exchange.status:
            self.ask(exchange)
            faults.after(exchange)
        exchange.body = b""
        try:
            self.give(exchange)
        finally:
            exchange.answer = b""

    def body(self) -> bytes:
        """Of the request; over TLS boto3 sends it in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def ask(self, exchange: Exchange) -> None:
        connection = http.client.HTTPConnection(self.faults.upstream, timeout=30)
        try:
            connection.request(exchange.method, exchange.path, exchange.body, exchange.headers)
            response = connection.getresponse()
            exchange.status, exchange.answer = response.status, response.read()
            exchange.answer_headers = {k: v for k, v in response.getheaders() if k.lower() not in _DROPPED}
            if exchange.method == "HEAD":
                exchange.said_length = int(response.getheader("Content-Length") or 0)
        except OSError:
            # The server is away: the client sees what it would see without a proxy.
            exchange.cut_after = 0
        finally:
            connection.close()

    def give(self, exchange: Exchange) -> None:
        cut = exchange.cut_after
        if cut == 0:
            self.reset()
            return
        self.send_response(exchange.status)
        for name, value in exchange.answer_headers.items():
            self.send_header(name, value)
        length = len(exchange.answer) if exchange.said_length is None else exchange.said_length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(exchange.answer[:cut])
        if cut is not None:
            self.reset()

    def reset(self) -> None:
        """End the connection with RST, as a failing network does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the tests."""


@contextlib.contextmanager
def proxy(
    endpoint_url: str,
    before: Callable[[Exchange], None] = lambda _: None,
    after: Callable[[Exchange], None] = lambda _: None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, Faults]]:
    """A proxy before `endpoint_url`; its own address, and what it saw. With `tls` it speaks HTTPS."""
    faults = Faults(endpoint_url.removeprefix("http://"), before, after)
    handler = type("Handler", (_Handler,), {"faults": faults})
    with _Server(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", faults
        finally:
            server.shutdown()
            thread.join()
