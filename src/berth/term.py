"""One term of a served deployment: one job that starts its server, tells where it is, watches it and ends it.

A server that fails after it has served for a while is started again in the same job: to give its nodes back would mean
to wait for them in the queue. One that fails at once ends the job, so that the keeper waits, and tries other nodes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.binding import at_interface
from berth.config import ServiceSettings
from berth.errors import BerthError
from berth.fleet import served
from berth.holder import Identity, job_id
from berth.jobtime import ready_within_s, seconds_left
from berth.launch import prepare
from berth.lease import end_leftover
from berth.meanwhile import every
from berth.nodemodel import with_node_model
from berth.nodes import Node, job_nodes, own_address
from berth.probe import ask
from berth.processes import find_processes, new_token
from berth.ready import PortTaken, wait_until_ready
from berth.runtime import Host
from berth.services import key_in
from berth.signals import Terminated, announce, raise_if_asked, terminate_as_exception, uninterrupted
from berth.sockets import shared_memory_of
from berth.sweep import SweepRequest
from berth.termfiles import Failure, Report, TermFiles
from berth.walltime import WARNING_EARLY_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.launch import Deployed
    from berth.serve import Running

logger = logging.getLogger(__name__)

_PORT_TRIES = 3
_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 10.0
# The scheduler is asked for the job's end with one in so many looks at the server's health.
_CHECKS_PER_LIMIT = 10
_ROUNDING_S = 5.0
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # Addresses to compare with.
# What of the time after the scheduler's warning is left for ending what did not drain, and for the job's own end.
_END_S = 5.0
WALLTIME_REMEDY = "Nothing: the keeper starts the next one. Raise services.minutes for fewer changes."


@dataclass(frozen=True)
class TermRequest:
    """What the job of one term is told, as plain values: `server` has the fields of sweep.SweepRequest."""

    deployment: str
    platform: str
    number: int
    results: str
    server: dict[str, Any]
    settings: dict[str, Any]


def run_term(request: TermRequest) -> None:
    """Serve until the keeper wants no more of it; return then.

    Raises:
        BerthError: the server does not come up, or fails soon after.
        Terminated: TERM or INT: the walltime's end, or somebody cancelled the job.
    """
    with terminate_as_exception():
        announce()
        files = TermFiles.of(Path(request.results), request.platform, request.deployment)
        order = files.order(request.number)
        if order is None or order.stop:
            logger.warning("t%d of %s is not wanted (any more)", request.number, request.deployment)
            return
        _Term(request, SweepRequest(**request.server), files, order.key_file).run()


@dataclass
class _Term:
    request: TermRequest
    launch: SweepRequest
    files: TermFiles
    key_file: str
    token: str = field(default_factory=new_token)
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.settings = ServiceSettings(**self.request.settings)
        self.report = Report(
            number=self.request.number,
            state="starting",
            job_id=job_id() or str(Identity.current().pid),
            identity=Identity.current().as_json(),
            token=self.token,
            at=time.time(),
            started=time.time(),
            host=socket.gethostname(),
            ends=_ends(),
        )

    def run(self) -> None:
        grace_s = self.launch.settings["stop_grace_s"]
        self._tell()
        with self._beating():
            self._run(grace_s)

    def _run(self, grace_s: float) -> None:
        host: Host | None = None
        try:
            host = Host.here(self.launch.platform_settings, self.request.platform)
            self._tell(podman=host.podman)
            self._clean(host, grace_s)
            deployed = prepare(at_interface(self.launch), host)
            with contextlib.ExitStack() as stack:
                # Where the server is on several nodes, the agent of each looks at its own.
                if not deployed.spread:
                    deployed = stack.enter_context(with_node_model(deployed))
                    deployed.check_node(self.token)
                self._serve_on(deployed)
        except Terminated:
            self._ended("cancelled", "The job was asked to end before its server was ready.")
            raise
        except BerthError as error:
            self._ended(*why_of(error))
            raise
        else:
            self._ended("stopped", "It was asked to end.")
        finally:
            if host is not None:
                with uninterrupted():
                    end_leftover(self.report.leftover, host.environ, grace_s=grace_s)

    def _clean(self, host: Host, grace_s: float) -> None:
        """End what killed jobs of this deployment left on this node."""
        here = Identity.current()
        for number in self.files.reported():
            old = None
            # One that cannot be read must not keep this one from starting.
            with contextlib.suppress(BerthError):
                old = self.files.report(number)
            if number == self.request.number or old is None or old.cleaned or old.state == "ended":
                continue
            if here.same_kernel(old.process) and here.knows_dead(old.process):
                for ended in end_leftover(old.leftover, host.environ, grace_s=grace_s):
                    what = f"{ended.name} (pid {ended.pid})" if ended.pid else f"container {ended.name}"
                    logger.warning("ended what t%d had left: %s", number, what)
                self.files.tell(replace(old, cleaned=True))

    def _serve_on(self, deployed: Deployed) -> None:
        tries = 0
        while True:
            try:
                self._one_server(deployed)
            except PortTaken as error:
                tries += 1
                if tries == _PORT_TRIES:
                    raise
                logger.warning("%s", error.cause)
            except BerthError as error:
                raise_if_asked()
                served_s = time.time() - self.report.ready_at if self.report.ready_at else 0.0
                if served_s < self.settings.quick_s or not self._wanted():
                    raise
                logger.error("%s", error)  # noqa: TRY400  # The message holds cause, remedy and the log's end.
                failure = Failure(self.report.answered, *why_of(error))
                self._tell(state="starting", ready_at=0.0, failures=(*self.report.failures, failure))
                logger.warning("starting the server again in this job")
            else:
                return

    def _one_server(self, deployed: Deployed) -> None:
        limit_s = ready_within_s(self.launch.platform_settings["warn_s"])
        # Read for each server: a key that was changed counts from the next one on.
        key = key_in(Path(self.key_file))
        with served(deployed, deployed.job_nodes(), key=key, token=self.token) as server:
            try:
                wait_until_ready(
                    server,
                    api_key=key,
                    checks=deployed.checks,
                    stall_s=self.launch.settings["stall_s"],
                    request_timeout_s=_REQUEST_TIMEOUT_S,
                    poll_s=_POLL_S,
                    limit_s=limit_s,
                )
                deployed.start_cache.keep(deployed.cache)
                self._ready(deployed, server)
                self._watch(server, deployed.checks.health_path)
                self._drain(server, self.settings.drain_s)
            except Terminated as asked:
                with uninterrupted():
                    self._asked_to_end(server, asked)
                raise

    def _ready(self, deployed: Deployed, server: Running) -> None:
        name, address = place_of(deployed, server)
        now = time.time()
        shared = shared_memory_of(process.pid for process in find_processes(self.token))
        self._tell(
            state="ready",
            host=name,
            address=address,
            port=server.launch.port,
            ready_at=now,
            answered=now,
            shared_memory=shared,
        )
        logger.info("ready at %s (%s), port %d", name, address, server.launch.port)

    def _watch(self, server: Running, health_path: str) -> None:
        """Return when the keeper wants no more of the server.

        Raises:
            ServerDied: it ended, was replaced, or has not answered for too long.
        """
        looked = time.monotonic()
        checks = 0
        while True:
            raise_if_asked()
            if not server.alive():
                raise server.died()
            if time.monotonic() - looked >= self.settings.check_s:
                looked = time.monotonic()
                server.check()
                checks += 1
                if checks % _CHECKS_PER_LIMIT == 0:
                    self._ask_for_end()
                answer = ask(server.base_url, health_path, timeout_s=_REQUEST_TIMEOUT_S)
                now = time.time()
                if answer.status != 200 and now - self.report.answered > self.settings.unhealthy_s:
                    raise server.died(
                        f"{health_path} has not answered 200 for {self.settings.unhealthy_s:g} s ({answer})."
                    )
                self._tell(answered=now if answer.status == 200 else self.report.answered)
                if not self._wanted():
                    return
            time.sleep(_POLL_S)

    def _ask_for_end(self) -> None:
        """Note the job's end anew where an operator has changed it; the scheduler's own rounding is no change."""
        ends, known = _ends(), self.report.ends
        if ends is None or known is None or abs(ends - known) > _ROUNDING_S:
            self.report = replace(self.report, ends=ends)

    def _wanted(self) -> bool:
        try:
            order = self.files.order(self.request.number)
        except BerthError as error:
            # A file system that fails for a while must not end a server that answers.
            logger.warning("%s", error)
            return True
        return order is not None and not order.stop and (order.until is None or time.time() < order.until)

    def _asked_to_end(self, server: Running, asked: Terminated) -> None:
        now, warn_s = time.time(), self.launch.platform_settings["warn_s"]
        # Asked again: a limit that was shortened is warned of at once.
        self.report = replace(self.report, ends=_ends() or self.report.ends)
        over = self.report.ends is not None and self.report.ends - now <= warn_s + WARNING_EARLY_S
        if over:
            told = {"kind": "walltime", "cause": "The job's time is over.", "remedy": WALLTIME_REMEDY}
        else:
            told = {
                "kind": "cancelled",
                "cause": f"The job was {asked} before its time was over.",
                "remedy": "See who cancelled it: the scheduler, an operator, or you.",
            }
        self._tell(**told)
        left_s = self.report.ends - now if over and self.report.ends else warn_s or self.settings.drain_s
        self._drain(server, min(self.settings.drain_s, left_s - self.launch.settings["stop_grace_s"] - _END_S))

    def _drain(self, server: Running, limit_s: float) -> None:
        was_ready = bool(self.report.ready_at)
        self._tell(state="draining", answered=time.time() if was_ready else 0.0)
        if not was_ready:
            return
        began = time.monotonic()
        if server.drain(max(limit_s, 0.0)):
            logger.info("the server answered what it had begun, and ended after %.1f s", time.monotonic() - began)
        else:
            logger.warning("requests were still in flight %g s after TERM; the server is ended", limit_s)

    def _ended(self, kind: str, cause: str, remedy: str = "") -> None:
        # What was told before says more: the signal, and not what came of it.
        why = {} if self.report.kind else {"kind": kind, "cause": cause, "remedy": remedy}
        self._tell(state="ended", **why)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Show that the job lives, by the report's time stamp, also while the server loads for a long time."""

        def beat() -> None:
            with contextlib.suppress(OSError):
                os.utime(self.files.report_path(self.request.number))

        with every(self.settings.check_s, beat, name="beat"):
            yield

    def _tell(self, **changes: Any) -> None:
        self.report = replace(self.report, at=time.time(), **changes)
        # A disk that is full for a while must not end a server that answers.
        with contextlib.suppress(OSError):
            self.files.tell(self.report)


def _ends() -> float | None:
    left_s = seconds_left()
    return None if left_s is None else time.time() + left_s


def why_of(error: BerthError) -> tuple[str, str, str]:
    """Kind, cause and remedy of an error."""
    return getattr(error, "kind", "crash"), getattr(error, "cause", str(error)), getattr(error, "remedy", "")


def place_of(deployed: Deployed, server: Running) -> tuple[str, str]:
    """Name of the node at which a server is reached, and its address there; "" where the name has to do."""
    settings = deployed.request.platform_settings
    if server.places:
        return server.places[0]["name"], server.places[0]["address"]
    in_job = settings["scheduler"] in ("slurm", "flux") and job_id() is not None
    node = job_nodes(settings, 1)[0] if in_job else Node(socket.gethostname(), "")
    if deployed.host not in _EVERYWHERE:
        return node.name, deployed.host
    return node.name, own_address(node, settings["interface"])[0] if in_job or settings["interface"] else ""
