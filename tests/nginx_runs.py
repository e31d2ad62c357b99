"""A real NGINX with the files that `access` writes, started and asked by tests."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from access_cases import KEY, MODEL, Site

from berth.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from berth.access_target import Target

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None or shutil.which("openssl") is None,
    reason="needs nginx and openssl: on Debian apt-get install nginx-light openssl (tools/install-test-packages.sh)",
)


def make_certificate(folder: Path) -> Path:
    """The folder, with a certificate for localhost that signs itself."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    argv += ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    return folder


def site(tmp_path: Path, certificate: Path | None = None, **more: Any) -> Site:
    """A site whose NGINX listens on a free port of loopback, with TLS where there is a certificate."""
    nginx = {"name": "localhost", "port": free_port("127.0.0.1", 20000, 29999), "bind": "127.0.0.1"}
    if certificate:
        files = {"certificate": "cert.pem", "key": "key.pem", "ca_file": "cert.pem"}
        nginx |= {name: str(certificate / file) for name, file in files.items()}
    return Site.create(tmp_path / "site", {"nginx": nginx}, **more)


def script(target: Target, word: str) -> None:
    """Run nginx.sh as a person does."""
    # Not captured: NGINX keeps what it inherits open.
    with (target.folder / "nginx.log").open("ab") as log:
        done = subprocess.run(["bash", str(target.folder / "nginx.sh"), word], stdout=log, stderr=log, check=False)
    assert done.returncode == 0, (target.folder / "nginx.log").read_text()


@contextmanager
def proxied(target: Target) -> Iterator[int]:
    """NGINX as nginx.sh starts it, for the block; its port."""
    script(target, "test")
    script(target, "start")
    pid = int((target.run_dir / "nginx.pid").read_text())
    try:
        yield int(json.loads((target.folder / "access.json").read_text())["port"])
    finally:
        script(target, "stop")
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def until(condition: Callable[[], Any]) -> None:
    """Wait for what must happen; a test that waits in vain fails by pytest's time limit."""
    while not condition():
        time.sleep(0.05)


def connect(port: int, certificate: Path | None = None) -> http.client.HTTPConnection:
    if certificate is None:
        return http.client.HTTPConnection("localhost", port, timeout=60)
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    return http.client.HTTPSConnection("localhost", port, timeout=60, context=context)


def post(port: int, certificate: Path | None = None, **body: Any) -> tuple[int, Any]:
    """Status and answer of a completion through NGINX."""
    connection = connect(port, certificate)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": MODEL} | body), headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data)


def get(port: int, path: str, certificate: Path | None = None) -> int:
    connection = connect(port, certificate)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status
