"""One server under measurement: from its start until it is warm, then point by point."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.bench import settings_of
from berth.client import BenchClient, ClientFailed, open_client, warm_up_settings
from berth.coordinates import Rate
from berth.errors import BerthError
from berth.fleet import served
from berth.jobtime import ready_within_s
from berth.metrics import Difference, Snapshot, difference, read_metrics, wait_idle
from berth.nodemodel import with_copies
from berth.ready import wait_until_ready
from berth.recording import Instance, failure_of, point_record, wall_since
from berth.serve import ServerDied
from berth.validity import Observed, Thresholds, died, judge
from berth.watchdog import Stalled, TokenWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from berth.bench import BenchSettings
    from berth.coordinates import Level
    from berth.launch import Deployed
    from berth.measurement import Measurement
    from berth.serve import Running
    from berth.sweep import SweepRequest

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 10.0
# The client's own count moves at every finished request; the server is only asked when it has not moved for this long,
# so that asking does not disturb the measurement.
_ASK_SERVER_AFTER_S = 15.0
_CHECK_LEASE_EVERY_S = 5.0


@dataclass(frozen=True)
class Point:
    """A point that can be believed."""

    record: dict[str, Any]
    requests: dict[str, Any]
    client_duration_s: float
    told: str


class PointFailed(Exception):  # noqa: N818  # What happened, as in the record.
    """A point that was refused or broke off: its record, and the server's death where that was the cause."""

    def __init__(
        self, record: dict[str, Any], requests: dict[str, Any] | None, cause: str, death: ServerDied | None
    ) -> None:
        super().__init__(cause)
        self.record, self.requests, self.cause, self.death = record, requests, cause, death


@dataclass
class Session:
    """One ready and warm server with its client."""

    deployed: Deployed
    request: SweepRequest
    server: Running
    client: BenchClient
    settings: BenchSettings
    check_lease: Callable[[], None]
    instance: Instance

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        deployed: Deployed,
        request: SweepRequest,
        token: str,
        number: int,
        check_lease: Callable[[], None],
    ) -> Iterator[Session]:
        """Start server and client side by side, wait until both are ready, and warm the server up.

        Raises:
            OutOfTime: the job ends before the server can be ready.
            ServerDied, BerthError: as serve(), wait_until_ready() and the client have it.
        """
        limit_s = ready_within_s(request.platform_settings["warn_s"])
        key = deployed.new_key()
        nodes = deployed.job_nodes()
        own, rest = nodes[: request.deployment["nodes"]], nodes[request.deployment["nodes"] :]
        python, program = deployed.client(key, token, rest[0] if rest else None)
        with (
            served(deployed, own, key=key, token=token) as server,
            open_client(
                command_prefix=python.argv,
                worker_path=deployed.worker,
                vllm_command=program.argv,
                env=python.env,
                secret_env=python.secret_env,
                stop=python.stop,
                log_path=deployed.client_log,
                files=deployed.files,
                mode=request.settings["client_mode"],
            ) as client,
        ):
            deployed = with_copies(deployed, server.copies)
            settings = _bench_settings(deployed, request, server.client_url)
            # The copy was made once for all servers of the sweep, before the first.
            copied = deployed.copied.events if deployed.copied and number == 1 else ()
            before = [(event, at - server.started) for event, at in copied]
            instance = Instance(
                number,
                [{"event": event, "elapsed_s": round(elapsed_s, 3)} for event, elapsed_s in (*before, *server.events)],
                server.launch.argv,
                server.places,
                rest[0].name if rest else "",
            )
            session = cls(deployed, request, server, client, settings, check_lease, instance)
            # It imports vLLM and reads the dataset while the server loads the model.
            warm_up = warm_up_settings(settings, request.benchmark["warm_up_prompts"])
            client.prepare(*([warm_up] if warm_up.num_prompts else []), settings)
            timeline = wait_until_ready(
                server,
                api_key=key,
                checks=deployed.checks,
                stall_s=request.settings["stall_s"],
                request_timeout_s=_REQUEST_TIMEOUT_S,
                poll_s=_POLL_S,
                limit_s=limit_s,
            )
            deployed.start_cache.keep(deployed.cache)
            session.instance.timeline.extend(timeline.as_json())
            session.instance.timeline.sort(key=lambda entry: entry["elapsed_s"])
            client.wait_ready(should_stop=server.check)
            session._warm_up()
            yield session

    def _warm_up(self) -> None:
        count = self.request.benchmark["warm_up_prompts"]
        if count:
            concurrency = min(count, most_in_flight(self.request))
            # A server that hangs would hold its accelerators here as well as in a point.
            watch = _Watch(self, lambda _completed, _total: None)
            self.client.warm_up(
                self.settings,
                self.deployed.exchange,
                num_prompts=count,
                concurrency=concurrency,
                on_progress=watch.progress,
                should_stop=watch.should_stop,
            )
        elapsed_s = time.monotonic() - self.server.started
        self.instance.timeline.append({"event": "warmed_up", "elapsed_s": round(elapsed_s, 3)})
        logger.info("server: warm after %.1f s", elapsed_s)

    def measure(self, level: Level, on_progress: Callable[[int, int], None]) -> Point:
        """Measure one level and judge it.

        Raises:
            PointFailed: refused, or broken off; with the server's death where the server is dead.
            Terminated, BerthError: the sweep itself must end; nothing is recorded.
        """
        watch = _Watch(self, on_progress)
        started = time.time()
        try:
            self.server.check()
            before = self._counters(wait_idle)
            measured = self.client.measure(
                self.settings, level, self.deployed.exchange, watch.progress, watch.should_stop
            )
            self.server.check()
            self.instance.begin_measuring(measured.phase_start, time.monotonic() - self.server.started)
            counted = self._difference(before)
        except (ServerDied, Stalled, ClientFailed) as error:
            raise self._broke_off(level, error, started) from None
        return self._judged(level, measured, counted)

    def counters_now(self) -> Snapshot | None:
        """The server's counters, None where they cannot be read now."""
        return self._counters(read_metrics)

    def _counters(self, read: Callable[[str, float], Snapshot]) -> Snapshot | None:
        if not self.deployed.recipe.ready.metrics:
            return None
        try:
            return read(self.server.base_url, _REQUEST_TIMEOUT_S)
        except BerthError as error:
            self.server.check()
            logger.warning("no server metrics: %s", error)
            return None

    def _difference(self, before: Snapshot | None) -> Difference | None:
        after = self._counters(wait_idle)
        return None if before is None or after is None else difference(before, after)

    def _judged(self, level: Level, measured: Measurement, counted: Difference | None) -> Point:
        client = measured.client_section()
        judgement = judge(
            Observed(
                result=measured.result,
                requests=measured.requests,
                concurrency=level if isinstance(level, int) else most_in_flight(self.request),
                num_prompts=self.request.benchmark["num_prompts"],
                request_rate=level if isinstance(level, Rate) else self.request.benchmark["request_rate"],
                # With a limit, a rate is a wish; so is a concurrency at a rate.
                offered=isinstance(level, Rate) and self.request.benchmark["max_concurrency"] is None,
                server_metrics=counted.server_metrics if counted else None,
                restarted=counted.restarted if counted else False,
                cpu_fraction=client["cpu_fraction"],
            ),
            Thresholds(**self.request.benchmark["validity"]),
        )
        failure = None
        refused = judgement.verdict == "refused"
        if refused:
            reasons = " ".join(reason.message for reason in judgement.reasons)
            failure = {
                "kind": "invalid",
                "cause": reasons,
                "remedy": f"docs/validity.md explains {', '.join(reason.code for reason in judgement.reasons)}.",
                "log": self.deployed.log_name(self.deployed.client_log),
            }
        record = point_record(
            self.deployed,
            level,
            self.instance,
            client=client,
            wall=measured.wall_section(),
            version=measured.version,
            result=measured.result,
            server_metrics=counted.server_metrics if counted else None,
            validity=judgement.as_dict(),
            failure=failure,
        )
        if failure:
            raise PointFailed(record, measured.requests, failure["cause"], None)
        throughput = measured.result.get("output_throughput")
        told = f"{throughput:.1f} output tokens/s" if isinstance(throughput, float) else "measured"
        flags = ", ".join(reason.code for reason in judgement.reasons)
        return Point(
            record, measured.requests, measured.client_duration_s or 0.0, told + (f", {flags}" if flags else "")
        )

    def _broke_off(self, level: Level, error: BerthError, started: float) -> PointFailed:
        death = error if isinstance(error, ServerDied) else None
        if death is None:
            # A client that lost its server fails first; the server's end is the cause then.
            try:
                self.server.check()
            except ServerDied as found:
                death = found
        if isinstance(error, Stalled):
            death = self.server.died(error.cause)
        log = death.log_path if death else self.deployed.server_log
        failure = failure_of(death or error, self.deployed.log_name(log))
        record = point_record(
            self.deployed,
            level,
            self.instance,
            client=self.client.describe(self.settings, level),
            wall=wall_since(started),
            version=self.client.version,
            validity=died(failure["cause"], replaced=death.replaced) if death else None,
            failure=failure,
        )
        return PointFailed(record, None, failure["cause"], death)


class _Watch:
    """What is looked at several times a second while a point runs."""

    def __init__(self, session: Session, on_progress: Callable[[int, int], None]) -> None:
        self._session = session
        self._on_progress = on_progress
        self._completed = 0
        self._moved = self._leased = time.monotonic()
        self._tokens = TokenWatch(self._read, stall_s=session.request.settings["point_stall_s"])

    def progress(self, completed: int, total: int) -> None:
        if completed != self._completed:
            self._completed, self._moved = completed, time.monotonic()
        self._on_progress(completed, total)

    def should_stop(self) -> None:
        session = self._session
        server = session.server
        # Whether the process lives costs nothing; who listens on its port is read from the kernel's tables.
        if not server.alive():
            raise server.died()
        now = time.monotonic()
        if now - self._leased > _CHECK_LEASE_EVERY_S:
            self._leased = now
            server.check()
            session.check_lease()
            self._tokens.check()

    def _read(self) -> float | None:
        if time.monotonic() - self._moved < _ASK_SERVER_AFTER_S:
            return float(self._completed)
        counters = self._session.counters_now()
        tokens = counters.counters.get("generation_tokens") if counters else None
        return None if tokens is None else self._completed + tokens


def most_in_flight(request: SweepRequest) -> int:
    """The most requests that any point of the sweep can have in flight."""
    levels = [level for level in request.levels if isinstance(level, int)]
    if levels:
        return max(levels)
    return int(request.benchmark["max_concurrency"] or request.benchmark["num_prompts"])


def _bench_settings(deployed: Deployed, request: SweepRequest, base_url: str) -> BenchSettings:
    return settings_of(
        request.benchmark,
        base_url=base_url,
        served_model=request.repo,
        tokenizer=deployed.model_dir,
        dataset_path=deployed.dataset_path,
        client=deployed.recipe.client(request.deployment["version"]),
        dataset=request.definition["benchmark"]["dataset"],
    )
