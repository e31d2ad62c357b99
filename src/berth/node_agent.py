"""What a sweep starts on every node of a server that spans several: it runs its node's part, and tells about it.

Standard input, one JSON object per line, the same for all nodes:
    {"do": "prepare", "request": SweepRequest as JSON, "silence_s": float}
    {"do": "start", "head_address": str, "port": int, "cluster_port": int, "addresses": {name: address}}
    {"do": "ping", "number": int}
    {"do": "drain"}    the process that answers requests ends when it has answered those in flight
    {"do": "pin"}      the server is ready: whoever listens on its port now is the server
    {"do": "stop"}
Standard output, messages in the lines of agent_lines:
    {"event": "prepared", "name", "host", "address", "interface", "port", "cluster_port", "step",
     "copied"}      of the model to the node's own disk, as records hold it, or null
    {"event": "copying", "bytes"}      the model arrives on the node's own disk
    {"event": "joined"}      from the first node: its Ray cluster has all nodes
    {"event": "started", "argv"}      its processes run; argv is without secrets
    {"event": "beat", "moved": ["log", "cpu", "read"], "listening": ["own", "others"]}
    {"event": "pong", "number"}
    {"event": "died", "cause", "remedy", "line", "tail", "whole", "signalled"}      `whole` tells of all nodes
    {"event": "ended"}      nothing of it runs any more
The end of standard input, or of what the sweep says, ends everything on the node: the sweep is gone then.
Secrets are in the environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from berth.agent_lines import encode
from berth.cluster import ClusterIncomplete, joined_of
from berth.containers import end_containers
from berth.errors import BerthError
from berth.launch import prepare
from berth.nodemodel import with_node_model
from berth.nodepart import part_of
from berth.nodes import Place, own_address, own_node, own_rank
from berth.processes import TOKEN_VARIABLE
from berth.recording import failure_of
from berth.serve import ServerDied, serve
from berth.signals import Terminated, terminate_as_exception
from berth.sockets import free_port
from berth.sweep import SweepRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.launch import Deployed
    from berth.nodepart import Part
    from berth.serve import Launch, Meter, Server

logger = logging.getLogger("berth.node_agent")

_TICK_S = 0.2
_BEAT_S = 1.0
_CHECK_LIMIT_S = 120.0
_BETWEEN_CHECKS_S = 1.0


class _Over(Exception):  # noqa: N818  # What happened.
    """The sweep wants no more of this node, or is gone."""


class _Lost(BerthError):  # noqa: N818  # What happened.
    """A part of the cluster that never came up."""

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}\nWhat to do: {remedy}")


class Agent:
    """One node's part. `run` does everything; `orders` are the lines of the sweep, ended by None."""

    def __init__(self, rank: int, orders: queue.Queue[str | None]) -> None:
        self._rank = rank
        # Its own, for nodes that are played by one machine must not end each other's processes.
        self._token = f"{os.environ[TOKEN_VARIABLE]}.{rank}"
        self._orders = orders
        self._silence_s = 120.0
        self._heard = self._told = time.monotonic()
        self._deployed: Deployed | None = None
        self._servers: list[Server] = []
        self._meter: Meter | None = None
        self._dead = False

    def run(self) -> None:
        """Take part until the sweep says stop; everything of this node is gone on return."""
        with contextlib.suppress(_Over), contextlib.ExitStack() as stack:
            try:
                deployed = self._prepared(stack, self._next("prepare"))
                order = self._next("start")
                work = self._work(stack, deployed, order)
            except BerthError as error:
                self._failed(error)
                work = iter(())
            self._attend(work)
        with contextlib.suppress(_Over):
            self._tell(event="ended")

    def _prepared(self, stack: contextlib.ExitStack, order: dict[str, Any]) -> Deployed:
        self._silence_s = order["silence_s"]
        node = own_node(os.environ, self._rank)
        deployed = stack.enter_context(with_node_model(prepare(SweepRequest(**order["request"])), self._copying))
        self._deployed = deployed
        grace_s = deployed.request.settings["stop_grace_s"]
        stack.callback(end_containers, deployed.on.podman, self._token, deployed.on.environ, grace_s=grace_s)
        deployed = dataclasses.replace(deployed, place=Place(self._rank, node.address, node.address, "", 0))
        deployed.check_node(self._token)
        settings = deployed.request.platform_settings
        address, interface = own_address(node, settings["interface"])
        port = deployed.free_port() if self._rank == 0 else 0
        cluster_port = _cluster_port(deployed, address, port) if port else 0
        step = ".".join(os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")).strip(".")
        self._tell(
            event="prepared",
            name=node.name,
            host=socket.gethostname(),
            address=address,
            interface=interface,
            port=port,
            cluster_port=cluster_port,
            step=step,
            copied=dict(deployed.custody["model"]) if deployed.copied else None,
        )
        return dataclasses.replace(deployed, place=Place(self._rank, address, address, interface, cluster_port))

    def _copying(self, copied_bytes: int) -> None:
        with contextlib.suppress(_Over):
            self._tell(event="copying", bytes=copied_bytes)

    def _work(self, stack: contextlib.ExitStack, deployed: Deployed, order: dict[str, Any]) -> Iterator[None]:
        place = deployed.place
        assert place
        place = dataclasses.replace(place, head_address=order["head_address"], cluster_port=order["cluster_port"])
        deployed = dataclasses.replace(deployed, place=place)
        key = os.environ.get(deployed.recipe.server_key, "") if deployed.recipe.server_key else ""
        part = part_of(deployed, order["port"], key, self._token)
        return self._ray(stack, deployed, part, order) if part.cluster else self._native(stack, deployed, part)

    def _native(self, stack: contextlib.ExitStack, deployed: Deployed, part: Part) -> Iterator[None]:
        assert part.server
        self._start(stack, deployed, part.server)
        self._tell(event="started", argv=list(part.server.argv))
        yield

    def _ray(
        self, stack: contextlib.ExitStack, deployed: Deployed, part: Part, order: dict[str, Any]
    ) -> Iterator[None]:
        assert part.cluster
        limit_s = deployed.request.settings["stall_s"]
        if self._rank > 0:
            # The first node says it first, and names whoever is missing.
            yield from _reachable(order["head_address"], order["cluster_port"], 2 * limit_s)
        self._start(stack, deployed, part.cluster)
        if part.server is None or part.check is None:
            self._tell(event="started", argv=list(part.cluster.argv))
            return
        yield from self._joined(part.check, order["addresses"], limit_s)
        self._tell(event="joined", nodes=order["addresses"])
        self._start(stack, deployed, part.server)
        self._tell(event="started", argv=list(part.server.argv))

    def _joined(self, check: Launch, nodes: dict[str, str], limit_s: float) -> Iterator[None]:
        """Goes on while the cluster has not all nodes, and ends when it has."""
        began = time.monotonic()
        joined: list[str] = []
        while set(nodes.values()) - set(joined):
            if time.monotonic() - began > limit_s:
                raise ClusterIncomplete(joined, nodes, limit_s)
            asked = time.monotonic()
            for printed in _printed(check, self._token):
                joined = joined_of(printed or "")
                yield
            logger.info("%d of %d nodes have joined the cluster", len(joined), len(nodes))
            while set(nodes.values()) - set(joined) and time.monotonic() - asked < _BETWEEN_CHECKS_S:
                yield

    def _start(self, stack: contextlib.ExitStack, deployed: Deployed, launch: Launch) -> None:
        server = stack.enter_context(
            serve(
                launch,
                log_path=deployed.server_log,
                token=self._token,
                grace_s=deployed.request.settings["stop_grace_s"],
                known_failures=deployed.known_failures,
            )
        )
        checks = deployed.checks
        self._meter = server.meter((checks.health_path, checks.models_path, checks.completion_path))
        self._servers.append(server)

    def _attend(self, work: Iterator[None]) -> None:
        """Answer the sweep, go on with the work, and tell when something of it died; left by _Over."""
        while True:
            self._answer(_TICK_S)
            if not self._dead:
                try:
                    for server in self._servers:
                        server.check()
                    next(work, None)
                except BerthError as error:
                    self._failed(error)
            self._beat()

    def _answer(self, wait_s: float) -> None:
        while (order := self._order(wait_s)) is not None:
            wait_s = 0.0
            if order["do"] == "ping":
                self._tell(event="pong", number=order["number"])
            elif order["do"] == "drain" and self._rank == 0 and self._servers:
                self._servers[-1].ask_to_end()
            elif order["do"] == "pin":
                self._meter = None
                if self._deployed:
                    self._deployed.start_cache.keep(self._deployed.cache)
                if self._rank == 0 and self._servers:
                    self._servers[-1].pin()

    def _next(self, wanted: str) -> dict[str, Any]:
        while True:
            order = self._order(_TICK_S)
            if order is not None and order["do"] == wanted:
                return order
            if order is not None and order["do"] == "ping":
                self._tell(event="pong", number=order["number"])

    def _order(self, wait_s: float) -> dict[str, Any] | None:
        try:
            line = self._orders.get(timeout=wait_s) if wait_s else self._orders.get_nowait()
        except queue.Empty:
            if time.monotonic() - self._heard > self._silence_s:
                logger.warning("the sweep has said nothing for %g s; this node ends its part", self._silence_s)
                raise _Over from None
            return None
        if line is None:
            raise _Over
        self._heard = time.monotonic()
        order: dict[str, Any] = json.loads(line)
        if order["do"] == "stop":
            raise _Over
        return order

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._told < _BEAT_S:
            return
        self._told = now
        moved = sorted(self._meter.sample()) if self._meter and not self._dead else []
        self._tell(event="beat", moved=moved, listening=self._listening())

    def _listening(self) -> list[str]:
        """Whose sockets the port of the first node has: "own", "others", both or neither; none after the start."""
        if self._rank > 0 or self._meter is None or not self._servers:
            return []
        server = self._servers[-1]
        found, own = server.listening(), server.own_sockets()
        return [*(["own"] if found & own else []), *(["others"] if found - own else [])]

    def _failed(self, error: BerthError) -> None:
        self._dead = True
        told = failure_of(error, "")
        self._tell(
            event="died",
            cause=told["cause"],
            remedy=told["remedy"],
            line=getattr(error, "line", ""),
            tail=getattr(error, "tail", ""),
            whole=isinstance(error, ClusterIncomplete),
            signalled=isinstance(error, ServerDied) and error.signalled,
        )

    def _tell(self, **message: Any) -> None:
        try:
            sys.stdout.write(encode(self._rank, message))
            sys.stdout.flush()
        except OSError:
            # Nobody listens any more.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
            raise _Over from None


def _cluster_port(deployed: Deployed, address: str, taken: int) -> int:
    """A free port at which the nodes of one server meet: the server's is not for them."""
    low, high = deployed.request.platform_settings["ports"]
    key = f"config/platforms/{deployed.request.platform}.yaml: server.ports"
    if low == high:
        raise BerthError(f"{key}: [{low}, {high}]: a server over several nodes needs two ports. Widen the range.")
    while (port := free_port(address, low, high, key=key)) == taken:
        pass
    return port


def _reachable(address: str, port: int, limit_s: float) -> Iterator[None]:
    """Goes on until something listens there."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), timeout=_TICK_S).close()
            return
        if time.monotonic() - began > limit_s:
            raise _Lost(
                f"The first node's cluster at {address}:{port} could not be reached for {limit_s:g} s.",
                "See whether the nodes reach each other at these addresses on every port; server.interface in the "
                "platform's file chooses the network.",
            )
        yield


def _printed(launch: Launch, token: str) -> Iterator[str | None]:
    """None while the command runs, and then what it printed, which is nothing where it failed."""
    env = {**launch.env, **launch.secret_env, TOKEN_VARIABLE: token}
    try:
        process = subprocess.Popen(
            launch.argv,
            env=env,
            cwd=launch.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        yield ""
        return
    began = time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - began < _CHECK_LIMIT_S:
            yield None
    finally:
        process.kill()
        printed = process.communicate()[0].decode(errors="replace")
    yield printed if process.returncode == 0 else ""


def _read(orders: queue.Queue[str | None]) -> None:
    # Not sys.stdin, whose lock the interpreter needs at its end while this thread still waits.
    kept = b""
    while data := os.read(0, 65536):
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            orders.put(line.decode())
    orders.put(None)


def main() -> int:
    """Read orders from standard input until they end."""
    rank = own_rank(os.environ)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s node {rank}: %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("berth.serve").setLevel(logging.WARNING)
    orders: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    try:
        with terminate_as_exception():
            Agent(rank, orders).run()
    except Terminated as asked:
        return asked.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
