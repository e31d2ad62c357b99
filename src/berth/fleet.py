"""A server over several nodes, seen from its sweep: started by an agent on every node, watched, and taken down."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.agent_lines import Decoder
from berth.blame import NodeState, blame
from berth.diagnose import Diagnosis, read_log, redact
from berth.errors import BerthError
from berth.kubelaunch import Released
from berth.kubeserver import serve_release
from berth.launch import further_secrets
from berth.nodes import agent_starts, step_environment
from berth.processes import end_processes, spawn
from berth.serve import Launch, ServerDied, held, serve, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from berth.launch import Deployed
    from berth.nodes import Node
    from berth.serve import Meter, Running

logger = logging.getLogger(__name__)

_PING_S = 2.0
# An agent tells something every second. A node may stand still for a while, and a false alarm costs a point.
_SILENT_S = 30.0
# How long a node that is asked has for an answer once something is wrong.
_ANSWER_S = 5.0
_SETTLE_S = 1.0
_END_MARGIN_S = 20.0
_TAIL_LINES = 20


class NodesMissing(BerthError):  # noqa: N818  # What happened.
    """Not every node of the job took up its part."""

    kind = "crash"

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}\nWhat to do: {remedy}")


class NodesServer:
    """The server and its agents. Made by serve_nodes(), in the main thread."""

    def __init__(self, deployed: Deployed, nodes: Sequence[Node], token: str) -> None:
        self._deployed = deployed
        self._nodes = tuple(nodes)
        self._token = token
        self._processes: list[subprocess.Popen[bytes]] = []
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._states: list[NodeState] = []
        self._pings = 0
        self._moved_at = 0.0
        self._key = ""
        self._launch: Launch | None = None
        self._log_starts = [_size(deployed.node_log(rank)) for rank in range(len(nodes))]
        self._agents_log = deployed.server_log
        self._agents_log_start = _size(self._agents_log)
        self.log_path = deployed.node_log(0)
        self.log_start = self._log_starts[0]
        self.started = 0.0
        self.events: list[tuple[str, float]] = []

    # What readiness and measurement see.

    @property
    def launch(self) -> Launch:
        """How the first node was started."""
        if self._launch is None:
            raise AssertionError("a server that has not been started")
        return self._launch

    @property
    def base_url(self) -> str:
        """Its address as the other nodes reach it."""
        return f"http://{self.launch.host}:{self.launch.port}"

    @property
    def client_url(self) -> str:
        """The same."""
        return self.base_url

    @property
    def places(self) -> list[dict[str, str]]:
        """Name and address of each node, in the order of their ranks."""
        return [{"name": state.name, "address": (state.prepared or {}).get("address", "")} for state in self._states]

    def alive(self) -> bool:
        """Whether every node does its part."""
        now = time.monotonic()
        with self._changed:
            return not any(state.died or state.gone or now - state.heard > _SILENT_S for state in self._states)

    def check(self) -> None:
        """Return when every node does its part.

        Raises:
            ServerDied: it names the node that does not.
        """
        if not self.alive():
            raise self.died()

    def pin(self) -> None:
        """Whoever listens on the port of the first node now is the server; its agent watches that."""
        self._order(do="pin")

    def listening(self) -> frozenset[str]:
        """Whose sockets the port of the first node has, as its agent saw it last."""
        with self._changed:
            return frozenset(self._states[0].listening)

    def own_sockets(self) -> frozenset[str]:
        """The server's own among them."""
        return self.listening() & {"own"}

    def drain(self, limit_s: float) -> bool:
        """Ask the first node's process, which answers requests, to end when it has answered those in flight."""
        self._order(do="drain")
        return wait_for_end(self.alive, limit_s)

    def meter(self, _own_paths: Sequence[str]) -> Meter:
        """Tells whether any node gets on; the agents sample."""
        return _Moves(self._take_moves)

    @property
    def copies(self) -> list[dict[str, Any]]:
        """What the nodes told of the model on their own disks."""
        return [state.prepared["copied"] for state in self._states if state.prepared and state.prepared["copied"]]

    def _take_moves(self) -> frozenset[str]:
        with self._changed:
            moved = frozenset().union(*(state.moved for state in self._states))
            for state in self._states:
                state.moved.clear()
            return moved

    def died(self, cause: str | None = None) -> ServerDied:
        """The error that names the node it died of; `cause` says what was seen where that was all."""
        silent = self._settle()
        with self._changed:
            rank = blame(self._states, silent)
            state = self._states[rank or 0]
            told = state.died
        log = self._deployed.node_log(rank or 0)
        tail = told["tail"] if told else self._tail(log, self._log_starts[rank or 0])
        which = f"Node {state.name} (rank {rank} of {len(self._nodes)})"
        if rank is None:
            found = Diagnosis("Every node still runs.", "Read the logs of the nodes.", "", tail)
        elif told:
            what = told["cause"] if told["whole"] else f"{which}: {told['cause']}"
            found = Diagnosis(what, told["remedy"], told["line"], tail)
        else:
            launcher = self._tail(self._agents_log, self._agents_log_start)
            found = Diagnosis(
                f"{which} was lost: nothing of Berth runs there any more, or the node does not answer.",
                f"See whether {state.name} is up and what its kernel's log says (out of memory, a device that failed); "
                f"{self._agents_log} has what the launcher said.",
                "",
                "\n".join(filter(None, (tail, launcher))),
            )
        if cause is not None:
            found = replace(found, cause=f"{cause} {found.cause}")
        return ServerDied(found, log)

    def _settle(self) -> list[int]:
        """Give every node time to tell of its end, and return those that do not answer."""
        self._pings += 1
        number = self._pings
        began = time.monotonic()
        self._order(do="ping", number=number)

        def answered(state: NodeState) -> bool:
            return state.pong >= number or state.gone or state.ended

        # Which one died first is seen only when all had time to tell; a dead peer is noticed at once.
        time.sleep(_SETTLE_S)
        self._wait(lambda: all(answered(state) for state in self._states), _ANSWER_S - (time.monotonic() - began))
        with self._changed:
            return [rank for rank, state in enumerate(self._states) if not answered(state)]

    def _tail(self, log: Path, start: int) -> str:
        text = redact(read_log(log, start=start), self._secrets().values())
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    # From the start of the agents to their end.

    def begin(self, key: str) -> None:
        """Start an agent on every node. Returns at once."""
        self._key = key
        self.started = time.monotonic()
        settings = self._deployed.request.platform_settings
        environment = step_environment(os.environ)
        argv = (sys.executable, "-m", "berth.node_agent")
        self._states = [NodeState(node.name, self.started) for node in self._nodes]
        starts = agent_starts(settings, self._nodes, argv)
        for index, start in enumerate(starts):
            process = spawn(
                start.argv,
                env={**environment, **start.env},
                secret_env=self._secrets(),
                cwd=Path.cwd(),
                log_path=self._agents_log,
                token=self._token,
                piped=True,
            )
            self._processes.append(process)
            ranks = range(len(self._nodes)) if len(starts) == 1 else [index]
            threading.Thread(target=self._listen, args=(process, ranks), name="nodes", daemon=True).start()
        threading.Thread(target=self._keep_telling, name="ping", daemon=True).start()

    def _secrets(self) -> dict[str, str]:
        name = self._deployed.recipe.server_key
        return {**further_secrets(self._deployed.recipe, os.environ), **({name: self._key} if name else {})}

    def form(self, *, limit_s: float) -> None:
        """Let every node take up its part; return when the first one's server process runs.

        Raises:
            NodesMissing: a node did not answer for `limit_s`.
            ServerDied: a node cannot take its part, or does not join the others.
        """
        request = self._deployed.request
        self._order(do="prepare", request=asdict(request), silence_s=request.settings["lease_stale_s"])
        if not self._all_prepared(limit_s):
            raise self._missing(f"within {limit_s:.0f} s")
        if not self.alive():
            self._settle()
            if any(state.prepared is None and state.died is None for state in self._states):
                raise self._missing("before the others had to give up")
            raise self.died()
        self._happened("nodes_ready")
        prepared = [state.prepared or {} for state in self._states]
        head = prepared[0]
        self._order(
            do="start",
            head_address=head["address"],
            port=head["port"],
            cluster_port=head["cluster_port"],
            addresses={state.name: each["address"] for state, each in zip(self._states, prepared, strict=True)},
        )
        logger.info(
            "server: %d nodes: %s", len(prepared), ", ".join(f"{each['name']} ({each['address']})" for each in prepared)
        )
        while not self._wait(lambda: self._trouble() or self._states[0].started is not None, _SILENT_S):
            self.check()
        self.check()
        started = self._states[0].started or {}
        host = self._deployed.host
        self._launch = Launch(
            argv=tuple(started["argv"]),
            env={},
            cwd=self._deployed.scratch,
            host=head["address"] if host in ("0.0.0.0", "::") else host,  # noqa: S104  # A comparison.
            port=head["port"],
            served_model=request.repo,
            secret_env=self._secrets(),
        )

    def _all_prepared(self, limit_s: float) -> bool:
        """Whether all nodes were prepared, or one has failed, before nothing was heard of any for `limit_s`."""
        self._moved_at = time.monotonic()
        while not self._wait(
            lambda: self._trouble() or all(state.prepared for state in self._states),
            limit_s - (time.monotonic() - self._moved_at),
        ):
            if time.monotonic() - self._moved_at >= limit_s:
                return False
        return True

    def _trouble(self) -> bool:
        return any(state.died or state.gone for state in self._states)

    def _missing(self, when: str) -> NodesMissing:
        absent = [f"{state.name} (rank {rank})" for rank, state in enumerate(self._states) if state.prepared is None]
        said = self._tail(self._agents_log, self._agents_log_start)
        return NodesMissing(
            f"{len(self._nodes) - len(absent)} of {len(self._nodes)} nodes took up their part {when}. "
            f"Missing: {', '.join(absent)}.",
            f"See whether these nodes are up, and whether Berth's files and this Python ({sys.executable}) are on a "
            f"file system that they share. {self._agents_log} has what the launcher said:\n{said}",
        )

    def _happened(self, event: str) -> None:
        self.events.append((event, time.monotonic() - self.started))

    def _order(self, **order: Any) -> None:
        line = json.dumps(order).encode() + b"\n"
        for process in self._processes:
            # A launcher that is gone is noticed by the end of its output.
            with contextlib.suppress(OSError, ValueError):
                assert process.stdin
                process.stdin.write(line)
                process.stdin.flush()

    def _keep_telling(self) -> None:
        while not self._over.wait(_PING_S):
            self._order(do="ping", number=0)

    def _listen(self, process: subprocess.Popen[bytes], ranks: Sequence[int]) -> None:
        decoder = Decoder()
        assert process.stdout
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout:
                found = decoder.feed(line.decode(errors="replace"))
                if found and found[0] in ranks:
                    self._take(*found)
        with self._changed:
            for rank in ranks:
                self._states[rank].gone = True
            self._changed.notify_all()

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        with self._changed:
            state = self._states[rank]
            state.heard = time.monotonic()
            event = message["event"]
            if event == "prepared":
                state.prepared = message
                if message["copied"]:
                    self._happened(f"node{rank}_model_ready")
            elif event == "copying":
                # A model may take longer to arrive than a node to answer.
                self._moved_at = state.heard
            elif event == "started":
                state.started = message
                self._happened(f"node{rank}_started")
            elif event == "joined":
                self._happened("cluster_formed")
            elif event == "died" and state.died is None:
                state.died, state.died_at = message, state.heard
            elif event == "pong":
                state.pong = max(state.pong, message["number"])
            elif event == "beat":
                state.moved |= set(message["moved"])
                state.listening = tuple(message["listening"])
            elif event == "ended":
                state.ended = True
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, max(limit_s, 0.0))

    def take_down(self, *, grace_s: float) -> None:
        """End every node's part, and the launcher.

        Raises:
            BerthError: when a process of this node outlives it.
        """
        self._order(do="stop")
        deadline = time.monotonic() + grace_s + _END_MARGIN_S
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(lambda: all(_over(state) for state in self._states), deadline - time.monotonic())
            for process in self._processes:
                process.wait(_ANSWER_S)
        self._over.set()
        step = next((state.prepared["step"] for state in self._states if state.prepared), "")
        if "." in step and any(process.poll() is None for process in self._processes):
            # The launcher waits for a node that will not answer.
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                command = ["scancel", "--signal=KILL", step]
                subprocess.run(command, timeout=_END_MARGIN_S, check=False, capture_output=True)
        end_processes(self._token, grace_s=grace_s)
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream:
                        stream.close()
        lost = [state.name for state in self._states if not state.ended]
        if lost:
            logger.warning("these nodes did not say that their part has ended: %s", ", ".join(lost))


class _Moves:
    def __init__(self, take: Callable[[], frozenset[str]]) -> None:
        self._take = take

    def sample(self) -> frozenset[str]:
        return self._take()


def _over(state: NodeState) -> bool:
    """Whether a node has ended its part, or never will: one that is lost is not waited for."""
    return state.ended or state.gone or time.monotonic() - state.heard > 2 * _ANSWER_S


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def serve_nodes(deployed: Deployed, nodes: Sequence[Node], *, key: str, token: str) -> Iterator[NodesServer]:
    """A server whose process on the first of its nodes runs; it is gone on all nodes when the block ends.

    Use it as serve().

    Raises:
        NodesMissing, ServerDied: it does not come up; the error names the node.
        BerthError: a launcher cannot be started, or something of it cannot be ended.
    """
    settings = deployed.request.settings
    server = NodesServer(deployed, nodes, token)

    def start() -> NodesServer:
        try:
            server.begin(key)
        except BaseException:
            server.take_down(grace_s=settings["stop_grace_s"])
            raise
        return server

    with held(start, grace_s=settings["stop_grace_s"]):
        server.form(limit_s=settings["stall_s"])
        yield server


def served(
    deployed: Deployed, nodes: Sequence[Node], *, key: str, token: str
) -> contextlib.AbstractContextManager[Running]:
    """The server of a deployment: in its release, through agents on the `nodes` of the job, or, with none, here."""
    if isinstance(deployed, Released):
        return serve_release(deployed, token)
    if nodes:
        return serve_nodes(deployed, nodes, key=key, token=token)
    return serve(
        deployed.launch(deployed.free_port(), key, token),
        log_path=deployed.server_log,
        token=token,
        grace_s=deployed.request.settings["stop_grace_s"],
        known_failures=deployed.known_failures,
    )
