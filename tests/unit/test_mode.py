"""The two modes: what the configuration may say of them, and the state in which a point of mode clean begins.

A small HTTP server stands in for vLLM's /reset_prefix_cache. The real one: integration/test_validity_vllm.py.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.clean import CacheNotReset, reset_prefix_cache, wait_until_idle
from berth.errors import BerthError
from berth.metrics import parse_metrics
from berth.mode import cache_state, mode_of, point_seed
from berth.parse import load_config
from berth.recipes import load_recipe
from berth.spec import define

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.spec import Definition

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / "config/recipes/vllm.yaml"
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}


def defined(benchmark: dict[str, Any], deployment: dict[str, Any] | None = None, **experiment: Any) -> Definition:
    """The definition of figure 9 on Hops with changes of its benchmark and its deployment."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["benchmarks"]["sharegpt-1000"] |= benchmark
    raw["experiments"]["fig9"] |= experiment
    scout = raw["deployments"]["scout-hops"]
    for part, values in (deployment or {}).items():
        scout[part] = {**scout.get(part, {}), **values}
    config = load_config(raw, ROOT)
    return define(config, config.deployments["scout-hops"], config.benchmarks["sharegpt-1000"], ROOT)


def test_definitions_of_before_keep_their_ids() -> None:
    """No point that was measured before modes were written is measured again; only what is set makes another spec."""
    assert defined({}).id == "c6ad5ae05a"
    assert defined({"mode": "paper"}).id == "2eea46f957"
    assert defined({"mode": "clean"}).id == "ad5d4972a9"
    assert defined({"mode": "clean", "seed_per_point": False}).id == "ad5d4972a9"
    assert defined({"mode": "clean", "seed_per_point": True}).id != "ad5d4972a9"


def test_validity_is_in_no_definition() -> None:
    """Thresholds and actions, of a benchmark and of an experiment, judge points and define none."""
    validity = {"idle_wait_s": 5, "actions": {"warm_cache": "refuse"}}
    assert defined({"validity": validity}, validity=validity).id == defined({}).id


@pytest.mark.parametrize(
    ("benchmark", "deployment", "message"),
    [
        ({"mode": "cleen"}, {}, r"benchmarks.sharegpt-1000.mode: .*cleen"),
        ({"seed_per_point": True}, {}, r"benchmarks.sharegpt-1000.seed_per_point: true needs mode: clean"),
        ({"mode": "paper", "seed_per_point": True}, {}, r"seed_per_point: true needs mode: clean"),
        ({"mode": "clean", "warm_up_prompts": 0}, {}, r"warm_up_prompts: 0 is not allowed in mode clean"),
        (
            {"mode": "clean"},
            {"args": {"enable-prefix-caching": True}},
            r'deployments.scout-hops: its prefix cache is on.*env: \{VLLM_SERVER_DEV_MODE: "1"\}',
        ),
        ({"validity": {"actions": {"warm_cash": "flag"}}}, {}, r"validity.actions: .*warm_cash"),
        ({"validity": {"actions": {"engine_died": "accept"}}}, {}, r"validity.actions: .*engine_died"),
        ({"validity": {"actions": {"warm_cache": "ignore"}}}, {}, r"validity.actions.warm_cache: .*ignore.*accept"),
        ({"validity": {"client_bound_lag_ms": 0}}, {}, r"validity.client_bound_lag_ms"),
        ({"validity": {"idle_wait_s": -1}}, {}, r"validity.idle_wait_s"),
    ],
)
def test_a_wrong_mode_or_validity_is_one_error(
    benchmark: dict[str, Any], deployment: dict[str, Any], message: str
) -> None:
    """What cannot be measured as asked is told before anything starts: where, what is allowed, what to do."""
    with pytest.raises(BerthError, match=f"(?s)config/config.yaml.*{message}"):
        defined(benchmark, deployment)


def test_a_wrong_action_of_an_experiment_is_one_error() -> None:
    """An experiment's validity is checked like a benchmark's."""
    with pytest.raises(BerthError, match=r"experiments.fig9.validity.actions.*preemption"):
        defined({}, validity={"actions": {"preemption": "flag"}})


def test_an_experiment_s_validity_wins_item_by_item() -> None:
    """What an experiment does not set is the benchmark's."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["benchmarks"]["demo"]["validity"] = {
        "min_duration_s": 5,
        "max_failed": 1,
        "actions": {"warm_cache": "refuse", "preemptions": "accept"},
    }
    raw["experiments"]["local"]["validity"] = {"max_failed": 2, "actions": {"warm_cache": "flag"}}
    config = load_config(raw, ROOT)
    assert config.experiments["local"].validity_over(config.benchmarks["demo"]) == {
        "min_duration_s": 5,
        "max_failed": 2,
        "actions": {"warm_cache": "flag", "preemptions": "accept"},
    }
    assert config.experiments["fig9"].validity_over(config.benchmarks["sharegpt-1000"]) == {}


def test_a_recipe_that_does_not_know_its_cache_is_refused(tmp_path: Path) -> None:
    """Mode clean needs a recipe that says how its prefix cache is switched off; the error names the file."""
    raw = yaml.safe_load(VLLM.read_text())
    del raw["prefix_cache"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    recipe = load_recipe(tmp_path / "own.yaml")
    assert cache_state(recipe, {"enable-prefix-caching": False}, {}) is None


def test_what_becomes_of_the_cache_follows_from_the_server_s_settings() -> None:
    """Off is off; on is emptied where the server has the call; else nothing keeps points apart."""
    recipe = load_recipe(VLLM)
    assert cache_state(recipe, {"enable-prefix-caching": False}, DEV_MODE) == "disabled"
    assert cache_state(recipe, {"enable-prefix-caching": True}, DEV_MODE) == "reset"
    assert cache_state(recipe, {}, DEV_MODE) == "reset"
    assert cache_state(recipe, {}, {}) is None
    both = defined({"mode": "clean"}, {"args": {"enable-prefix-caching": True}, "env": DEV_MODE})
    assert both.full["serve"]["env"]["VLLM_SERVER_DEV_MODE"] == "1"


def test_seeds_differ_by_level_and_are_never_the_warm_up_s() -> None:
    """A seed per point depends on the level alone, so that runs stay comparable."""
    assert point_seed({"seed": 7}, 16) == 7
    seeds = [point_seed({"seed": 7, "seed_per_point": True}, level) for level in (1, 2, 1024)]
    assert seeds == [9, 10, 1032]
    assert 7 + 1 not in seeds


def test_a_benchmark_that_says_nothing_is_measured_as_in_the_paper() -> None:
    """The mode of every point has a name, also where the definition has none."""
    assert [mode_of({}), mode_of({"mode": None}), mode_of({"mode": "paper"}), mode_of({"mode": "clean"})] == [
        *["paper"] * 3,
        "clean",
    ]


class _Vllm(BaseHTTPRequestHandler):
    answers: tuple[tuple[int, str], ...] = ()
    asked: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        cls = type(self)
        cls.asked.append((self.path, self.headers.get("Authorization")))
        status, text = cls.answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def standin() -> Iterator[tuple[str, type[_Vllm]]]:
    """A stand-in for the call that empties the cache."""
    handler = type("Handler", (_Vllm,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("text", ["", json.dumps({"success": True})])
def test_a_cache_that_was_emptied_needs_no_more(standin: tuple[str, type[_Vllm]], text: str) -> None:
    """Old versions answer nothing, later ones say that they did it; the key goes along."""
    url, handler = standin
    handler.answers = ((200, text),)
    reset_prefix_cache(url, "/reset_prefix_cache", key="sk-test")
    assert handler.asked == [("/reset_prefix_cache", "Bearer sk-test")]


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (404, "", "404.*not reset"),
        (500, "", "500.*not reset"),
        (200, json.dumps({"success": False}), "success.*false.*not reset"),
        (200, "<html>", "html.*not reset"),
    ],
)
def test_a_cache_that_was_not_emptied_gives_no_point(
    standin: tuple[str, type[_Vllm]], status: int, text: str, message: str
) -> None:
    """A server without the call, or one whose blocks are in use, is told with cause and remedy."""
    url, handler = standin
    handler.answers = ((status, text),)
    with pytest.raises(CacheNotReset, match=message) as caught:
        reset_prefix_cache(url, "/reset_prefix_cache")
    assert caught.value.kind == "invalid"
    assert "docs/method.md" in caught.value.remedy


def snapshots(*states: tuple[int, int]) -> Any:
    """Reads (requests on the server, tokens generated) in turn; the last one for ever."""
    left = list(states)

    def read() -> Any:
        running, tokens = left.pop(0) if len(left) > 1 else left[0]
        return parse_metrics(
            f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running {running}\n"
            f"# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total {tokens}\n"
        )

    return read


def test_a_server_is_idle_when_nothing_moves_twice() -> None:
    """Moments between two requests of somebody else are not idle: the counters must stand still."""
    asked: list[int] = []
    read = snapshots((2, 5), (0, 9), (0, 12), (0, 12))
    idle = wait_until_idle(read, limit_s=60, should_stop=lambda: asked.append(1), settle_s=0)
    assert idle is not None
    assert (idle.busy, len(asked)) == ("", 4)


def test_a_server_that_is_never_idle_is_told() -> None:
    """At the limit the sentence says what was on it; with requests that come and go, that they do."""
    busy = wait_until_idle(snapshots((3, 5)), limit_s=0.1, should_stop=lambda: None)
    assert busy is not None
    assert "3 requests are on it" in busy.busy
    restless = wait_until_idle(
        snapshots(*((0, tokens) for tokens in range(100))), limit_s=0.1, should_stop=lambda: None, settle_s=0
    )
    assert restless is not None
    assert "requests come and go" in restless.busy


def test_a_server_that_does_not_tell_is_not_judged() -> None:
    """Without the counters nothing is known of its other work."""
    assert wait_until_idle(lambda: None, limit_s=60, should_stop=lambda: None) is None
    assert wait_until_idle(lambda: parse_metrics(""), limit_s=60, should_stop=lambda: None) is None
