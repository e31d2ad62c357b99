"""A real hub server (olah, PyPI) on loopback, with real git repositories behind it, and proxies that break things."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import filelock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VERSION = "0.5.4"
LOCK = Path(__file__).parents[1] / "locks" / "olah.lock"
_PIP_TIMEOUT_S = 600
_START_TIMEOUT_S = 60


class OlahMissingError(Exception):
    """Why there is no hub server here."""


def olah_python() -> Path:
    """The Python of olah's own environment, which is built once in the cache and then reused.

    The cache is $BERTH_CACHE or ~/.cache/berth. Raises OlahMissingError where pip cannot build it.
    """
    cache = Path(os.environ.get("BERTH_CACHE") or Path.home() / ".cache" / "berth")
    root = cache / f"olah-{VERSION}"
    python, marker = root / "bin" / "python", root / ".berth-lock-sha256"
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"olah-{VERSION}.lock"):
        if marker.exists() and marker.read_text() == wanted and python.exists():
            return python
        shutil.rmtree(root, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(root)], check=True, capture_output=True, text=True)
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(LOCK)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_PIP_TIMEOUT_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            shutil.rmtree(root, ignore_errors=True)
            detail = str(error.stderr or error).strip().splitlines()[-1:]
            raise OlahMissingError(f"pip could not install olah {VERSION} (tests/locks/olah.lock): {detail}") from error
        marker.write_text(wanted)
        return python


def git(folder: Path, *arguments: str) -> str:
    """The output of git, untouched by the user's configuration, with a fixed author and date."""
    fixed = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_DATE": "2025-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2025-01-01T00:00:00Z",
    }
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | fixed).stdout.strip()


def lfs_object(repo: Path, sha256: str) -> Path:
    """Where git LFS keeps an object in a clone."""
    return repo / ".git" / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256


def make_repo(repo: Path, files: Mapping[str, bytes], lfs: Mapping[str, bytes]) -> str:
    """Make a git clone as a hub has it (LFS files as pointers, their content beside) and return its commit."""
    repo.mkdir(parents=True)
    git(repo, "init", "-q")
    pointers = {}
    for path, content in lfs.items():
        sha256 = hashlib.sha256(content).hexdigest()
        target = lfs_object(repo, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
        pointers[path] = pointer.encode()
    for path, content in {**files, **pointers}.items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_bytes(content)
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "files")
    return git(repo, "rev-parse", "HEAD")


def tamper_blob(repo: Path, path: str) -> None:
    """Change one byte of a committed file inside git's own object, which keeps its name and its size."""
    blob = git(repo, "rev-parse", f"HEAD:{path}")
    target = repo / ".git" / "objects" / blob[:2] / blob[2:]
    raw = bytearray(zlib.decompress(target.read_bytes()))
    raw[-1] ^= 1
    target.chmod(0o644)
    target.write_bytes(zlib.compress(bytes(raw)))


def tamper_lfs(repo: Path, sha256: str) -> None:
    """Change one byte of an LFS object, which keeps its name and its size."""
    raw = bytearray(lfs_object(repo, sha256).read_bytes())
    raw[len(raw) // 2] ^= 1
    lfs_object(repo, sha256).write_bytes(bytes(raw))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def olah(python: Path, mirrors: Path, work: Path, *, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """A running olah that serves mirrors/{models,datasets}/ORG/NAME; yields its address."""
    port = free_port()
    work.mkdir(parents=True, exist_ok=True)
    certificate = f'ssl-key = "{tls[0]}"\nssl-cert = "{tls[1]}"\n' if tls else ""
    (work / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{work / "cache"}"\n'
        f'mirrors-path = ["{mirrors}"]\n{certificate}[accessibility]\noffline = true\n'
    )
    command = [str(python), "-m", "olah.server", "--config", "olah.toml", "--log-path", str(work / "logs")]
    with (work / "stdout").open("wb") as log:
        server = subprocess.Popen(command, cwd=work, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"olah did not start:\n{(work / 'stdout').read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


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
