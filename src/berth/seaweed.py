"""The local platform's own S3 server: SeaweedFS, started for the time of a rule and ended with it.

It listens on 127.0.0.1 alone and asks for a random key. Its internal ports (master, filer, volume) know no key: on a
machine shared with people who must not read the model, use a real object store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
import botocore.config
import botocore.exceptions

from berth import filelocks, processes, signals, weed
from berth.errors import BerthError
from berth.fsio import write_json

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_REGION = "us-east-1"
_START_ATTEMPTS = 3
# weed closes its volumes at once and then lingers for 15 s; what it wrote survives a SIGKILL.
_GRACE_S = 2
_PORT_TAKEN = "address already in use"


@dataclass(frozen=True)
class StoreEndpoint:
    """Where a store answers and what signs the requests (environment names of boto3)."""

    endpoint_url: str
    region: str
    credentials: dict[str, str]

    def __repr__(self) -> str:
        """The endpoint without its credentials, so that no log shows them."""
        return f"StoreEndpoint({self.endpoint_url}, {self.region})"


@dataclass(frozen=True)
class _Secrets:
    access_key: str
    secret_key: str
    token: str


@contextlib.contextmanager
def embedded_store(
    data_dir: Path,
    *,
    port_range: tuple[int, int] | None = None,
    ready_timeout_s: float = 60,
    lock_timeout_s: float | None = None,
) -> Iterator[StoreEndpoint]:
    """A running S3 server over `data_dir`, which keeps its objects from one block to the next.

    Two blocks on the same directory take turns. The server is gone when the block is left, also by an exception,
    SIGINT or SIGTERM (raised as signals.Terminated); what a SIGKILL left behind is ended by the next block, which
    knows it by a token in its environment.

    Args:
        data_dir: objects, keys (0600), and the server's log.
        port_range: first and last port allowed; None lets the system choose.
        ready_timeout_s: seconds from start to the first signed answer.
        lock_timeout_s: seconds to wait for another block; None waits for as long as it takes.

    Raises:
        BerthError: no program, no port, a directory in use on another host, or a server that does not start.
    """
    program = weed.find_weed()
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with filelocks.exclusive(data_dir / "lock", "embedded store", timeout_s=lock_timeout_s):
        _refuse_other_host(data_dir)
        keys = _load_secrets(data_dir / "secrets.json")
        for leftover in processes.end_processes(keys.token, grace_s=_GRACE_S):
            logger.warning("Ended a store that a killed process left behind (pid %d)", leftover.pid)
        with _signals_as_exceptions():
            started: list[subprocess.Popen[bytes]] = []
            try:
                endpoint = _start(
                    program, data_dir, keys, port_range=port_range, ready_timeout_s=ready_timeout_s, started=started
                )
                logger.info("Embedded store ready at %s, data in %s", endpoint.endpoint_url, data_dir)
                yield endpoint
            finally:
                with signals.uninterrupted():
                    processes.end_processes(keys.token, grace_s=_GRACE_S)
                    for process in started:
                        process.wait()
                    _forget(data_dir)


def _start(
    program: Path,
    data_dir: Path,
    keys: _Secrets,
    *,
    port_range: tuple[int, int] | None,
    ready_timeout_s: float,
    started: list[subprocess.Popen[bytes]],
) -> StoreEndpoint:
    """Start the server and wait until it is ready; every process that was started is added to `started`."""
    log = data_dir / "weed.log"
    for attempt in range(1, _START_ATTEMPTS + 1):
        ports = dict(zip(weed.PORT_OPTIONS, weed.free_ports(len(weed.PORT_OPTIONS), port_range), strict=True))
        endpoint = StoreEndpoint(
            f"http://{weed.HOST}:{ports['s3.port']}",
            _REGION,
            {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key},
        )
        _forget(data_dir)
        log.unlink(missing_ok=True)
        (data_dir / "volumes").mkdir(exist_ok=True)
        write_json(data_dir / "s3.json", weed.s3_config(keys.access_key, keys.secret_key), mode=0o600)
        process = processes.spawn(
            weed.weed_command(program, data_dir, ports),
            # Nothing of the user's: weed takes AWS_* and WEED_* variables for its own settings.
            env={"PATH": os.defpath, "HOME": str(data_dir)},
            secret_env={},
            cwd=data_dir,
            log_path=log,
            token=keys.token,
        )
        started.append(process)
        write_json(data_dir / "holder.json", {"host": socket.gethostname(), "pid": process.pid, "ports": ports})
        failure = _wait_until_ready(process, endpoint, ports["master.port"], ready_timeout_s)
        if failure is None:
            return endpoint
        processes.end_processes(keys.token, grace_s=_GRACE_S)
        tail = _tail(log)
        if _PORT_TAKEN not in tail or attempt == _START_ATTEMPTS:
            raise BerthError(
                f"The embedded store {failure}. Its log is {log}; a full disk and a damaged {data_dir} (remove it: "
                f"objects are pushed again) are the usual causes. Last lines:\n{tail}"
            )
        logger.info("A port was taken meanwhile; starting the embedded store again on others")
    raise AssertionError  # The last attempt returns or raises.


def _wait_until_ready(
    process: subprocess.Popen[bytes], endpoint: StoreEndpoint, master_port: int, timeout_s: float
) -> str | None:
    """None when the store answers a signed request and can take objects, else what is wrong."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint.endpoint_url,
        region_name=endpoint.region,
        aws_access_key_id=endpoint.credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=endpoint.credentials["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=10,
            proxies={},
            s3={"addressing_style": "path"},
        ),
    )
    deadline = time.monotonic() + timeout_s
    reason = "did not answer"
    with contextlib.closing(client):
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                return f"ended with exit code {code} while it started"
            try:
                client.list_buckets()
                if _takes_objects(master_port):
                    return None
                reason = "has no writable volume (see the free space of its disk)"
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError) as error:
                reason = str(error)
            time.sleep(0.1)
    return f"was not ready after {timeout_s:g} s: {reason}"


def _takes_objects(master_port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{weed.HOST}:{master_port}/dir/status", timeout=5) as answer:
        return bool(json.load(answer)["Topology"]["Max"] > 0)


def _load_secrets(path: Path) -> _Secrets:
    try:
        return _Secrets(**json.loads(path.read_text()))
    except FileNotFoundError:
        keys = _Secrets(secrets.token_hex(10), secrets.token_hex(20), processes.new_token())
        write_json(path, vars(keys), mode=0o600)
        return keys
    except (ValueError, TypeError) as error:
        raise BerthError(f"{path}: not a file of keys that Berth wrote. Remove it; new keys are made.") from error


def _refuse_other_host(data_dir: Path) -> None:
    path = data_dir / "holder.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        holder = json.loads(path.read_text())
        if holder["host"] != socket.gethostname():
            raise BerthError(
                f"{data_dir}: a store of host {holder['host']} (pid {holder['pid']}) was not ended there, and two "
                f"servers would damage its data. End it on that host, then remove {path}."
            )


def _forget(data_dir: Path) -> None:
    """Remove what names the ports of a server that is gone."""
    path = data_dir / "holder.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        weed.remove_sockets(json.loads(path.read_text())["ports"])
    path.unlink(missing_ok=True)
    # The master keeps its records under its port; it makes them anew from what the volumes report.
    for records in (data_dir / "volumes").glob("m[0-9]*"):
        shutil.rmtree(records, ignore_errors=True)


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _signals_as_exceptions() -> contextlib.AbstractContextManager[None]:
    """TERM and INT as an exception in the block, where this thread can ask for that."""
    if threading.current_thread() is threading.main_thread():
        return signals.terminate_as_exception()
    return contextlib.nullcontext()
