"""What stands between a client and a hub in the tests: a proxy that cuts connections, a gate, a site's proxy."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass
class CuttingProxy:
    """A TCP proxy before the hub that ends a connection after so many bytes of answers.

    `cuts` connections are cut (None: every one); `reset` ends them with RST instead of FIN. `on_bytes` is told the
    number of bytes that all connections have passed so far.
    """

    target_port: int
    cut_after_bytes: int | None = None
    cuts: int | None = None
    reset: bool = False
    on_bytes: Callable[[int], None] | None = None
    passed_bytes: int = 0
    cut_count: int = 0
    connections: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def address(self) -> str:
        assert self._listener is not None
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                server = socket.create_connection(("127.0.0.1", self.target_port))
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _may_cut(self) -> bool:
        with self._lock:
            return self.cut_after_bytes is not None and (self.cuts is None or self.cut_count < self.cuts)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := server.recv(16384):
                if self._may_cut() and self.cut_after_bytes is not None and passed + len(data) > self.cut_after_bytes:
                    client.sendall(data[: self.cut_after_bytes - passed])
                    with self._lock:
                        self.cut_count += 1
                    if self.reset:
                        time.sleep(0.1)  # RST discards what the client has not read yet; let it read the beginning.
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                client.sendall(data)
                passed += len(data)
                with self._lock:
                    self.passed_bytes += len(data)
                    if self.on_bytes is not None:
                        self.on_bytes(self.passed_bytes)
        if not self.reset:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        client.close()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        while True:
            # Waiting inside recv would keep the socket open after the other thread closed it, and no RST would be sent.
            if not select.select([source], [], [], 0.05)[0]:
                continue
            data = source.recv(16384)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class _Forwarder(BaseHTTPRequestHandler):
    """Passes requests on to a hub; subclasses decide which."""

    hub = ""
    seen: list[str]

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""

    def forward(self, url: str) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(url, method=self.command)
        try:
            with opener.open(request, timeout=20) as answer:
                self.answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, dict(error.headers), error.read())

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                self.send_header(name, value)
        length = headers.get("content-length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def _serve(handler: type[_Forwarder]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def gated_hub(hub: str) -> Iterator[tuple[str, list[str]]]:
    """A MOCK of the gate, for olah knows no gated repositories: the listing comes from the real hub, as on
    huggingface.co, and every file is refused with the status and header that it documents.

    Yields the address and the list of Authorization headers that arrived.
    """  # noqa: D205 - one sentence that does not fit a line
    seen: list[str] = []

    class Gate(_Forwarder):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization") or "")
            if "/resolve/" not in self.path:
                self.forward(hub + self.path)
                return
            status = 403 if self.headers.get("Authorization") else 401
            self.answer(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}, b"")

        do_HEAD = do_GET  # noqa: N815

    with _serve(Gate) as address:
        yield address, seen


@contextlib.contextmanager
def http_proxy() -> Iterator[tuple[str, list[str]]]:
    """A plain HTTP forward proxy, as sites have it; yields its address and the list of URLs that it was asked for."""
    seen: list[str] = []

    class Forward(_Forwarder):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.forward(self.path)

        do_HEAD = do_GET  # noqa: N815

    with _serve(Forward) as address:
        yield address, seen
