"""A stand-in for an inference server, for behaviour that the real vLLM cannot be made to show in a second.

The mode, the argument after the port, chooses what it does. The real one: tests/integration/test_serve_vllm.py.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PORT, MODE = int(sys.argv[1]), sys.argv[2]
KEY = os.environ.get("VLLM_API_KEY")
STARTED = time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status: int, value: object = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self) -> bool:
        return MODE == "open" or self.headers["Authorization"] == f"Bearer {KEY}"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(503 if MODE == "unhealthy" or time.monotonic() - STARTED < 0.3 else 200)
        elif not self.allowed():
            self.answer(401, {"error": "Unauthorized"})
        else:
            self.answer(200, {"data": [{"id": "other" if MODE == "other-model" else "tiny"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.allowed():
            self.answer(401)
        elif MODE == "dies":
            print("RuntimeError: pipeline broke", flush=True)
            os._exit(1)
        elif MODE == "hangs":
            time.sleep(1000)
        elif MODE == "spins":
            while True:
                pass
        elif MODE == "fails":
            print("Traceback of a failing request", flush=True)
            self.answer(500, {"error": "engine is dead"})
        elif MODE == "refuses":
            self.answer(400, {"error": "no chat template"})
        else:
            self.answer(200, {"usage": {"completion_tokens": 0 if MODE == "zero" else 1}})


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = MODE == "shares"


def prepare() -> None:  # noqa: C901 - one branch per mode.
    """Do what happens before the server listens; three of the ways are slow, each with one sign of life only."""
    if MODE == "stalls":
        time.sleep(1000)
    elif MODE == "fails-at-start":
        sys.exit("ValueError: no such model")
    elif MODE == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif MODE == "slow-log":
        for layer in range(13):
            time.sleep(0.3)
            print(f"loading layer {layer}", flush=True)
    elif MODE == "slow-cpu":
        while time.process_time() < 3.5:
            pass
    elif MODE == "slow-read":
        for _ in range(38):
            with Path("/dev/zero").open("rb", buffering=0) as file:
                file.read(1024 * 1024)
            time.sleep(0.1)
    elif MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run([sys.executable, "-c", DAEMON], check=True)


def main() -> None:
    print("starting", flush=True)
    prepare()
    server = Server(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever).start()


DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
"""

if __name__ == "__main__":
    main()
