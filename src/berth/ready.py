"""When a server may be measured: it runs, answers as ours, knows its model, and has completed a token."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.diagnose import read_log, redact
from berth.errors import BerthError
from berth.probe import Answer, ask_aside
from berth.signals import raise_if_asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from berth.serve import Running

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 30.0
MORE_TIME = "Ask for more walltime: snakemake --set-resources sweep:runtime=MINUTES."
_REFUSED = (401, 403)
# A request of ours that the server calls wrong stays wrong, however often it is repeated.
_HOPELESS = (400, 404, 405, 422)


@dataclass(frozen=True)
class Checks:
    """What is asked of a server. `keyed` says that it must refuse requests that lack the key."""

    health_path: str = "/health"
    models_path: str = "/v1/models"
    completion_path: str = "/v1/chat/completions"
    keyed: bool = True


@dataclass(frozen=True)
class Event:
    """Something that happened `elapsed_s` seconds after the server was started."""

    event: str
    elapsed_s: float


@dataclass(frozen=True)
class Timeline:
    """What happened until a server was ready: process_started, listening, health, models, first_completion."""

    events: tuple[Event, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """The list as a point record holds it, in seconds with milliseconds."""
        return [{"event": entry.event, "elapsed_s": round(entry.elapsed_s, 3)} for entry in self.events]


class NotReady(BerthError):  # noqa: N818 - what happened, as sweeps report it.
    """A server that runs, but will not become ready: cause and remedy."""

    kind = "crash"

    def __init__(self, cause: str, remedy: str, *, tail: str = "") -> None:
        self.cause = cause
        self.remedy = remedy
        self.tail = tail
        super().__init__(f"{cause}\nWhat to do: {remedy}\n{tail}".rstrip())


class OutOfTime(NotReady):
    """The job's time does not suffice to see the server ready."""

    kind = "aborted"


class PortTaken(NotReady):
    """Another server answers on our port. A new start on another port helps."""


def wait_until_ready(
    server: Running,
    *,
    api_key: str,
    checks: Checks,
    stall_s: float,
    request_timeout_s: float,
    poll_s: float,
    limit_s: float | None = None,
    on_event: Callable[[str, float], None] | None = None,
) -> Timeline:
    """Return when the server can be measured; the model asked for is the launch's `served_model`.

    There is no fixed deadline. The wait ends when nothing has moved for `stall_s` seconds: neither a check passed, nor
    the log grew, nor its processes read or (before it is healthy) computed. `limit_s` since the start of the server
    ends it in any case.

    Raises:
        ServerDied: at once, when its process ends.
        PortTaken: when another server answers on the port.
        OutOfTime: when it reaches the limit.
        NotReady: when it stalls, or refuses the completion.
    """
    wait = _Wait(
        server,
        api_key=api_key,
        checks=checks,
        stall_s=stall_s,
        request_timeout_s=request_timeout_s,
        poll_s=poll_s,
        limit_s=limit_s,
        on_event=on_event,
    )
    return wait.run()


class _Wait:
    def __init__(
        self,
        server: Running,
        *,
        api_key: str,
        checks: Checks,
        stall_s: float,
        request_timeout_s: float,
        poll_s: float,
        limit_s: float | None,
        on_event: Callable[[str, float], None] | None,
    ) -> None:
        self._server = server
        self._api_key = api_key
        self._checks = checks
        self._stall_s = stall_s
        self._request_timeout_s = request_timeout_s
        self._poll_s = poll_s
        self._limit_s = limit_s
        self._on_event = on_event
        self._events: list[Event] = []
        own_paths = (checks.health_path, checks.models_path, checks.completion_path)
        self._meter = server.meter(own_paths)
        self._moved_at = time.monotonic()
        self._moved_by = "start"
        self._said_at = time.monotonic()
        self._seen = "nothing listens on its port yet"
        self._healthy = False
        self._failing_since: float | None = None

    def run(self) -> Timeline:
        self._happened("process_started", 0.0)
        self._until("listening", self._listens)
        self._until("health", self._is_healthy)
        self._healthy = True
        self._until("models", self._knows_its_model)
        self._until("first_completion", self._completes)
        self._server.pin()
        return Timeline(tuple(self._events))

    def _until(self, event: str, check: Callable[[], bool]) -> None:
        self._watch()
        while not check():
            time.sleep(self._poll_s)
            self._watch()
        self._happened(event, time.monotonic() - self._server.started)
        self._moved("a check passed")

    def _happened(self, event: str, elapsed_s: float) -> None:
        self._events.append(Event(event, elapsed_s))
        logger.info("server: %s after %.1f s", event, elapsed_s)
        if self._on_event is not None:
            self._on_event(event, elapsed_s)

    def _moved(self, what: str) -> None:
        self._moved_at, self._moved_by = time.monotonic(), what

    def _watch(self) -> None:
        """Return while waiting makes sense."""
        raise_if_asked()
        server = self._server
        if not server.alive():
            if server.listening() - server.own_sockets():
                raise self._port_taken(f"The server ended, and another process listens. {server.died().cause}")
            raise server.died()
        moved = self._meter.sample()
        # A dead engine may spin for ever: from the first healthy answer on, computing alone is no progress.
        if self._healthy:
            moved -= {"cpu"}
        if moved:
            self._moved("/".join(sorted(moved)))
        now = time.monotonic()
        elapsed_s = now - server.started
        if now - self._moved_at > self._stall_s:
            raise self._not_ready(
                f"The server made no progress for {self._stall_s:g} s (its log did not grow and its processes neither "
                f"read nor computed), {elapsed_s:.0f} s after its start. Seen last: {self._seen}.",
                "Read the end of its log. If it is only slow, raise sweep.stall_s in config/config.yaml.",
            )
        if self._limit_s is not None and elapsed_s > self._limit_s:
            raise self._not_ready(
                f"The server was not ready {self._limit_s:.4g} s after its start, all that the job's time leaves; "
                f"its last progress ({self._moved_by}) was {now - self._moved_at:.0f} s ago. Seen last: {self._seen}.",
                f"{MORE_TIME} Or stage the model nearer to the node.",
                OutOfTime,
            )
        if now - self._said_at > _SAY_EVERY_S:
            self._said_at = now
            logger.info("waiting for the server, %.0f s: %s; last progress: %s", elapsed_s, self._seen, self._moved_by)

    def _ask(self, path: str, *, api_key: str | None, timeout_s: float, body: Any = None) -> Answer:
        future = ask_aside(self._server.base_url, path, timeout_s=timeout_s, api_key=api_key, body=body)
        while True:
            done, _ = concurrent.futures.wait([future], timeout=self._poll_s)
            if done:
                return future.result()
            self._watch()

    def _listens(self) -> bool:
        listening, own = self._server.listening(), self._server.own_sockets()
        # vLLM sets SO_REUSEPORT: two servers of one user can share a port, and requests go to either.
        if listening & own and listening - own:
            raise self._port_taken("Two servers share it, and requests would go to either.")
        return bool(listening)

    def _is_healthy(self) -> bool:
        answer = self._ask(self._checks.health_path, api_key=None, timeout_s=self._request_timeout_s)
        self._seen = f"{self._checks.health_path}: {answer}"
        return answer.status == 200

    def _knows_its_model(self) -> bool:
        path = self._checks.models_path
        answer = self._ask(path, api_key=self._api_key, timeout_s=self._request_timeout_s)
        self._seen = f"{path}: {answer}"
        if answer.status in _REFUSED:
            raise self._port_taken("It refuses the key that was made for our server.")
        if answer.status != 200:
            return False
        if self._checks.keyed:
            anonymous = self._ask(path, api_key=None, timeout_s=self._request_timeout_s)
            if anonymous.status == 200:
                raise self._port_taken("It answers without a key, which our server would refuse.")
            if anonymous.status not in _REFUSED:
                return False
        names = _model_names(answer.json())
        if self._server.launch.served_model not in names:
            raise self._not_ready(
                f"The server does not serve {self._server.launch.served_model!r} but {', '.join(names) or 'nothing'}.",
                "Make the recipe's served model name and the name that is asked for the same.",
            )
        return True

    def _completes(self) -> bool:
        body = {
            "model": self._server.launch.served_model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
            "temperature": 0,
        }
        path = self._checks.completion_path
        answer = self._ask(path, api_key=self._api_key, timeout_s=self._stall_s, body=body)
        self._seen = f"{path}: {answer}"
        if answer.status == 200 and _completion_tokens(answer.json()) >= 1:
            return True
        if answer.status in _HOPELESS:
            raise self._not_ready(
                f"The server refuses a completion of one token. {self._seen}.",
                "Check that the model has a chat template and that the served name is right; its answer says more.",
            )
        # Each failing request makes the log grow, so that the stall alone would never end this.
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since > self._stall_s:
            raise self._not_ready(
                f"The server is healthy, but fails to complete one token since {self._stall_s:g} s. {self._seen}.",
                "Read its log: its engine fails although its API answers.",
            )
        return False

    def _port_taken(self, what: str) -> PortTaken:
        return PortTaken(
            f"Port {self._server.launch.port} of {self._server.launch.host} is used by another server. {what}",
            "Start again: another port is chosen. If it happens often, give the platform a range of ports of its own.",
        )

    def _not_ready(self, cause: str, remedy: str, kind: type[NotReady] = NotReady) -> NotReady:
        text = read_log(self._server.log_path, start=self._server.log_start)
        tail = "\n".join(text.splitlines()[-20:])
        secrets = (*self._server.launch.secret_env.values(), self._api_key)
        return kind(redact(cause, secrets), remedy, tail=f"Log: {self._server.log_path}\n{redact(tail, secrets)}")


def _model_names(answer: Any) -> list[str]:
    entries = answer.get("data") if isinstance(answer, dict) else None
    return [str(entry.get("id")) for entry in entries or [] if isinstance(entry, dict)]


def _completion_tokens(answer: Any) -> int:
    """The tokens that a chat completion counts as generated; 0 when it counts none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0
