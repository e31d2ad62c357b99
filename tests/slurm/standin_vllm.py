"""A stand-in for the `vllm` program, for tests in which scheduler and workflow are real and vLLM would add nothing.

`serve` answers as a server that is ready, and a request with `stand_in_s` after so many seconds; after TERM it answers
what it has begun. `bench serve` sends nothing: it sleeps, and writes a result of the form of
vLLM's client. A file `hold-runN` beside this one keeps the point at concurrency 2 of run N going until it is removed; a
file `stubborn-runN` makes the server of run N deaf to TERM.
The real program runs in test_slurm_vllm.py.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
POINT_S = 1.0
HELD_LEVEL = 2


class Handler(http.server.BaseHTTPRequestHandler):
    served = ""

    def answer(self, status: int, value: object = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200)
        elif self.path == "/metrics":
            self.answer(404)
        elif not self.allowed():
            self.answer(401)
        else:
            self.answer(200, {"data": [{"id": self.served}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        time.sleep(asked.get("stand_in_s", 0))
        self.answer(200 if self.allowed() else 401, {"usage": {"completion_tokens": 1}})

    def log_message(self, *_: object) -> None:
        """Say nothing: the log is read for errors."""


def options(words: list[str]) -> dict[str, str]:
    """--name value and --name=value; a name without a value is left out."""
    found = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if equals or not after.startswith("--"):
                found[name] = value if equals else after
    return found


def run_of(folder: Path) -> str:
    """The part of a path that names the run, such as run1."""
    return next((part for part in folder.parts if part.startswith("run") and part[3:].isdigit()), "no-run")


def serve(given: dict[str, str]) -> None:
    server = http.server.ThreadingHTTPServer((given["host"], int(given["port"])), Handler)
    # As vLLM does; a first process of a container that does not say so is deaf to it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    Handler.served = given["served-model-name"]
    # Its working directory is the scratch of its run.
    if (HERE / f"stubborn-{run_of(Path.cwd())}").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with server:
        server.serve_forever(poll_interval=0.05)


def bench(given: dict[str, str]) -> None:
    prompts = int(given["num-prompts"])
    # A sweep over request rates has no limit.
    concurrency = int(given.get("max-concurrency", prompts))
    folder = Path(given["result-dir"])
    run = run_of(folder)
    begin = time.monotonic()
    time.sleep(POINT_S)
    while concurrency == HELD_LEVEL and (HERE / f"hold-{run}").exists():
        time.sleep(0.1)
    duration = time.monotonic() - begin
    latency = duration * min(concurrency, prompts) / prompts
    result = {
        "duration": duration,
        "completed": prompts,
        "total_input_tokens": 10 * prompts,
        "total_output_tokens": 10 * prompts,
        "request_throughput": prompts / duration,
        "output_throughput": 10 * prompts / duration,
        "ttfts": [latency / 2] * prompts,
        "itls": [[latency / 2]] * prompts,
        **{
            f"{statistic}_{metric}_ms": 1000 * latency
            for statistic in ("mean", "median", "p99")
            for metric in ("ttft", "tpot", "itl", "e2el")
        },
    }
    (folder / given["result-filename"]).write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(options(sys.argv[2:]))
    else:
        bench(options(sys.argv[3:]))
