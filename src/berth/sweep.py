"""One scheduler job: bring up one server, measure the missing points of one run in order, take it down."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.coordinates import RunId, level_words
from berth.errors import BerthError
from berth.kubelaunch import released
from berth.launch import Deployed, prepare
from berth.lease import LeaseLost, lease
from berth.measure import Session
from berth.measured import PointFailed
from berth.nodemodel import with_node_model
from berth.processes import new_token
from berth.progress import SweepProgress, span
from berth.ready import PortTaken
from berth.recording import Instance, failure_of, no_client, point_record, wall_since
from berth.runtime import Host
from berth.serve import ServerDied
from berth.signals import announce, raise_if_asked, terminate_as_exception, uninterrupted
from berth.spool import Spool, decided

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.coordinates import Level
    from berth.lease import Lease
    from berth.stopping import Asked

logger = logging.getLogger(__name__)

_PORT_TRIES = 3
_HEARTBEATS_PER_STALE = 6


class StartFailed(BerthError):  # noqa: N818  # What happened.
    """A server did not become ready; nothing was measured on it."""


@dataclass(frozen=True)
class SweepRequest:
    """Everything that one sweep is told: plain values, so that Snakemake can hand them to its job.

    `definition` is the spec in full; `levels` are all levels of the benchmark, measured or not. Times are in seconds.
    A server that is kept up is started from one too: without a dataset, and with `logs` as the folder of its logs.
    `tools` has `file` and `receipt` of each client other than vLLM's, by name.
    """

    experiment: str
    platform: str
    spec: str
    run: int
    definition: dict[str, Any]
    levels: list[Level]
    deployment: dict[str, Any]
    benchmark: dict[str, Any]
    recipe_file: str
    platform_settings: dict[str, Any]
    site: dict[str, Any]
    repo: str
    results: str
    settings: dict[str, Any]
    restarts: int
    # What kubeplan.release_request has of the deployment; empty on other platforms.
    kubernetes: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, dict[str, str]] = field(default_factory=dict)
    model_receipt: str = ""
    image_receipt: str = ""
    dataset_receipt: str = ""
    logs: str = ""
    # Where the sweep decides what is measured: how.
    asked: Asked | None = None

    @property
    def id(self) -> RunId:
        """The coordinates of the run."""
        return RunId(self.experiment, self.platform, self.spec, self.run)


def sweep(request: SweepRequest) -> None:
    """Measure what neither results nor the spool hold; return when every level was measured or has failed.

    A level that fails leaves a record in results/failures, and the others go on. The server that died is started
    again as often as the experiment allows.

    Raises:
        BerthError: nothing could be measured: the server did not become ready, or an input is wrong.
        Terminated: TERM or INT; the point in flight is abandoned, and everything finished is kept.
    """
    with terminate_as_exception():
        announce()
        _sweep(request)


def _sweep(request: SweepRequest) -> None:
    with leased(request) as (spool, held, token, host):
        missing = _missing(request, spool, set())
        if not missing:
            logger.info("%s: nothing is missing", request.id.key)
            return
        logger.info("%s: %d of %d points are missing", request.id.key, len(missing), len(request.levels))
        with brought_up(request, spool, held, token, host) as deployed:
            _Sweep(request, spool, held, token, deployed).run(missing)


def _missing(request: SweepRequest, spool: Spool, failed: set[Level]) -> list[Level]:
    """The levels that are still to be measured, of those that are this job's."""
    if request.asked is None:
        return [level for level in spool.missing(request.levels) if level not in failed]
    # Levels that the sweep adds are those of whichever job is the last.
    of_other_jobs = set(request.asked.levels) - set(request.levels)
    wanted = decided(spool.results, request.id, request.asked, failed).wanted
    return [level for level in spool.missing(wanted) if level not in failed | of_other_jobs]


@contextlib.contextmanager
def leased(request: SweepRequest) -> Iterator[tuple[Spool, Lease, str, Host]]:
    """The spool of a run that nobody else measures meanwhile, its lease, a new token, and this node.

    What a dead sweep of the run had left is ended.
    """
    spool = Spool(Path(request.results), request.id)
    stale_s = request.settings["lease_stale_s"]
    token = new_token()
    host = Host.here(request.platform_settings, request.platform)
    with lease(
        spool.folder,
        heartbeat_s=stale_s / _HEARTBEATS_PER_STALE,
        stale_s=stale_s,
        poll_s=1.0,
        on_wait=lambda holder: logger.info("waiting for the sweep that holds %s: %s", request.id.key, holder),
        token=token,
        podman=host.podman,
        environ=host.environ,
    ) as held:
        for ended in held.end_leftovers(grace_s=request.settings["stop_grace_s"]):
            what = f"{ended.name} (pid {ended.pid})" if ended.pid else f"container {ended.name}"
            logger.warning("ended what a dead sweep of this run had left: %s", what)
        yield spool, held, token, host


@contextlib.contextmanager
def brought_up(request: SweepRequest, spool: Spool, held: Lease, token: str, host: Host) -> Iterator[Deployed]:
    """The deployment on this node, or on its cluster, checked; nothing of it is left after the block."""
    if request.kubernetes:
        with released(request, host, token, spool.folder) as on_cluster:
            yield on_cluster
        return
    deployed = prepare(request, host)
    with contextlib.ExitStack() as stack:
        stack.callback(_end_containers, held, request)
        # Where the server is on several nodes, the agent of each looks at its own.
        if not deployed.spread:
            deployed = stack.enter_context(with_node_model(deployed))
            deployed.check_node(token)
        yield deployed


def _end_containers(held: Lease, request: SweepRequest) -> None:
    with uninterrupted():
        held.end_containers(grace_s=request.settings["stop_grace_s"])


@dataclass
class _Sweep:
    request: SweepRequest
    spool: Spool
    held: Lease
    token: str
    deployed: Deployed
    measured_s: float = 0.0
    lost_s: list[float] = field(default_factory=list)
    failed: set[Level] = field(default_factory=set)

    def run(self, missing: list[Level]) -> None:
        progress = SweepProgress(list(missing), file=self.spool.progress)
        started = time.monotonic()
        left = list(missing)
        try:
            for instance in range(1, self.request.restarts + 2):
                progress.server(instance)
                try:
                    self._one_server(instance, left, progress)
                except StartFailed as error:
                    # What was measured before stands: its points are accepted, the rest is told by their absence.
                    if instance == 1:
                        raise
                    logger.error("%s", error)  # noqa: TRY400  # The message holds cause, remedy and the log's end.
                    break
                if not left:
                    break
                if instance <= self.request.restarts:
                    logger.warning("starting the server again (%d of %d)", instance, self.request.restarts)
            else:
                logger.error("the server died once more; not measured: %s", ", ".join(map(level_words, left)))
        except LeaseLost:
            # The reserve and everything else in the spool are the successor's.
            raise
        except BaseException:
            self.spool.release()
            raise
        else:
            self.spool.release()
        finally:
            progress.end()
            wall_s = time.monotonic() - started
            if self.measured_s:
                lost = f", {sum(self.lost_s) / len(self.lost_s):.2f} s lost per point" if self.lost_s else ""
                logger.info(
                    "sweep ended after %s, %.0f %% of it measured%s",
                    span(wall_s),
                    100 * self.measured_s / wall_s,
                    lost,
                )

    def _one_server(self, instance: int, left: list[Level], progress: SweepProgress) -> None:
        """Measure levels, removing each from `left`, until none is left or the server is dead."""
        for attempt in range(1, _PORT_TRIES + 1):
            try:
                with self._session(instance, left[0]) as session:
                    # Should everything of this job be killed, the next sweep knows what lies in /dev/shm.
                    self.held.record_shared_memory()
                    self._measure(session, left, progress)
            except PortTaken as error:
                if attempt == _PORT_TRIES:
                    raise
                logger.warning("%s", error.cause)
            except ServerDied as death:
                logger.error("%s", death)  # noqa: TRY400  # The message holds cause, remedy and the log's end.
                break
            else:
                break

    @contextlib.contextmanager
    def _session(self, instance: int, next_level: Level) -> Any:
        started = time.time()
        with contextlib.ExitStack() as stack:
            try:
                session = stack.enter_context(
                    Session.open(self.deployed, self.request, self.token, instance, self.held.check)
                )
            except (ServerDied, BerthError) as error:
                raise_if_asked()
                # Nothing is measured by a server that does not come up: another start would fail the same way.
                if not isinstance(error, PortTaken | LeaseLost):
                    self._startup_failed(error, instance, started, next_level)
                    raise StartFailed(str(error)) from None
                raise
            yield session

    def _startup_failed(self, error: BerthError, instance: int, started: float, level: Level) -> None:
        log = self.deployed.log_name(getattr(error, "log_path", self.deployed.server_log))
        record = point_record(
            self.deployed,
            level,
            Instance(instance, [], ()),
            client=no_client(),
            wall=wall_since(started),
            failure=failure_of(error, log),
        )
        self.spool.fail(level, record, None)

    def _measure(self, session: Session, left: list[Level], progress: SweepProgress) -> None:
        while left:
            level = left[0]
            self.spool.reserve(self.request.benchmark["num_prompts"])
            progress.start(level)
            started = time.monotonic()
            try:
                point = session.measure(level, progress.update)
            except PointFailed as failed:
                # A point that was broken off by a signal has not failed: nothing is known of it.
                raise_if_asked()
                self.held.check()
                self.spool.fail(level, failed.record, failed.requests)
                self.failed.add(level)
                self._go_on(left, progress)
                progress.finish(level, time.monotonic() - started, f"FAILED: {failed.cause}", failed=True)
                if failed.death is not None:
                    raise failed.death from None
                continue
            # A holder that was suspended may have been replaced: its successor measures this point.
            self.held.check()
            self.spool.keep(level, point.record, point.requests)
            self._go_on(left, progress)
            self.measured_s += point.client_duration_s
            self.lost_s.append(time.monotonic() - started - point.client_duration_s)
            progress.finish(level, point.client_duration_s, point.told)

    def _go_on(self, left: list[Level], progress: SweepProgress) -> None:
        """Take the level that has ended off `left`, and where the sweep decides, let it decide on the others."""
        if self.request.asked is None:
            left.pop(0)
            return
        before, left[:] = left[1:], _missing(self.request, self.spool, self.failed)
        progress.replan(left)
        if left != before:
            logger.info("to be measured now: %s", ", ".join(map(level_words, left)) or "nothing more")
