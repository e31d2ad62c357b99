"""What the server itself counted: vLLM's Prometheus metrics, read before and after a point."""

from __future__ import annotations

import email.utils
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families

from berth.errors import BerthError

# The record's name, and the names that versions of vLLM gave to it, the current one first.
_COUNTERS: dict[str, tuple[str, ...]] = {
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prefix_cache_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_queries",
        "vllm:gpu_prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries",
    ),
    "prefix_cache_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits",
        "vllm:gpu_prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits",
    ),
    "preemptions": ("vllm:num_preemptions_total",),
    "requests": ("vllm:request_success_total",),
}
_RECORDED = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "preemptions")
_START = "process_start_time_seconds"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_IDLE_POLL_S = 0.1
# HTTP's date has whole seconds, and servers renew theirs once a second.
_DATE_SLACK_S = 2.0

# Berth talks to its own server: a proxy of the site would not reach it.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Snapshot:
    """The server's counters at one moment, summed over its engines. A counter that it does not have is None.

    `process_start_s` is in seconds since 1970; None where several processes serve (Prometheus then leaves it out).
    `date_s` is the server's wall clock in whole seconds since 1970, as its answer has it, `read_s` our clock that never
    steps; None where the text did not come from a server.
    """

    counters: dict[str, float | None]
    process_start_s: float | None
    running: float | None
    waiting: float | None
    date_s: float | None = None
    read_s: float | None = None

    @property
    def busy(self) -> float:
        """Requests that run or wait, 0 where the server does not tell."""
        return (self.running or 0.0) + (self.waiting or 0.0)


@dataclass(frozen=True)
class Difference:
    """What happened between two snapshots: `server_metrics` of a point record, and whether the server was restarted.

    `clock_step_s` is by how much the server's wall clock was set: 0 where it is less than HTTP's dates can tell (2 s),
    None where it is unknown.
    """

    server_metrics: dict[str, float | None]
    restarted: bool
    clock_step_s: float | None = None


def parse_metrics(text: str) -> Snapshot:
    """The snapshot that a page of Prometheus text holds.

    Raises:
        ValueError: the text is no Prometheus exposition.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    counters = {
        name: next((sums[candidate] for candidate in candidates if candidate in sums), None)
        for name, candidates in _COUNTERS.items()
    }
    return Snapshot(counters, sums.get(_START), sums.get(_RUNNING), sums.get(_WAITING))


def read_metrics(base_url: str, timeout_s: float = 10.0) -> Snapshot:
    """The server's counters now. `base_url` has no path; no proxy is used, and vLLM asks for no key here.

    Raises:
        BerthError: no answer in time, or an answer that is not Prometheus text.
    """
    url = f"{base_url.rstrip('/')}/metrics"
    try:
        with _OPENER.open(url, timeout=timeout_s) as answer:
            snapshot = parse_metrics(answer.read().decode())
            return replace(snapshot, date_s=_date_s(answer.headers.get("Date")), read_s=time.monotonic())
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise BerthError(f"{url}: {error}. Is the server alive? See its log.") from None
    except ValueError as error:
        raise BerthError(f"{url}: not Prometheus text ({error}). Is this a vLLM server?") from None


def _date_s(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None


def wait_idle(base_url: str, timeout_s: float = 10.0) -> Snapshot:
    """The server's counters once no request runs or waits, or as they are after `timeout_s`.

    The counters of a request may lag behind its last token by one step of the engine.

    Raises:
        BerthError: as `read_metrics`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        snapshot = read_metrics(base_url, timeout_s)
        if not snapshot.busy or time.monotonic() > deadline:
            return snapshot
        time.sleep(_IDLE_POLL_S)


def difference(before: Snapshot, after: Snapshot) -> Difference:
    """What the server counted between two snapshots.

    A counter that went down, or another start time of the process, means that the server was restarted in between;
    the counters are then those since the restart. A counter that is missing on either side is None.
    """
    pairs = {name: (before.counters.get(name), after.counters.get(name)) for name in _COUNTERS}
    went_down = any(old is not None and new is not None and new < old for old, new in pairs.values())
    moved = (
        before.process_start_s is not None
        and after.process_start_s is not None
        and before.process_start_s != after.process_start_s
    )
    restarted = went_down or moved
    counted: dict[str, float | None] = {}
    for name in _RECORDED:
        old, new = pairs[name]
        if old is None or new is None:
            counted[name] = None
        else:
            counted[name] = new if restarted else new - old
    return Difference(counted, restarted, _clock_step_s(before, after))


def _clock_step_s(before: Snapshot, after: Snapshot) -> float | None:
    if before.date_s is None or after.date_s is None or before.read_s is None or after.read_s is None:
        return None
    step_s = (after.date_s - before.date_s) - (after.read_s - before.read_s)
    return step_s if abs(step_s) > _DATE_SLACK_S else 0.0
