"""The server's counters, across versions of vLLM."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from berth.errors import BerthError
from berth.metrics import difference, parse_metrics, read_metrics, wait_idle

if TYPE_CHECKING:
    from collections.abc import Iterator

# Lines of a vLLM 0.32.0 server, two engines.
NOW = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 100.0
vllm:prompt_tokens_total{engine="1",model_name="tiny"} 11.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.79e+09
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 50.0
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 90.0
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 30.0
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="tiny"} 0.0
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 4.0
"""
# The names of vLLM 0.9.1: the cache counters carry the device, and several processes serve (no start time).
OLD = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="scout"} 7.0
# HELP vllm:gpu_prefix_cache_queries_total GPU prefix cache queries.
# TYPE vllm:gpu_prefix_cache_queries_total counter
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="scout"} 20.0
# HELP vllm:gpu_prefix_cache_hits_total GPU prefix cache hits.
# TYPE vllm:gpu_prefix_cache_hits_total counter
vllm:gpu_prefix_cache_hits_total{engine="0",model_name="scout"} 5.0
"""


def test_counters_are_summed_over_engines_and_labels() -> None:
    """A snapshot adds what each engine counted, and leaves creation times out."""
    snapshot = parse_metrics(NOW)
    assert snapshot.counters == {
        "prompt_tokens": 111.0,
        "generation_tokens": 50.0,
        "prefix_cache_queries": 90.0,
        "prefix_cache_hits": 30.0,
        "preemptions": 0.0,
        "requests": 5.0,
    }
    assert (snapshot.running, snapshot.waiting, snapshot.process_start_s) == (5.0, 1.0, 1.7e9)


def test_names_of_old_versions_are_known() -> None:
    """The cache counters of vLLM 0.9.1 are read under the record's names; what it does not have is None."""
    snapshot = parse_metrics(OLD)
    assert snapshot.counters["prefix_cache_queries"] == 20.0
    assert snapshot.counters["prefix_cache_hits"] == 5.0
    assert snapshot.counters["preemptions"] is None
    assert snapshot.process_start_s is None


def test_difference_counts_the_time_between() -> None:
    """The difference has the record's five counters, and no restart where all of them grew."""
    later = NOW.replace(" 50.0", " 80.0")
    found = difference(parse_metrics(NOW), parse_metrics(later))
    assert found.server_metrics == {
        "prompt_tokens": 0.0,
        "generation_tokens": 30.0,
        "prefix_cache_queries": 0.0,
        "prefix_cache_hits": 0.0,
        "preemptions": 0.0,
    }
    assert not found.restarted


@pytest.mark.parametrize(("old", "new"), [(" 50.0", " 8.0"), ("1.7e+09", "1.8e+09")])
def test_restart_is_seen_by_a_counter_or_by_the_start_time(old: str, new: str) -> None:
    """A counter that went down, or another start time, is a restart; the counters are then those since it."""
    found = difference(parse_metrics(NOW), parse_metrics(NOW.replace(old, new)))
    assert found.restarted
    assert found.server_metrics["prompt_tokens"] == 111.0


def test_difference_of_what_is_missing_is_none() -> None:
    """A counter that one side does not have has no difference and is no sign of a restart."""
    found = difference(parse_metrics(OLD), parse_metrics(OLD))
    assert found.server_metrics["generation_tokens"] is None
    assert not found.restarted


class _Pages(BaseHTTPRequestHandler):
    pages: tuple[str, ...] = ()
    asked = 0

    def do_GET(self) -> None:
        cls = type(self)
        page = cls.pages[min(cls.asked, len(cls.pages) - 1)]
        cls.asked += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def pages() -> Iterator[tuple[str, type[_Pages]]]:
    """A stand-in for /metrics: pages of text in turn, so that a busy server can become idle."""
    handler = type("Handler", (_Pages,), {"asked": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_no_proxy_is_used(pages: tuple[str, type[_Pages]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is read directly where the site's environment names a proxy."""
    url, handler = pages
    handler.pages = (NOW,)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert read_metrics(url).counters["prompt_tokens"] == 111.0


def test_wait_idle_returns_the_counters_of_the_idle_server(pages: tuple[str, type[_Pages]]) -> None:
    """Counters are taken once no request runs or waits."""
    url, handler = pages
    idle = NOW.replace(" 3.0", " 0.0").replace(" 2.0", " 0.0").replace('"tiny"} 1.0', '"tiny"} 0.0')
    handler.pages = (NOW, NOW, idle.replace(" 50.0", " 60.0"))
    assert wait_idle(url).counters["generation_tokens"] == 60.0


def test_wait_idle_gives_up_on_a_busy_server(pages: tuple[str, type[_Pages]]) -> None:
    """A server that stays busy is read as it is when the time is over."""
    url, handler = pages
    handler.pages = (NOW,)
    assert wait_idle(url, timeout_s=0.3).running == 5.0


def test_unreachable_and_foreign_servers_are_named(pages: tuple[str, type[_Pages]]) -> None:
    """No answer and an answer of something else are errors that name the address."""
    url, handler = pages
    handler.pages = ("<html>not metrics {</html>",)
    with pytest.raises(BerthError, match=r"/metrics: not Prometheus text"):
        read_metrics(url)
    with pytest.raises(BerthError, match=r"http://127\.0\.0\.1:9/metrics: .*Is the server alive"):
        read_metrics("http://127.0.0.1:9", timeout_s=1)
