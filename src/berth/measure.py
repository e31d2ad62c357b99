"""One server under measurement: from its start until it is warm, then point by point."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from berth._client_watch import clock_offset_s
from berth.clean import CacheNotReset, Idle, reset_prefix_cache, wait_until_idle
from berth.client import ClientFailed, warm_up_settings
from berth.clientchoice import client_of
from berth.errors import BerthError
from berth.fleet import served
from berth.jobtime import ready_within_s
from berth.measured import Point, PointFailed, in_flight, judged, refusal
from berth.metrics import Difference, Snapshot, difference, read_metrics, wait_idle
from berth.mode import Method, cache_state, mode_of, point_seed
from berth.nodemodel import with_copies
from berth.nodes import beside_server
from berth.pointwatch import PointWatch
from berth.power import Sampling
from berth.ready import wait_until_ready
from berth.recording import Instance, failure_of, point_record, wall_since
from berth.serve import ServerDied
from berth.validity import died, not_idle, policy_of
from berth.watchdog import Stalled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from berth.bench import BenchSettings
    from berth.clientchoice import BenchmarkClient
    from berth.coordinates import Level
    from berth.launch import Deployed
    from berth.serve import Running
    from berth.sweep import SweepRequest

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 10.0


@dataclass
class Session:
    """One ready and warm server with its client."""

    deployed: Deployed
    request: SweepRequest
    server: Running
    client: BenchmarkClient
    settings: BenchSettings
    check_lease: Callable[[], None]
    instance: Instance
    other_client: Callable[[str], AbstractContextManager[BenchmarkClient]]
    key: str = field(default="", repr=False)

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
        clients = partial(client_of, deployed, key, token, rest[0] if rest else None)
        with served(deployed, own, key=key, token=token) as server, clients() as client:
            deployed = with_copies(deployed, server.copies)
            settings = deployed.settings(server.client_url)
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
            session = cls(deployed, request, server, client, settings, check_lease, instance, clients, key)
            # It imports vLLM and reads the dataset while the server loads the model.
            warm_up = warm_up_settings(settings, request.benchmark["warm_up_prompts"])
            first = session._settings(min(request.levels))
            client.prepare(*([warm_up] if warm_up.num_prompts else []), first)
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
            session.warm_up()
            yield session

    @contextlib.contextmanager
    def with_client(self, name: str) -> Iterator[Session]:
        """The same server, measured by the client of this name, which is ready and has sent its warm-up.

        Raises:
            BerthError: as the client has it.
        """
        with self.other_client(name) as client:
            other = replace(self, client=client)
            warm_up = warm_up_settings(self.settings, self.request.benchmark["warm_up_prompts"])
            client.prepare(*([warm_up] if warm_up.num_prompts else []), self.settings)
            client.wait_ready(should_stop=self.server.check)
            other.warm_up()
            yield other

    def warm_up(self) -> None:
        """Send the requests that are not measured."""
        count = self.request.benchmark["warm_up_prompts"]
        if count:
            self._send_warm_up(count, min(count, in_flight(self.request, max(self.request.levels))))
        elapsed_s = time.monotonic() - self.server.started
        self.instance.timeline.append({"event": "warmed_up", "elapsed_s": round(elapsed_s, 3)})
        logger.info("server: warm after %.1f s", elapsed_s)

    def _send_warm_up(self, count: int, concurrency: int) -> None:
        # A server that hangs would hold its accelerators here as well as in a point.
        watch = self._watch(_no_progress)
        self.client.warm_up(
            self.settings,
            self.deployed.exchange,
            num_prompts=count,
            concurrency=concurrency,
            on_progress=watch.progress,
            should_stop=watch.should_stop,
        )

    def measure(self, level: Level, on_progress: Callable[[int, int], None]) -> Point:
        """Measure one level and judge it.

        Raises:
            PointFailed: refused, or broken off; with the server's death where the server is dead.
            Terminated, BerthError: the sweep itself must end; nothing is recorded.
        """
        started, offset_s = time.time(), clock_offset_s()
        settings = self._settings(level)
        mode = mode_of(self.request.benchmark)
        method = Method(mode, settings.seed, prefix_cache="as_it_was" if mode == "paper" else None)
        idle: Idle | None = None
        try:
            self.server.check()
            if method.mode == "clean":
                method, idle = self._clean(level, method, started)
            watch = self._watch(on_progress)
            before = self._counters(wait_idle)
            with self._power() as power:
                measured = self.client.measure(
                    settings, level, self.deployed.exchange, watch.progress, watch.should_stop
                )
            self.server.check()
            self.instance.begin_measuring(measured.phase_start, time.monotonic() - self.server.started)
            counted = self._difference(before)
        except (ServerDied, Stalled, ClientFailed, CacheNotReset) as error:
            raise self._broke_off(level, error, started, method) from None
        return judged(
            self.deployed,
            level,
            self.instance,
            measured,
            counted,
            method=method,
            idle=idle,
            clock_step_s=clock_offset_s() - offset_s,
            engine_version=self.client.engine_version,
            power=power,
        )

    def _power(self) -> Sampling:
        platform = self.request.platform_settings
        nodes = self.deployed.job_nodes()[: self.request.deployment["nodes"]]
        # The nodes of a cluster's pods are not this job's to look at.
        settings = None if self.request.kubernetes else platform.get("power")
        return Sampling(settings, [beside_server(platform, node) for node in nodes] or [()])

    def _settings(self, level: Level) -> BenchSettings:
        return replace(self.settings, seed=point_seed(self.request.benchmark, level))

    def _clean(self, level: Level, method: Method, started: float) -> tuple[Method, Idle | None]:
        """Bring the server into the state in which every point of mode clean begins: warm, idle, nothing cached.

        Raises:
            PointFailed: it has other work, and the point is refused for that.
        """
        count = self.request.benchmark["warm_up_prompts"]
        self._send_warm_up(count, min(count, in_flight(self.request, level)))
        policy = policy_of(self.request.benchmark["validity"])
        idle = wait_until_idle(
            self.counters_now, limit_s=policy.thresholds.idle_wait_s, should_stop=self._watch(_no_progress).look
        )
        method = replace(method, warm_up_prompts=count, idle_wait_s=idle.waited_s if idle else None)
        if idle and idle.busy:
            judgement = not_idle(idle.busy, idle.requests, policy)
            if judgement.verdict == "refused":
                failure = refusal(judgement, self.deployed)
                raise self._failed(level, failure, started, method=method, validity=judgement.as_dict())
        serve = self.request.definition["serve"]
        state = cache_state(self.deployed.recipe, serve["args"], serve["env"])
        cache = self.deployed.recipe.prefix_cache
        # Blocks of requests in flight cannot be emptied: a busy server that the policy accepts keeps its cache.
        if state == "reset" and cache is not None:
            if idle and idle.busy:
                return replace(method, prefix_cache="as_it_was"), idle
            reset_prefix_cache(self.server.base_url, cache.reset, key=self.key)
        return replace(method, prefix_cache=state), idle

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

    def _broke_off(self, level: Level, error: BerthError, started: float, method: Method) -> PointFailed:
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
        validity = died(failure["cause"], replaced=death.replaced) if death else None
        return self._failed(level, failure, started, method=method, validity=validity, death=death)

    def _failed(
        self,
        level: Level,
        failure: dict[str, Any],
        started: float,
        *,
        method: Method,
        validity: dict[str, Any] | None,
        death: ServerDied | None = None,
    ) -> PointFailed:
        record = point_record(
            self.deployed,
            level,
            self.instance,
            client=self.client.describe(self._settings(level), level),
            wall=wall_since(started),
            version=self.client.engine_version,
            validity=validity,
            failure=failure,
            method=method,
        )
        return PointFailed(record, None, failure["cause"], death)

    def _watch(self, on_progress: Callable[[int, int], None]) -> PointWatch:
        return PointWatch(self, on_progress, stall_s=self.request.settings["point_stall_s"])


def _no_progress(_completed: int, _total: int) -> None:
    """Requests that are not measured are no progress of a point."""
