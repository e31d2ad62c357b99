"""Ports and shared memory of a host, as Linux shows them in /proc (proc(5))."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import random
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTEN = "0A"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the mount point of POSIX shared memory, no temporary file.

# Python's SharedMemory and semaphores, vLLM, torch and NCCL. Other files there may be data that somebody staged.
_PREFIXES = ("psm_", "sem.mp-", "vllm_", "torch_", "nccl-")


def free_port(host: str, low: int, high: int, *, key: str = "ports") -> int:
    """A port from `low` to `high`, both included, on which nothing listens at `host`, found by listening on it.

    The search starts at a random port, so that sweeps that start together rarely choose the same. `key` is the place
    in the configuration that an error names.

    Raises:
        BerthError: when the range is no range, the host is not of this machine, or no port is free.
    """
    if not 1 <= low <= high <= 65535:
        raise BerthError(f"{key}: {low}-{high} is no range of ports. Allowed: 1 <= first <= last <= 65535.")
    ports = list(range(low, high + 1))
    first = random.randrange(len(ports))
    for port in ports[first:] + ports[:first]:
        try:
            if _can_listen(host, port):
                return port
        except OSError as error:
            raise BerthError(
                f"{key}: cannot listen on {host!r}: {error.strerror or error}. Name an address of this machine."
            ) from error
    raise BerthError(
        f"{key}: no port from {low} to {high} is free at {host}. "
        "Widen the range, or end what occupies it (`ss -ltnp` lists it)."
    )


def _can_listen(host: str, port: int) -> bool:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: without it a port counts as taken for a minute after its last connection.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def listeners(host: str, port: int) -> frozenset[str]:
    """The inodes of the sockets of this host that a connection to this address and TCP port may reach."""
    wanted = {ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].rpartition(":")
                if fields[3] != _LISTEN or int(number, 16) != port:
                    continue
                bound = _address(address)
                if bound.is_unspecified or bound in wanted or any(entry.is_unspecified for entry in wanted):
                    found.add(fields[9])
    return frozenset(found)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as /proc/net/tcp shows it: words of 32 bits in the byte order of the machine."""
    words = [int(text[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


def sockets_of(pids: Iterable[int]) -> frozenset[str]:
    """The inodes of the sockets that these processes hold; those of processes that cannot be read are left out."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = Path(entry.path).readlink().name
                    if target.startswith("socket:["):
                        found.add(target[8:-1])
    return frozenset(found)


def shared_memory_of(pids: Iterable[int]) -> dict[str, int]:
    """The files of /dev/shm that these processes map: name -> inode.

    vLLM with several workers exchanges data through such files (psm_*), and leaves them when it is killed.
    """
    mapped = _mapped(pids)
    found = {}
    for path in _shared_files():
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) in mapped and status.st_uid == os.geteuid():
                found[path.name] = status.st_ino
    return found


def remove_shared_memory(files: dict[str, int]) -> list[str]:
    """Remove those of the files of /dev/shm (name -> inode) that are still the same and that nobody maps.

    Returns the names of the removed ones.
    """
    if not files:
        return []
    mapped = _mapped(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    removed = []
    for path in _shared_files():
        with contextlib.suppress(OSError):
            status = path.stat()
            if files.get(path.name) == status.st_ino and (status.st_dev, status.st_ino) not in mapped:
                path.unlink()
                removed.append(path.name)
    return removed


def _shared_files() -> list[Path]:
    try:
        return [
            Path(entry.path)
            for entry in os.scandir(_SHARED_MEMORY)
            if entry.name.startswith(_PREFIXES) and entry.is_file(follow_symlinks=False)
        ]
    except OSError:
        return []


def _mapped(pids: Iterable[int]) -> set[tuple[int, int]]:
    """(device, inode) of every file that these processes map."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(maxsplit=5)
                if fields[4] != "0":
                    major, minor = (int(number, 16) for number in fields[3].split(":"))
                    found.add((os.makedev(major, minor), int(fields[4])))
    return found
