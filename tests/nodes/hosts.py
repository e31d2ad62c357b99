"""Network namespaces as the machines of a cluster, and a workspace whose platform `local` consists of them.

All of it is behind one more namespace, in which Snakemake runs: what listens there is seen by nobody else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from workspace import Workspace, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALL = "Debian: apt-get install iproute2 util-linux, and run as root on a kernel with network namespaces"
NETWORK = "10.99.0"


def unavailable() -> str:
    """Why there can be no namespaces here; empty where there can."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}. {INSTALL}"
    tried = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "br0", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"no network namespaces: {tried.stderr.strip()}. {INSTALL}"


@dataclass(frozen=True)
class Hosts:
    """Named hosts; `outside` is the namespace from which all of them are reached."""

    outside: subprocess.Popen[bytes]
    holders: dict[str, subprocess.Popen[bytes]]

    @classmethod
    @contextlib.contextmanager
    def up(cls, *names: str) -> Iterator[Hosts]:
        """Hosts with addresses 10.99.0.1 and following on one bridge; gone at the end with all that runs there."""
        holders = [subprocess.Popen(["unshare", "-n", "sleep", "infinity"]) for _ in range(len(names) + 1)]
        hosts = cls(holders[0], dict(zip(names, holders[1:], strict=True)))
        try:
            for holder in holders:
                wait_until(lambda pid=holder.pid: _net(pid) != _net(os.getpid()), "a namespace", 10)
            hosts._join()
            yield hosts
        finally:
            for name in names:
                hosts.kill(name)
            for holder in holders:
                holder.kill()
                holder.wait()

    def _join(self) -> None:
        outside = enter(self.outside.pid)
        run(*outside, "ip", "link", "set", "lo", "up")
        run(*outside, "ip", "link", "add", "br0", "type", "bridge")
        run(*outside, "ip", "address", "add", f"{NETWORK}.254/24", "dev", "br0")
        run(*outside, "ip", "link", "set", "br0", "up")
        for number, (name, holder) in enumerate(self.holders.items(), start=1):
            end, inside = f"to-{name}", enter(holder.pid)
            pair = ["type", "veth", "peer", "name", f"net{number}", "netns", str(holder.pid)]
            run(*outside, "ip", "link", "add", end, *pair)
            run(*outside, "ip", "link", "set", end, "master", "br0", "up")
            run(*inside, "ip", "link", "set", "lo", "up")
            run(*inside, "ip", "address", "add", f"{NETWORK}.{number}/24", "dev", f"net{number}")
            run(*inside, "ip", "link", "set", f"net{number}", "up")

    def as_platform(self) -> list[dict[str, Any]]:
        """The `hosts` of a platform file."""
        return [
            {"name": name, "address": f"{NETWORK}.{number}", "run": enter(holder.pid)}
            for number, (name, holder) in enumerate(self.holders.items(), start=1)
        ]

    def processes(self, name: str) -> list[psutil.Process]:
        """Everything that runs on a host, its holder apart."""
        holder = self.holders[name].pid
        there = _net(holder)
        return [each for each in psutil.process_iter() if each.pid != holder and _net(each.pid) == there]

    def kill(self, name: str) -> None:
        """End everything on a host at once and unheard, as a loss of power does; the host itself comes back empty."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class HostsWorkspace(Workspace):
    """A workspace on such hosts."""

    hosts: Hosts | None = None

    @classmethod
    def on(cls, hosts: Hosts, path: Path, levels: list[int], **deployment: Any) -> HostsWorkspace:
        """A fresh copy of the sources, with one run of these levels of a deployment that is changed by `deployment`."""
        self = cls(Workspace.create(path).path, hosts)
        file = path / "config/platforms/local.yaml"
        platform = yaml.safe_load(file.read_text())
        platform.update(nodes=len(hosts.holders), hosts=hosts.as_platform())
        platform["server"]["host"] = "0.0.0.0"
        file.write_text(yaml.safe_dump(platform, sort_keys=False))

        def change(config: dict[str, Any]) -> None:
            config["deployments"]["tiny-local"].update(deployment)
            config["benchmarks"]["demo"]["concurrency"] = levels

        self.configure(change)
        return self

    def command(self, *arguments: str) -> list[str]:
        """Snakemake in the namespace that reaches all hosts."""
        assert self.hosts
        return [*enter(self.hosts.outside.pid), *super().command(*arguments)]

    def log(self) -> str:
        """What the sweeps have told."""
        return "".join(path.read_text() for path in sorted(self.path.glob("results/logs/sweep/**/*.log")))

    def wait_for(self, text: str, running: subprocess.Popen[bytes], limit_s: float = 600.0) -> None:
        """Return when the sweeps have told this; fail when Snakemake ends before."""
        wait_until(lambda: text in self.log() or running.poll() is not None, text, limit_s)
        assert text in self.log(), (self.path / "run.log").read_text()[-6000:]

    def node_log(self, rank: int) -> str:
        """What the server printed on a node."""
        return "".join(path.read_text() for path in self.path.glob(f"results/logs/server/**/server.node{rank}.log"))


def enter(pid: int) -> list[str]:
    """What goes before a command so that it runs in the network namespace of a process."""
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def _net(pid: int) -> str:
    try:
        return re.sub(r"\D", "", str(Path(f"/proc/{pid}/ns/net").readlink()))
    except OSError:
        return ""
