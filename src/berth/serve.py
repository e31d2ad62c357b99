"""A server that lives exactly as long as a `with` block, whatever ends the block."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from berth import sockets
from berth.activity import ActivityMeter
from berth.checkup import ask
from berth.containers import tell_failed_stop
from berth.diagnose import diagnose
from berth.errors import BerthError
from berth.processes import TOKEN_VARIABLE, end_processes, find_processes, spawn
from berth.signals import uninterrupted

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import psutil

    from berth.diagnose import Diagnosis, KnownFailure

logger = logging.getLogger(__name__)

_PORT_FREE_S = 10.0
_STOP_PATIENCE_S = 30.0
_DRAIN_POLL_S = 0.1


@dataclass(frozen=True)
class Launch:
    """How a server is started.

    `env` and `secret_env` are its whole environment; `secret_env` is never shown. `host` and `port` are where it
    listens, `served_model` is the name that it answers to. `stop` are further commands that end it, such as
    ("podman", "stop", NAME): all of them run, in this order, before its processes are ended.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    host: str
    port: int
    served_model: str
    secret_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    stop: tuple[tuple[str, ...], ...] = ()


class Meter(Protocol):
    """Tells what moved since it was last asked."""

    def sample(self) -> frozenset[str]:
        """Some of "log", "read", "cpu"."""


class Running(Protocol):
    """A server as readiness and measurement see it, on one node or on several.

    `started` is on time.monotonic(); `events` are what happened since, before the first look, in seconds.
    """

    log_path: Path
    log_start: int
    started: float
    events: list[tuple[str, float]]

    @property
    def launch(self) -> Launch:
        """How it was started."""

    @property
    def places(self) -> list[dict[str, str]]:
        """Name and address of its nodes, where they are not this one alone."""

    @property
    def copies(self) -> list[dict[str, Any]]:
        """What its nodes told of the model on their own disks, where they are not this one alone."""

    @property
    def base_url(self) -> str:
        """Its address without a path."""

    @property
    def client_url(self) -> str:
        """The same as the benchmark client reaches it."""

    def alive(self) -> bool:
        """Whether everything that was started still runs. Cheap: it is asked several times a second."""

    def check(self) -> None:
        """Return when it is the one that was started, and is there; else raise ServerDied."""

    def died(self, cause: str | None = None) -> ServerDied:
        """The error that tells why it ended."""

    def pin(self) -> None:
        """From now on, whoever listens on its port is it."""

    def listening(self) -> frozenset[str]:
        """The sockets that a connection to its port may reach."""

    def own_sockets(self) -> frozenset[str]:
        """Those that are its own."""

    def drain(self, limit_s: float) -> bool:
        """Ask it to answer what it has begun and to end, and wait for that; whether it has ended in time."""

    def meter(self, own_paths: Sequence[str]) -> Meter:
        """Tells whether it gets on."""


class _TakenDown(Protocol):
    def take_down(self, *, grace_s: float) -> None: ...


T = TypeVar("T", bound=_TakenDown)


class ServerDied(BerthError):  # noqa: N818 - what happened, as sweeps report it.
    """The server ended or was replaced while it was needed: cause, remedy and the end of its log."""

    kind = "crash"

    def __init__(
        self, diagnosis: Diagnosis, log_path: Path, returncode: int | None = None, *, replaced: bool = False
    ) -> None:
        # Another one runs in its place already.
        self.replaced = replaced
        # Shells and container runtimes give a signal as 128 and its number.
        self.signalled = returncode is not None and (returncode < 0 or returncode > 128)
        self.cause = diagnosis.cause
        self.remedy = diagnosis.remedy
        self.line = diagnosis.line
        self.tail = diagnosis.tail
        self.log_path = log_path
        found = f"\nLine: {diagnosis.line}" if diagnosis.line else ""
        super().__init__(f"{self.cause}\nWhat to do: {self.remedy}{found}\nLog: {log_path}\n{self.tail}".rstrip())


class Server:
    """A server that was started. `started` is when, on time.monotonic()."""

    def __init__(
        self,
        launch: Launch,
        process: subprocess.Popen[bytes],
        *,
        token: str,
        log_path: Path,
        log_start: int,
        known_failures: Sequence[KnownFailure],
    ) -> None:
        self.launch = launch
        self.token = token
        self.log_path = log_path
        self.log_start = log_start
        self.started = time.monotonic()
        self.events: list[tuple[str, float]] = []
        self._process = process
        self._known_failures = known_failures
        self._listeners: frozenset[str] = frozenset()

    @property
    def pid(self) -> int:
        """The pid of the process that was started, which is also its session."""
        return self._process.pid

    @property
    def places(self) -> list[dict[str, str]]:
        """None: it is on this node."""
        return []

    @property
    def copies(self) -> list[dict[str, Any]]:
        """None: who started it knows."""
        return []

    @property
    def base_url(self) -> str:
        """The address of the server without a path, such as "http://127.0.0.1:8000"."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.launch.host, self.launch.host)  # noqa: S104
        return f"http://[{host}]:{self.launch.port}" if ":" in host else f"http://{host}:{self.launch.port}"

    @property
    def client_url(self) -> str:
        """The same: the client is on this node."""
        return self.base_url

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs.

        The process is not reaped here: its number must not be given to another process before its session is ended.
        """
        if self._process.returncode is not None:
            return self._process.returncode
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self.returncode is None

    def processes(self) -> list[psutil.Process]:
        """All living processes of the server."""
        return find_processes(self.token, session=None if self._process.returncode is not None else self.pid)

    def meter(self, own_paths: Sequence[str]) -> ActivityMeter:
        """Tells whether it gets on; lines of the log that answer these paths are no progress."""
        return ActivityMeter(self.processes, self.log_path, log_start=self.log_start, own_paths=own_paths)

    def listening(self) -> frozenset[str]:
        """The sockets that a connection to its port may reach."""
        return sockets.listeners(self.launch.host, self.launch.port)

    def own_sockets(self) -> frozenset[str]:
        """Those that its processes hold."""
        return sockets.sockets_of(process.pid for process in self.processes())

    def pin(self) -> None:
        """Remember the sockets that listen on the port now, so that check() notices another server in their place."""
        self._listeners = self.listening()

    def check(self) -> None:
        """Return when the server is the one that was started, and is there.

        Raises:
            ServerDied: when its process ended, or (after pin()) others than its own sockets listen on its port.
        """
        if not self.alive():
            raise self.died()
        if self._listeners and self.listening() != self._listeners:
            raise self.died(
                f"The server on port {self.launch.port} was replaced, or no longer listens, while its process "
                f"{self.pid} runs."
            )

    def died(self, cause: str | None = None) -> ServerDied:
        """The error that tells why the server ended; `cause` says what was seen when the process still runs."""
        diagnosis = diagnose(
            self.log_path,
            known_failures=self._known_failures,
            returncode=self.returncode,
            secrets=self.launch.secret_env.values(),
            start=self.log_start,
        )
        if cause is not None:
            diagnosis = replace(diagnosis, cause=f"{cause} {diagnosis.cause}")
        return ServerDied(diagnosis, self.log_path, self.returncode)

    def ask_to_end(self) -> None:
        """Send TERM to the process that was started, and to no other: its workers are needed for requests in flight."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)

    def drain(self, limit_s: float) -> bool:
        """Ask the server to answer what it has begun and to end, and wait for that; whether it has ended in time.

        `podman run` and the guard of Apptainer hand TERM on to the server.
        """
        self.ask_to_end()
        return wait_for_end(self.alive, limit_s)

    def take_down(self, *, grace_s: float) -> None:
        """End the server with all its processes, remove its shared memory, and see that its port is free.

        Raises:
            BerthError: when a process or the port outlives it.
        """
        processes = self.processes()
        shared = sockets.shared_memory_of(process.pid for process in processes)
        owned = sockets.sockets_of(process.pid for process in processes) | self._listeners
        for command in self.launch.stop:
            self._run_stop(command, grace_s)
        ended = end_processes(
            self.token, grace_s=grace_s, session=None if self._process.returncode is not None else self.pid
        )
        self._process.wait()
        killed = [f"{entry.name} ({entry.pid})" for entry in ended if entry.signal == "KILL"]
        if killed:
            logger.warning("The server did not end within %g s of TERM; killed: %s", grace_s, ", ".join(killed))
        removed = sockets.remove_shared_memory(shared)
        if removed:
            logger.info("Removed what the server left in /dev/shm: %s", ", ".join(removed))
        deadline = time.monotonic() + _PORT_FREE_S
        while self.listening() & owned:
            if time.monotonic() > deadline:
                raise BerthError(
                    f"Port {self.launch.port} is still held after the server and its processes ended. A container of "
                    "it probably runs on: list the containers of this node, and end it."
                )
            time.sleep(0.1)

    def _run_stop(self, command: tuple[str, ...], grace_s: float) -> None:
        # The token must not be in it, or the command would count as a process of the server.
        env = {name: value for name, value in self.launch.env.items() if name != TOKEN_VARIABLE}
        tell_failed_stop(command, ask(*command, environ=env, timeout_s=grace_s + _STOP_PATIENCE_S))


def wait_for_end(alive: Callable[[], bool], limit_s: float) -> bool:
    """Whether a server ended within `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(_DRAIN_POLL_S)
    return True


def serve(
    launch: Launch, *, log_path: Path, token: str, grace_s: float, known_failures: Sequence[KnownFailure]
) -> contextlib.AbstractContextManager[Server]:
    """A started server, which is gone with all its children when the block ends, whatever ended it.

    Use it in the main thread, inside terminate_as_exception(), so that TERM and INT end the block too. After SIGKILL
    of the caller the kernel asks the server to end, and find_processes(token) finds what did not.

    Raises:
        BerthError: when it cannot be started, or, after a block that ended well, when something of it cannot be ended.
    """

    def start() -> Server:
        log_start = log_path.stat().st_size if log_path.exists() else 0
        process = spawn(
            launch.argv,
            env=launch.env,
            secret_env=launch.secret_env,
            cwd=launch.cwd,
            log_path=log_path,
            token=token,
        )
        return Server(
            launch, process, token=token, log_path=log_path, log_start=log_start, known_failures=known_failures
        )

    return held(start, grace_s=grace_s)


@contextlib.contextmanager
def held(start: Callable[[], T], *, grace_s: float) -> Iterator[T]:
    """What `start` started, which is taken down when the block ends, whatever ended it; see serve().

    Raises:
        BerthError: by `start`, or, after a block that ended well, by what is taken down.
    """
    started: list[T] = []
    in_flight: list[BaseException] = []

    def take_down() -> None:
        while started:
            with uninterrupted():
                try:
                    started[-1].take_down(grace_s=grace_s)
                except BerthError as error:
                    if not in_flight:
                        raise
                    logger.error("%s", error)  # noqa: TRY400 - a message for people, its traceback adds nothing.
                    in_flight[0].add_note(str(error))
                finally:
                    started.pop()

    # Should a signal hit the few instructions before a `finally` takes hold, the interpreter's end still takes it down.
    atexit.register(take_down)
    try:
        try:
            with uninterrupted():
                started.append(start())
            yield started[0]
        except BaseException as error:
            in_flight.append(error)
            raise
        finally:
            take_down()
    finally:
        # Once more, because the first and only signal may have come just before the shield of the first was up.
        take_down()
        atexit.unregister(take_down)
