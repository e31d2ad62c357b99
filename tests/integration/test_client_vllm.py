"""The benchmark client against a real vLLM server, which all tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from real_server import KEY, OFFLINE, START_S

import berth._bench_worker as worker
from berth import instant_server
from berth.ceiling import stand_in
from berth.client import BenchSettings, ClientFailed, bench_argv, open_client, warm_up_settings
from berth.dataset import generate_sharegpt
from berth.launch import CLIENT_ENV
from berth.metrics import difference, wait_idle
from berth.validity import Observed, Thresholds, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from real_server import RealServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

WORKER = Path(worker.__file__)


@dataclass(frozen=True)
class Bench:
    """The environment, the server and the files of the tests."""

    python: Path
    url: str
    model: Path
    dataset: Path
    server: RealServer

    def settings(self, **changes: Any) -> BenchSettings:
        base = BenchSettings(
            base_url=self.url,
            served_model="tiny",
            tokenizer=str(self.model),
            dataset_path=self.dataset,
            num_prompts=8,
            seed=7,
        )
        return replace(base, **changes)

    def client(self, folder: Path, mode: str, *, key: str = KEY) -> Any:
        return open_client(
            command_prefix=[str(self.python)],
            worker_path=WORKER,
            vllm_command=[str(self.python.with_name("vllm"))],
            env={**OFFLINE, **CLIENT_ENV, "HF_HOME": str(folder / "hf"), "VLLM_CONFIG_ROOT": str(folder / "vllm")},
            secret_env={"OPENAI_API_KEY": key},
            log_path=folder / f"{mode}.log",
            mode=mode,
        )


@pytest.fixture(scope="module")
def bench(vllm_server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A real server of the tiny model that asks for a key; it may still be loading."""
    data = tmp_path_factory.mktemp("data")
    generate_sharegpt(dest=data / "data.json", receipt_path=data / "data.receipt.json", count=60, scale=0.1)
    return Bench(vllm_server.python, vllm_server.url, vllm_server.model, data / "data.json", vllm_server)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the one warm client that most tests share."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def warm(bench: Bench, folder: Path) -> Iterator[Any]:
    """A warm client that started while the server did; the server is warmed up by it."""
    with bench.client(folder, "warm") as client:
        client.prepare(bench.settings(), warm_up_settings(bench.settings(), 4))
        bench.server.wait()
        client.wait_ready(START_S)
        client.warm_up(bench.settings(), folder / "scratch", num_prompts=4, concurrency=2)
        yield client


def _observed(settings: BenchSettings, concurrency: int, measured: Any, **more: Any) -> Observed:
    return Observed(measured.result, measured.requests, concurrency, settings.num_prompts, **more)


def test_a_warm_point_is_the_point_of_vllm_bench_serve(bench: Bench, warm: Any, folder: Path, tmp_path: Path) -> None:
    """Warm and by one `vllm bench serve` process: the same keys, the same prompt and output lengths, the same texts."""
    steps: list[tuple[int, int]] = []
    settings = bench.settings()
    got = warm.measure(settings, 4, folder / "scratch", lambda done, total: steps.append((done, total)))
    with bench.client(tmp_path, "process") as process:
        other = process.measure(settings, 4, tmp_path / "scratch")
    assert (got.mode, other.mode) == ("warm", "process")
    assert got.version == other.version is not None
    assert set(got.result) == set(other.result)
    assert set(got.requests) == set(other.requests)
    assert got.result["completed"] == 8
    for name in ("input_lens", "output_lens", "generated_texts"):
        assert got.requests[name] == other.requests[name]
    assert steps[-1] == (8, 8)
    assert got.cpu_s > 0
    assert got.start <= got.phase_start <= got.phase_end <= got.end
    # Not a timing of the machine: the phase that Berth bounds is the one that vLLM's own stopwatch measured.
    assert 0 <= got.lost_s <= got.duration_s
    where = got.command.index("--result-dir") + 1
    assert got.command[:where] == other.command[:where]
    # Each result has a file of its own.
    assert got.command[where + 1] == other.command[where + 1] == "--result-filename"
    assert got.command[where + 3 :] == other.command[where + 3 :]


def test_prompts_are_the_same_with_and_without_the_memo(bench: Bench, tmp_path: Path) -> None:
    """The samples of vLLM, byte for byte: prompts, lengths and the order, for four points and two seeds."""
    program = tmp_path / "compare.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import dataclasses, json, random, sys
            sys.path.insert(0, {str(WORKER.parent)!r})
            import numpy as np
            import _bench_worker as worker
            from vllm.benchmarks import serve
            original = serve.get_samples
            bench = worker.load()
            seen = []
            def catch(args, tokenizer):
                random.seed(args.seed); np.random.seed(args.seed)
                memo = bench.samples(args, tokenizer)
                after = random.random(), np.random.rand()
                random.seed(args.seed); np.random.seed(args.seed)
                plain = original(args, tokenizer)
                same_after = after == (random.random(), np.random.rand())
                rows = lambda samples: [dataclasses.astuple(each) for each in samples]
                seen.append([rows(memo) == rows(plain), same_after, len(memo), memo[0].request_id[:6]])
                raise worker._PreparedError
            serve.get_samples = catch
            for argv in json.loads(sys.argv[1]):
                try:
                    bench.run(argv)
                except worker._PreparedError:
                    pass
            print("SEEN" + json.dumps([seen, bench.samples.loads]))
            """
        )
    )
    points = [
        bench_argv(bench.settings(seed=seed, base_url=f"http://127.0.0.1:{level}"), level, tmp_path / f"c{level}.json")
        for seed, level in ((1, 1), (1, 2), (2, 1), (1, 4))
    ]
    done = subprocess.run(
        [str(bench.python), str(program), json.dumps(points)],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen, loads = json.loads(done.stdout.split("SEEN")[1])
    assert [each[:3] for each in seen] == [[True, True, 8]] * 4
    assert all(each[3] == "bench-" for each in seen)
    assert loads == 2


def test_the_prompts_that_are_written_down_are_those_that_vllm_sends(bench: Bench, warm: Any, tmp_path: Path) -> None:
    """The warm client asks a stand-in for exactly the rows, in their order, that --samples writes for other clients."""
    bodies = tmp_path / "bodies.jsonl"
    with stand_in(KEY, bodies=bodies) as url:
        settings = bench.settings(base_url=url, served_model=instant_server.MODEL, num_prompts=20, seed=11)
        warm.measure(settings, 1, tmp_path)
    asked, written = tmp_path / "asked.json", tmp_path / "samples.json"
    asked.write_text(json.dumps([bench_argv(settings, 1, Path("samples.json"))]))
    words = [str(bench.python), str(WORKER), "--samples", str(asked), str(written)]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **OFFLINE}
    subprocess.run(words, env=env, check=True, capture_output=True)
    (rows,) = json.loads(written.read_text())
    sent = [json.loads(line) for line in bodies.read_text().splitlines()]
    # Before it measures, vLLM's client sends one request to see whether the server answers.
    pairs = [(text_of(body), body["max_completion_tokens"]) for body in sent[-len(rows) :]]
    assert pairs == [(row["prompt"], row["output_len"]) for row in rows]


def text_of(body: dict[str, Any]) -> str:
    """The prompt in a request, which clients write in two forms."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def test_a_real_point_is_accepted_and_the_server_counted_the_same(bench: Bench, warm: Any, folder: Path) -> None:
    """The server's counters agree with the client's totals, and the gate has no doubt but the short run."""
    settings = bench.settings(num_prompts=24)
    before = wait_idle(bench.url)
    got = warm.measure(settings, 8, folder / "scratch")
    counted = difference(before, wait_idle(bench.url))
    assert counted.server_metrics["generation_tokens"] == got.result["total_output_tokens"]
    assert counted.server_metrics["prompt_tokens"] == got.result["total_input_tokens"]
    assert not counted.restarted
    seen = _observed(settings, 8, got, server_metrics=counted.server_metrics)
    told = judge(seen, Thresholds(min_duration_s=0.001))
    assert told.verdict == "accepted", told


def test_every_request_failing_is_refused_though_the_client_succeeds(bench: Bench, warm: Any, folder: Path) -> None:
    """A model that the server does not have: the client gives a result without an error, and the gate refuses it."""
    settings = bench.settings(served_model="another")
    got = warm.measure(settings, 4, folder / "scratch")
    told = judge(_observed(settings, 4, got), Thresholds(min_duration_s=0.0))
    assert told.verdict == "refused"
    assert {"failed_requests", "zero_tokens"} <= {reason.code for reason in told.reasons}
    assert "Not Found" in told.reasons[0].message


def test_two_points_of_one_worker_tell_their_lost_time(bench: Bench, warm: Any, folder: Path) -> None:
    """The second point is measured by the same process; for both, the wall time is the client's and what was lost."""
    pid = warm.worker_pid
    for level in (1, 2):
        got = warm.measure(bench.settings(), level, folder / "scratch")
        assert got.result["max_concurrency"] == level
        assert got.duration_s == pytest.approx(got.client_duration_s + got.lost_s)
        print(f"c{level}: {got.client_duration_s:.2f} s measured, {got.lost_s:.3f} s lost")
    assert warm.worker_pid == pid


def test_a_wrong_argument_is_told_and_the_worker_lives(bench: Bench, warm: Any, folder: Path) -> None:
    """An argument that this vLLM does not know, and a dataset that is not there, are errors; the worker goes on."""
    pid = warm.worker_pid
    with pytest.raises(ClientFailed, match=r"refused its arguments(.|\n)*--no-such-flag"):
        warm.measure(bench.settings(extra_args=("--no-such-flag",)), 1, folder / "scratch")
    with pytest.raises(ClientFailed, match="FileNotFoundError"):
        warm.measure(bench.settings(dataset_path=Path("/no/such.json")), 1, folder / "scratch")
    assert warm.worker_pid == pid


def test_a_worker_that_is_killed_is_told_and_replaced(bench: Bench, warm: Any, folder: Path) -> None:
    """SIGKILL in a point is a ClientFailed with the log; the next point has a new worker and is measured."""
    pid = warm.worker_pid
    settings = bench.settings(num_prompts=20)

    def kill(done: int, _total: int) -> None:
        if done:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ClientFailed, match=r"was ended by SIGKILL in the point at concurrency 2\. Last lines"):
        warm.measure(settings, 2, folder / "scratch", kill)
    got = warm.measure(bench.settings(), 2, folder / "scratch")
    assert (got.mode, got.result["completed"]) == ("warm", 8)
    assert warm.worker_pid != pid


def test_the_key_is_needed_and_is_nowhere(bench: Bench, warm: Any, folder: Path, tmp_path: Path) -> None:
    """The server refuses a request without the key, the client has it by environment; no argument or file has it."""
    settings = bench.settings()
    got = warm.measure(settings, 1, folder / "scratch")
    assert got.result["completed"] == 8
    assert KEY not in " ".join(psutil.Process(warm.worker_pid).cmdline() + got.command)
    assert KEY not in json.dumps([got.result, got.requests])
    held = [path for path in folder.rglob("*") if path.is_file() and KEY in path.read_text(errors="replace")]
    assert held == []
    request = urllib.request.Request(f"{bench.url}/v1/models")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)


def test_a_client_whose_berth_was_killed_ends_by_itself(bench: Bench, tmp_path: Path) -> None:
    """SIGKILL to Berth leaves no client behind that goes on sending requests."""
    program = tmp_path / "holder.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import pathlib, time
            from berth.client import open_client
            with open_client(
                command_prefix=[{str(bench.python)!r}], worker_path=pathlib.Path({str(WORKER)!r}), vllm_command=[],
                env={{}}, secret_env={{}}, log_path=pathlib.Path({str(tmp_path / "w.log")!r}), mode="warm",
            ) as client:
                print(client.worker_pid, flush=True)
                time.sleep(600)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        client = psutil.Process(int(holder.stdout.readline()))
        holder.kill()
    assert psutil.wait_procs([client], timeout=60)[1] == []
