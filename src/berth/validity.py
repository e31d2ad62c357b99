"""Whether a measured point can be believed: one verdict, and a reason for every doubt. See docs/validity.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from berth.delivered import delivered_fraction, finite_number, offered_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Verdict = Literal["accepted", "flagged", "refused"]
Action = Literal["refuse", "flag", "accept"]

REFUSING = (
    "failed_requests",
    "zero_tokens",
    "short_run",
    "concurrency_not_delivered",
    "rate_not_offered",
    "server_restarted",
    "engine_died",
    "not_idle",
)
FLAGGING = ("client_bound", "warm_cache", "preemptions", "token_mismatch", "clock_step")
# A point whose server died has no numbers that a user could decide to keep.
SETTABLE = tuple(code for code in (*REFUSING, *FLAGGING) if code != "engine_died")


@dataclass(frozen=True)
class Thresholds:
    """Where doubt begins; docs/validity.md gives the reason of each default.

    `max_failed` requests may fail; the client's own duration is at least `min_duration_s`; at least
    `min_concurrency_fraction` of the concurrency, and `min_rate_fraction` of a swept rate, is delivered; the client
    uses at most `client_bound_cpu` CPU seconds per second, and 99 of 100 wake-ups of its event loop come at most
    `client_bound_lag_ms` late; it works at most at `client_ceiling_fraction` of what it can do on its node; at most
    `warm_cache_hit_rate` of the queried tokens come from the prefix cache; at most `max_preemptions` happen; client and
    server differ by at most `token_mismatch_fraction` in output tokens; a clock steps by at most `max_clock_step_s`;
    a point of mode clean waits `idle_wait_s` for a server that has other work.
    """

    max_failed: int = 0
    min_duration_s: float = 2.0
    min_concurrency_fraction: float = 0.9
    min_rate_fraction: float = 0.9
    client_bound_cpu: float = 0.9
    client_bound_lag_ms: float = 100.0
    client_ceiling_fraction: float = 0.8
    warm_cache_hit_rate: float = 0.05
    max_preemptions: int = 0
    token_mismatch_fraction: float = 0.01
    max_clock_step_s: float = 0.1
    idle_wait_s: float = 60.0


@dataclass(frozen=True)
class Policy:
    """What a benchmark, and the experiment that uses it, say of validity; `actions` by code replace the usual ones."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    actions: Mapping[str, Action] = field(default_factory=dict)

    def action(self, code: str) -> Action:
        """What becomes of a point with this reason."""
        return self.actions.get(code) or ("refuse" if code in REFUSING else "flag")


def policy_of(settings: Mapping[str, Any]) -> Policy:
    """The policy that a `validity` of the configuration stands for: thresholds by name, and `actions`."""
    thresholds = {name: value for name, value in settings.items() if name != "actions"}
    return Policy(Thresholds(**thresholds), dict(settings.get("actions") or {}))


@dataclass(frozen=True)
class Reason:
    """One doubt: its code, what was found in words, the value, the threshold that it missed, and what it does."""

    code: str
    message: str
    value: float | str | None = None
    threshold: float | None = None
    action: Action = "flag"


@dataclass(frozen=True)
class Judgement:
    """The `validity` of a point record."""

    verdict: Verdict
    reasons: tuple[Reason, ...]

    @property
    def refusing(self) -> tuple[Reason, ...]:
        """The reasons that refuse the point."""
        return tuple(reason for reason in self.reasons if reason.action == "refuse")

    def as_dict(self) -> dict[str, Any]:
        """The judgement as JSON values."""
        return {
            "verdict": self.verdict,
            "reasons": [
                {
                    "code": each.code,
                    "message": each.message,
                    "value": each.value,
                    "threshold": each.threshold,
                    "action": each.action,
                }
                for each in self.reasons
            ],
        }


@dataclass(frozen=True)
class Observed:
    """All that is known of a point when it is judged.

    `result` and `requests` are the client's (`berth.record.split_result`), `server_metrics` and `restarted` are of
    `berth.metrics.difference`, `cpu_fraction` is the client's CPU seconds per measured second, `loop_lag_p99_ms` how
    late its event loop woke, `ceiling_fraction` at which part of its measured ceiling it worked. `clock_step_s` is by
    how much the wall clock of the client's side, `server_clock_step_s` that of the server's, moved against a clock that
    never steps. `busy` is a sentence on a server that did not become idle before the point, and `busy_requests` what
    was on it. `offered` says that the rate was asked for without a limit on requests in flight. What is None is not
    judged.
    """

    result: Mapping[str, Any]
    requests: Mapping[str, Any]
    concurrency: int
    num_prompts: int
    request_rate: float | Literal["inf"] = "inf"
    server_metrics: Mapping[str, float | None] | None = None
    restarted: bool = False
    cpu_fraction: float | None = None
    offered: bool = False
    loop_lag_p99_ms: float | None = None
    ceiling_fraction: float | None = None
    clock_step_s: float | None = None
    server_clock_step_s: float | None = None
    busy: str = ""
    busy_requests: float | None = None


def judge(observed: Observed, thresholds: Thresholds, actions: Mapping[str, Action] | None = None) -> Judgement:
    """The verdict on a point: refused if one reason refuses, flagged if one flags, accepted otherwise.

    A reason that `actions` accept is told all the same.
    """
    found = (*_refusals(observed, thresholds), *_flags(observed, thresholds))
    return _judgement(found, Policy(thresholds, actions or {}))


def _judgement(found: tuple[Reason, ...], policy: Policy) -> Judgement:
    reasons = tuple(replace(reason, action=policy.action(reason.code)) for reason in found)
    actions = {reason.action for reason in reasons}
    return Judgement("refused" if "refuse" in actions else "flagged" if "flag" in actions else "accepted", reasons)


def not_idle(busy: str, requests: float | None, policy: Policy) -> Judgement:
    """The verdict on a point that is about to be measured on a server which has other work; `busy` is a sentence."""
    return _judgement((_not_idle(busy, requests, policy.thresholds),), policy)


def died(cause: str, *, replaced: bool = False) -> dict[str, Any]:
    """The `validity` of a point whose server did not live to its end, so that there is nothing else to judge.

    `replaced` says that another one runs in its place already, as on Kubernetes.
    """
    code = "server_restarted" if replaced else "engine_died"
    return Judgement("refused", (Reason(code, cause, action="refuse"),)).as_dict()


def _not_idle(busy: str, requests: float | None, thresholds: Thresholds) -> Reason:
    return Reason("not_idle", busy, requests, thresholds.idle_wait_s)


def _refusals(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    if observed.busy:
        yield _not_idle(observed.busy, observed.busy_requests, thresholds)
    if observed.restarted:
        yield Reason("server_restarted", "The server was restarted during the point: its counters began anew.")
    failed = _failed_requests(observed, thresholds)
    if failed is not None:
        yield failed
    tokens = finite_number(observed.result.get("total_output_tokens"))
    if not tokens:
        yield Reason("zero_tokens", "The client counted no generated token.", tokens, 1)
    duration = finite_number(observed.result.get("duration"))
    if duration is None or duration < thresholds.min_duration_s:
        told = "unknown" if duration is None else f"{duration:.2f} s"
        message = f"The measured time is {told}; at least {thresholds.min_duration_s:g} s are wanted."
        yield Reason("short_run", message, duration, thresholds.min_duration_s)
    if failed is None:
        # A failed request has no latency: what it does to the concurrency is told by its own reason.
        yield from _concurrency_not_delivered(observed, thresholds)
        yield from _rate_not_offered(observed, thresholds)


def _failed_requests(observed: Observed, thresholds: Thresholds) -> Reason | None:
    completed = finite_number(observed.result.get("completed")) or 0
    # Not the client's own "failed": old versions have none, and a client that lost requests counts them nowhere.
    missing = observed.num_prompts - completed
    if missing <= thresholds.max_failed:
        return None
    message = f"{completed:.0f} of {observed.num_prompts} requests completed."
    error = next((str(each).strip() for each in observed.requests.get("errors") or () if each), "")
    if error:
        message += f" First error: {error.splitlines()[-1][:300]}"
    return Reason("failed_requests", message, missing, thresholds.max_failed)


def _concurrency_not_delivered(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    if not math.isinf(float(observed.request_rate)):
        return
    fraction = delivered_fraction(observed.result, observed.requests, observed.concurrency)
    if fraction is None or fraction >= thresholds.min_concurrency_fraction:
        return
    wanted = min(observed.concurrency, observed.num_prompts)
    message = (
        f"The client kept {fraction * wanted:.1f} requests in flight while it had more to send; {wanted} were asked."
    )
    yield Reason("concurrency_not_delivered", message, fraction, thresholds.min_concurrency_fraction)


def _rate_not_offered(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    rate = offered_rate(observed.requests) if observed.offered else None
    if rate is None or rate >= thresholds.min_rate_fraction * float(observed.request_rate):
        return
    fraction = rate / float(observed.request_rate)
    message = f"The client sent {rate:.3g} requests/s; {float(observed.request_rate):g} were asked."
    yield Reason("rate_not_offered", message, fraction, thresholds.min_rate_fraction)


def _flags(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    yield from _client_bound(observed, thresholds)
    yield from _clock_step(observed, thresholds)
    counted = observed.server_metrics
    if counted is None or observed.restarted:
        return
    queries, hits = counted.get("prefix_cache_queries"), counted.get("prefix_cache_hits")
    if queries and hits is not None and hits / queries > thresholds.warm_cache_hit_rate:
        message = f"{hits / queries:.1%} of the prompt tokens came from the server's prefix cache."
        yield Reason("warm_cache", message, hits / queries, thresholds.warm_cache_hit_rate)
    preemptions = counted.get("preemptions")
    if preemptions is not None and preemptions > thresholds.max_preemptions:
        message = f"The server preempted {preemptions:.0f} requests: its key-value cache was full."
        yield Reason("preemptions", message, preemptions, thresholds.max_preemptions)
    yield from _token_mismatch(observed, counted, thresholds)


def _client_bound(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    cpu, lag_ms = observed.cpu_fraction, observed.loop_lag_p99_ms
    if cpu is not None and cpu > thresholds.client_bound_cpu:
        message = f"The client used {cpu:.2f} CPU seconds per second; it works on one core and may limit the point."
        yield Reason("client_bound", message, cpu, thresholds.client_bound_cpu)
    elif lag_ms is not None and lag_ms > thresholds.client_bound_lag_ms:
        message = (
            f"The client saw one in a hundred answers {lag_ms:.0f} ms late or later: its event loop was busy, or had "
            "no CPU. Latencies hold that time."
        )
        yield Reason("client_bound", message, lag_ms, thresholds.client_bound_lag_ms)
    elif observed.ceiling_fraction is not None and observed.ceiling_fraction > thresholds.client_ceiling_fraction:
        message = f"The client worked at {observed.ceiling_fraction:.0%} of what it can do at most on its node."
        yield Reason("client_bound", message, observed.ceiling_fraction, thresholds.client_ceiling_fraction)


def _clock_step(observed: Observed, thresholds: Thresholds) -> Iterator[Reason]:
    for whose, step_s in (("client's", observed.clock_step_s), ("server's", observed.server_clock_step_s)):
        if step_s is not None and abs(step_s) > thresholds.max_clock_step_s:
            message = (
                f"The clock on the {whose} side was set by {step_s:+.3f} s during the point, or its machine slept."
            )
            yield Reason("clock_step", message, step_s, thresholds.max_clock_step_s)
            return


def _token_mismatch(
    observed: Observed, counted: Mapping[str, float | None], thresholds: Thresholds
) -> Iterator[Reason]:
    client, server = finite_number(observed.result.get("total_output_tokens")), counted.get("generation_tokens")
    if client is None or server is None:
        return
    mismatch = abs(client - server) / max(client, server, 1.0)
    if mismatch > thresholds.token_mismatch_fraction:
        message = f"The client counted {client:.0f} generated tokens, the server {server:.0f}."
        yield Reason("token_mismatch", message, mismatch, thresholds.token_mismatch_fraction)
