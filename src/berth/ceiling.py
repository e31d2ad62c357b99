"""What the rule `client_ceiling` does: a benchmark client against a stand-in that answers at once, for its ceiling."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from berth import instant_server
from berth.ceilings import Ceiling, path_of
from berth.clientchoice import client_of
from berth.errors import BerthError
from berth.filelocks import exclusive
from berth.fsio import write_json
from berth.reading import finite_number
from berth.signals import announce, terminate_as_exception
from berth.sweep import SweepRequest, brought_up, leased

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.bench import BenchSettings
    from berth.clientchoice import BenchmarkClient

logger = logging.getLogger(__name__)

SCHEMA = 1
CONCURRENCY = 64
# Tokens of each answer, and how many requests take some seconds on one core.
_ASKED = ((1, 2000), (256, 300))


@contextlib.contextmanager
def stand_in(key: str, *, python: str = sys.executable, bodies: Path | None = None) -> Iterator[str]:
    """The address of a stand-in server that answers at once; it ends with the block, or with this process.

    Raises:
        BerthError: it does not start.
    """
    command = [python, str(Path(instant_server.__file__)), "0", *([str(bodies)] if bodies else [])]
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**env, "VLLM_API_KEY": key}
    ) as process:
        try:
            words = process.stdout.readline().split() if process.stdout else []
            if len(words) != 2:  # "ready PORT"
                raise BerthError(
                    f"{command[1]}: the stand-in server did not start; run it by hand: {' '.join(command)}"
                )
            yield f"http://127.0.0.1:{int(words[1])}"
        finally:
            process.kill()


def random_prompts(settings: BenchSettings, tokens: int, count: int) -> BenchSettings:
    """The settings for `count` short prompts with answers of `tokens` tokens, which need no dataset."""
    lengths = ("--random-input-len", "16", "--random-output-len", str(tokens))
    return replace(
        settings,
        dataset_name="random",
        dataset_path=None,
        dataset_args=lengths,
        num_prompts=count,
        ignore_eos=True,
    )


def measure_ceiling(client: BenchmarkClient, settings: BenchSettings, scratch: Path) -> Ceiling:
    """The ceiling of a client that is ready; `settings` name the stand-in's address.

    Raises:
        BerthError: the client fails, or the stand-in did not answer every request.
    """
    seconds, rates = [], []
    for tokens, count in _ASKED:
        done = client.measure(random_prompts(settings, tokens, count), CONCURRENCY, scratch)
        rate = finite_number(done.result.get("request_throughput"))
        if done.result.get("completed") != count or not rate:
            raise BerthError(
                f"The client completed {done.result.get('completed')} of {count} requests of a stand-in that answers "
                f"at once: its ceiling cannot be told. See {done.log}."
            )
        seconds.append(1 / rate)
        rates.append((rate, done))
    few, many = (tokens for tokens, _ in _ASKED)
    token_s = max(0.0, (seconds[1] - seconds[0]) / (many - few))
    last = rates[1][1]
    return Ceiling(
        name=last.name,
        version=last.version,
        mode=last.mode,
        request_s=max(0.0, seconds[0] - few * token_s),
        token_s=token_s,
        requests_per_s=rates[0][0],
        tokens_per_s=many * rates[1][0],
        measured=last.end,
    )


def client_ceiling(request: SweepRequest) -> Ceiling:
    """Measure the ceiling of the benchmark's client on this node, and keep it for the gate.

    Raises:
        BerthError: the client does not work here, or runs in a pod.
    """
    if request.kubernetes:
        raise BerthError(
            f"client_ceiling: on {request.platform} the client is a pod, which no stand-in of this node serves. There "
            "`client_bound` is judged by the client's CPU and lag alone."
        )
    with terminate_as_exception():
        announce()
        with (
            leased(request) as (spool, held, token, host),
            brought_up(request, spool, held, token, host) as deployed,
            stand_in(key := deployed.new_key()) as url,
            client_of(deployed, key, token, None) as client,
        ):
            settings = deployed.settings(url, instant_server.MODEL)
            first = random_prompts(settings, *_ASKED[0])
            client.prepare(first, random_prompts(settings, *_ASKED[1]))
            client.wait_ready()
            client.warm_up(first, deployed.exchange, num_prompts=CONCURRENCY, concurrency=CONCURRENCY)
            found = measure_ceiling(client, settings, deployed.exchange)
    path, node = path_of(Path(request.results), request.platform), socket.gethostname()
    with exclusive(path.with_name(f".{path.name}.lock"), f"writing of {path}"):
        nodes = json.loads(path.read_text())["nodes"] if path.exists() else {}
        nodes.setdefault(node, {})[found.name] = asdict(found)
        write_json(path, {"schema": SCHEMA, "nodes": nodes})
    logger.info(
        "%s %s on %s: at most %.0f requests/s of one token, %.0f tokens/s in answers of %d; written to %s",
        found.name,
        found.version,
        node,
        found.requests_per_s,
        found.tokens_per_s,
        _ASKED[1][0],
        path,
    )
    return found
