"""Runs a command where there is no network but the loopback, and says what it tried to reach. Needs root.

    unshare --net --mount python airgap.py REPORT COMMAND...

On the loopback a name server knows no name and a proxy refuses every request; both keep a list. Before the command
both are tried, so that an empty list means that nothing came and not that nothing would have been seen.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PROXY_PORT = 3128
NAME = "name-server-is-asked.example"
ASKED: list[str] = []
PROXIED: list[str] = []


class NameServer(socketserver.BaseRequestHandler):
    """Answers "no such name" (https://www.rfc-editor.org/rfc/rfc1035, section 4.1)."""

    def handle(self) -> None:
        question, reply = self.request
        ASKED.append(name_of(question))
        reply.sendto(question[:2] + b"\x81\x83" + question[4:6] + bytes(6) + question[12:], self.client_address)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Refuses everything."""

    def parse_request(self) -> bool:
        if super().parse_request():
            PROXIED.append(f"{self.command} {self.path}")
            self.send_error(403)
        # False: there is nothing more to do, whatever the method.
        return False

    def log_message(self, *_: object) -> None:
        pass


def name_of(question: bytes) -> str:
    labels, at = [], 12
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode(errors="replace"))
        at += 1 + size
    return ".".join(labels)


def serve(server: socketserver.BaseServer) -> None:
    threading.Thread(target=server.serve_forever, daemon=True).start()


def probe() -> dict[str, Any]:
    """What the lists hold after a name was asked for, and after a request to the loopback that names no exception."""
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo(NAME, 80)
    handler = urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{PROXY_PORT}"})
    environment = {name: os.environ.pop(name) for name in ("no_proxy", "NO_PROXY") if name in os.environ}
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.build_opener(handler).open("http://127.0.0.1:9/probe", timeout=10)
    os.environ.update(environment)
    found = {"asked": list(ASKED), "proxied": list(PROXIED)}
    ASKED.clear()
    PROXIED.clear()
    return found


def main() -> None:
    report, command = Path(sys.argv[1]), sys.argv[2:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.NamedTemporaryFile("w", suffix="resolv.conf") as resolver:
        resolver.write("nameserver 127.0.0.1\n")
        resolver.flush()
        subprocess.run(["mount", "--bind", resolver.name, "/etc/resolv.conf"], check=True)
        serve(socketserver.ThreadingUDPServer(("127.0.0.1", 53), NameServer))
        serve(http.server.ThreadingHTTPServer(("127.0.0.1", PROXY_PORT), Proxy))
        found = {"interfaces": [name for _, name in socket.if_nameindex()], "probe": probe()}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found |= {"code": done.returncode, "output": done.stdout, "asked": ASKED, "proxied": PROXIED}
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
