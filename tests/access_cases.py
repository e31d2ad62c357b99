"""Served deployments for tests of `access`: a configuration of their own, and servers that a test directs."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from berth import services
from berth.access import write_access
from berth.parse import load_config
from berth.services import Instance, Service, endpoint_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.access_target import Target
    from berth.config import Config

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-of-the-served-7c1e"
MODEL = "berth/tiny-llama"


@dataclass
class Site:
    """A folder with a configuration, of whose platforms `local` is the one at hand."""

    path: Path
    access: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, path: Path, access: dict[str, Any], *, deployments: int = 1) -> Site:
        """Deployments a, b, ... of the tiny model."""
        shutil.copytree(ROOT / "config", path / "config")
        site = cls(path, access)
        config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        tiny = config["deployments"]["tiny-local"]
        config["deployments"] |= {"abcdef"[number]: dict(tiny) for number in range(deployments)}
        (path / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        site.configure(access)
        return site

    def configure(self, access: dict[str, Any]) -> None:
        """Set the section `access` of the platform."""
        file = self.path / "config/platforms/local.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"access": access}, sort_keys=False))

    def scratch(self, path: str, **more: Any) -> None:
        """Set the folder for what NGINX keeps while it runs, and further sections of the platform."""
        file = self.path / "config/platforms/local.yaml"
        platform = yaml.safe_load(file.read_text()) | more
        platform["paths"]["scratch"] = path
        file.write_text(yaml.safe_dump(platform, sort_keys=False))

    def config(self, deployment: str) -> Config:
        """The configuration as `--config deployment=...` makes it."""
        raw = yaml.safe_load((self.path / "config/config.yaml").read_text())
        return load_config(raw | {"deployment": deployment}, self.path)

    def key_file(self, name: str, key: str = KEY) -> Path:
        """The 0600 file with a deployment's key."""
        path = self.path / "keys" / name
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_text(key + "\n")
        path.chmod(0o600)
        return path

    def serve(self, name: str, port: int, *, key: str = KEY, **changes: Any) -> Service:
        """Write the state of a deployment whose server listens at a port of this machine, as `serve` does."""
        instance = Instance("t1", "1", "ready", host="node1", address="127.0.0.1", port=port)
        fields = {
            "deployment": name,
            "platform": "local",
            "scheduler": "local",
            "served_model": MODEL,
            "state": "ready",
            "key_file": str(self.key_file(name, key)),
            "instances": (instance,),
            "endpoint": endpoint_of(instance),
        }
        service = Service(**(fields | changes))
        services.write(self.path / "results", service)
        return service

    def written(self, deployment: str) -> Target:
        """What `access` writes for deployments."""
        return write_access(self.config(deployment), self.path)


class Backend:
    """A server on loopback that streams one token, and the second only when the test says so (`go_on`).

    With `certificate`, a folder with cert.pem and key.pem, it speaks HTTPS.
    """

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        self.seen: list[dict[str, str]] = []
        self.go_on = threading.Event()
        self.key = KEY
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.port = int(self.server.server_address[1])
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)


def _handler(backend: Backend) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def do_GET(self) -> None:
            backend.seen.append({"path": self.path, **self.headers})
            self.answer(200, {"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            backend.seen.append({"path": self.path, **self.headers})
            if self.headers["Authorization"] != f"Bearer {backend.key}":
                self.answer(401, {"error": "Unauthorized"})
            elif not body.get("stream"):
                choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
                self.answer(200, {"port": backend.port, "choices": [choice], "usage": {"completion_tokens": 1}})
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.chunk(b"data: first\n\n")
                if backend.go_on.wait(60):
                    self.chunk(b"data: second\n\n")
                self.chunk(b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextlib.contextmanager
def running(port: int = 0, certificate: Path | None = None) -> Iterator[Backend]:
    """A backend that answers for the block; nothing listens on its port afterwards."""
    backend = Backend(port, certificate)
    thread = threading.Thread(target=backend.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield backend
    finally:
        backend.go_on.set()
        backend.server.shutdown()
        backend.server.server_close()
        thread.join()
