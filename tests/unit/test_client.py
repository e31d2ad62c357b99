"""The benchmark client's arguments and processes. What needs vLLM itself is in tests/integration/test_client_vllm.py.

A small program stands in for `vllm` here: only a stand-in can fail in each of the ways that are tested.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import textwrap
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import berth._bench_worker as worker
from berth.bench import settings_of
from berth.client import BenchSettings, ClientFailed, bench_argv, open_client
from berth.flags import Span
from berth.recipe import Client

if TYPE_CHECKING:
    from berth.client import BenchClient

WORKER = Path(worker.__file__)
SETTINGS = BenchSettings(
    base_url="http://127.0.0.1:8000", served_model="tiny", tokenizer="/models/tiny", dataset_path=Path("/data/s.json")
)


def test_arguments_of_paper_mode() -> None:
    """The exact arguments of `vllm bench serve` for the paper's benchmark; temperature 0 is said, the key is not."""
    assert bench_argv(SETTINGS, 16, Path("/scratch/c16.json")) == [
        *("--backend", "openai-chat"),
        *("--base-url", "http://127.0.0.1:8000", "--endpoint", "/v1/chat/completions"),
        *("--model", "tiny", "--tokenizer", "/models/tiny"),
        *("--dataset-name", "sharegpt", "--dataset-path", "/data/s.json"),
        *("--num-prompts", "1000", "--seed", "12345"),
        *("--max-concurrency", "16"),
        *("--request-rate", "inf", "--burstiness", "1"),
        *("--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99"),
        *("--save-result", "--save-detailed"),
        *("--result-dir", "/scratch", "--result-filename", "c16.json"),
    ]


def test_arguments_that_are_asked_for_and_those_that_are_not() -> None:
    """Temperature None and no dataset file are left out; percentiles, rates and further arguments are passed on."""
    settings = replace(
        SETTINGS,
        temperature=None,
        dataset_path=None,
        dataset_name="random",
        ignore_eos=True,
        request_rate=2.5,
        percentiles=(50.0, 99.9),
        extra_args=("--random-input-len", "100"),
    )
    argv = bench_argv(settings, 1, Path("/s/c1.json"))
    assert "--temperature" not in argv
    assert "--dataset-path" not in argv
    assert "--ignore-eos" in argv
    assert argv[argv.index("--request-rate") + 1] == "2.5"
    assert argv[argv.index("--metric-percentiles") + 1] == "50,99.9"
    assert argv[-2:] == ["--random-input-len", "100"]


def test_protocol_is_chosen_by_the_flag_of_the_version() -> None:
    """The client of 0.9.1 calls it endpoint-type; the benchmark's other settings come from the configuration once."""
    benchmark = {"num_prompts": 8, "seed": 7, "request_rate": "inf", "temperature": 0, "ignore_eos": True}
    settings = settings_of(
        benchmark,
        base_url="http://127.0.0.1:8000",
        served_model="tiny",
        tokenizer=Path("/models/tiny"),
        dataset_path=Path("/data/s.json"),
        client=Client(Span(), "python3", ("vllm", "bench", "serve"), "endpoint-type"),
        dataset={"name": "s"},
    )
    argv = bench_argv(settings, 4, Path("/s/c4.json"))
    assert argv[:2] == ["--endpoint-type", "openai-chat"]
    assert argv.count("--ignore-eos") == 1
    assert argv[argv.index("--request-rate") + 1] == "inf"
    assert argv[argv.index("--num-prompts") + 1] == "8"


def stand_in(folder: Path, body: str) -> list[str]:
    """A program called as `vllm bench serve ...`; `result` is where the client's file is expected."""
    program = folder / "vllm"
    head = """\
        import json, os, pathlib, subprocess, sys, time
        argv = sys.argv[1:]
        value = lambda flag: argv[argv.index(flag) + 1]
        result = pathlib.Path(value("--result-dir"), value("--result-filename"))
    """
    program.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return [sys.executable, str(program)]


def client(folder: Path, vllm_command: list[str], **options: Any) -> Any:
    settings: dict[str, Any] = {
        "command_prefix": [sys.executable],
        "worker_path": WORKER,
        "env": {"BERTH_INSTANCE": "abc"},
        "secret_env": {"OPENAI_API_KEY": "very-secret"},
        "log_path": folder / "logs" / "client.log",
        "mode": "process",
    }
    return open_client(vllm_command=vllm_command, **{**settings, **options})


GOOD = """
    assert argv[:2] == ["bench", "serve"]
    print("2/4 [00:01", end="\\r", file=sys.stderr, flush=True)
    time.sleep(0.4)
    seen = {name: os.environ.get(name) for name in ("BERTH_INSTANCE", "OPENAI_API_KEY", "HOME")}
    result.write_text(json.dumps({"duration": 0.25, "completed": 4, "itls": [[1.0]], "seen": seen}))
"""


def test_one_process_per_point_gives_a_measurement(tmp_path: Path) -> None:
    """The client's file is read and removed, its progress is followed, and the time lost beside it is told."""
    steps: list[tuple[int, int]] = []
    with client(tmp_path, stand_in(tmp_path, GOOD)) as bench:
        got = bench.measure(SETTINGS, 16, tmp_path / "scratch", lambda done, total: steps.append((done, total)))
    assert (got.mode, got.cpu_s, got.result["completed"], got.requests) == ("process", None, 4, {"itls": [[1.0]]})
    assert got.command[2:4] == ["bench", "serve"]
    assert (2, 4) in steps
    assert list((tmp_path / "scratch").iterdir()) == []
    assert got.lost_s == pytest.approx(got.duration_s - 0.25)
    assert got.start < got.end
    assert got.client_section()["mode"] == "process"
    assert got.wall_section()["client_duration_s"] == 0.25


def test_the_environment_reaches_the_client_and_the_key_no_file(tmp_path: Path) -> None:
    """Instance and key are in the environment, nothing of the caller's is, and the key is in no argument or log."""
    with client(tmp_path, stand_in(tmp_path, GOOD)) as bench:
        got = bench.measure(SETTINGS, 16, tmp_path / "scratch")
    assert got.result["seen"] == {"BERTH_INSTANCE": "abc", "OPENAI_API_KEY": "very-secret", "HOME": None}
    assert "very-secret" not in " ".join(got.command)
    assert "very-secret" not in got.log.read_text()


def test_the_client_may_open_as_many_connections_as_the_site_allows(tmp_path: Path) -> None:
    """The soft limit of open files is raised to the hard one: 1024 requests in flight need more than 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    body = """
        import resource
        for _ in range(100):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft == hard:
                break
            time.sleep(0.05)
        result.write_text(json.dumps({"completed": 1, "soft": soft, "hard": hard}))
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with client(tmp_path, stand_in(tmp_path, body)) as bench:
            got = bench.measure(SETTINGS, 16, tmp_path / "scratch")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert got.result["soft"] == got.result["hard"] == hard


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('CUDA is on fire'); sys.exit(7)", r"ended with exit code 7 .*concurrency 16(.|\n)*CUDA is on fire"),
        ("pass", r"left no readable result file"),
        ("result.write_text('{\"duration\": 1')", r"left no readable result file"),
        ("result.write_text('[]')", r"no JSON object"),
        ("os.kill(os.getpid(), 9)", r"was ended by SIGKILL"),
    ],
)
def test_a_client_without_a_result_is_told_with_its_log(tmp_path: Path, body: str, told: str) -> None:
    """Each way to give no result is one error with the cause and the last lines of the log."""
    with client(tmp_path, stand_in(tmp_path, body)) as bench, pytest.raises(ClientFailed, match=told):
        bench.measure(SETTINGS, 16, tmp_path / "scratch")


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    """A client that is not there is an error that names the program and says what to do."""
    with (
        client(tmp_path, ["/no/such/vllm"]) as bench,
        pytest.raises(ClientFailed, match=r"/no/such/vllm: No such file"),
    ):
        bench.measure(SETTINGS, 16, tmp_path)
    with (
        pytest.raises(ClientFailed, match=r"/no/such/python: No such file.*stage it again"),
        client(tmp_path, [], command_prefix=["/no/such/python"], mode="warm"),
    ):
        pass


def test_stopping_ends_the_client_and_its_children(tmp_path: Path) -> None:
    """What should_stop raises leaves the call, and neither the client nor a child that ignores TERM is left."""
    pids = tmp_path / "pids"
    body = f"""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import signal,time;signal.signal(15,1);time.sleep(600)"])
        pathlib.Path({str(pids)!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(600)
    """

    class StopError(Exception):
        pass

    def stop() -> None:
        if pids.exists() and len(pids.read_text().split()) == 2:
            raise StopError

    with client(tmp_path, stand_in(tmp_path, body)) as bench, pytest.raises(StopError):
        bench.measure(SETTINGS, 16, tmp_path, should_stop=stop)
    for pid in map(int, pids.read_text().split()):
        assert not _runs(pid)


def _runs(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.05)
    return True


def test_python_without_vllm_falls_back_to_a_process_per_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In mode auto a worker that cannot import vLLM says so, and points are measured by one process each."""
    with client(tmp_path, stand_in(tmp_path, GOOD), mode="auto") as bench:
        bench.prepare(SETTINGS)
        bench.wait_ready(30)
        assert bench.mode == "process"
        assert "No module named 'vllm'" in caplog.text
        assert bench.measure(SETTINGS, 16, tmp_path / "scratch").mode == "process"


def test_python_without_vllm_is_an_error_in_mode_warm(tmp_path: Path) -> None:
    """In mode warm there is no fall-back; the error says how to allow it."""
    with (
        client(tmp_path, ["/bin/false"], mode="warm") as bench,
        pytest.raises(ClientFailed, match=r"No module named 'vllm'.*Set the client's mode to auto or process"),
    ):
        bench.wait_ready(30)


def test_a_worker_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    """A worker that is not ready in time is ended, and the error says how long it was waited for."""
    silent = tmp_path / "silent.py"
    silent.write_text("print('a line of the container runtime', flush=True)\nimport time\ntime.sleep(600)\n")
    with client(tmp_path, [], worker_path=silent, mode="auto") as bench:
        pid = bench.worker_pid
        with pytest.raises(ClientFailed, match="not ready after 1 s"):
            bench.wait_ready(1.0)
        assert not _runs(pid)


def test_a_warm_up_without_one_answer_is_an_error(tmp_path: Path) -> None:
    """A warm-up in which nothing completed names the first error: the first point would fare no better."""
    body = """
        result.write_text(json.dumps({"completed": 0, "errors": ["", "Traceback\\nOSError: refused"], "argv": argv}))
    """
    with client(tmp_path, stand_in(tmp_path, body)) as bench, pytest.raises(ClientFailed, match="OSError: refused"):
        bench.warm_up(SETTINGS, tmp_path / "scratch", num_prompts=4, concurrency=2)


def test_a_warm_up_sends_other_prompts_than_the_points(tmp_path: Path) -> None:
    """The warm-up has its own number of prompts and another seed, so that no measured prompt is cached by it."""
    kept = tmp_path / "argv.json"
    body = f"""
        pathlib.Path({str(kept)!r}).write_text(json.dumps(argv))
        result.write_text(json.dumps({{"completed": 4}}))
    """
    with client(tmp_path, stand_in(tmp_path, body)) as bench:
        bench.warm_up(SETTINGS, tmp_path / "scratch", num_prompts=4, concurrency=2)
    argv = json.loads(kept.read_text())
    assert argv[argv.index("--num-prompts") + 1] == "4"
    assert argv[argv.index("--seed") + 1] == "12346"
    assert argv[argv.index("--max-concurrency") + 1] == "2"


def test_describe_tells_the_client_of_a_point_that_was_not_measured(tmp_path: Path) -> None:
    """A failure's record says how its point would have been measured."""
    with client(tmp_path, ["vllm"]) as bench:
        told = _describe(bench)
    assert told["command"][:5] == ["vllm", "bench", "serve", "--backend", "openai-chat"]
    assert (told["name"], told["mode"], told["cpu_s"], told["cpu_fraction"]) == ("vllm-bench", "process", None, None)


def _describe(bench: BenchClient) -> dict[str, Any]:
    return bench.describe(SETTINGS, 16)


@dataclass
class Sample:
    """The part of vLLM's SampleRequest that the worker looks at."""

    prompt: str
    request_id: str | None


def _samples(args: Namespace, _tokenizer: object) -> list[Sample]:
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - vLLM's generator is the legacy one.
    args.changed_by_loading = True
    text = Path(args.dataset_path).read_text()
    numbers = [(random.random(), _numpy_number()) for _ in range(3)]
    return [Sample(f"{text} {pair}", f"{args.request_id_prefix}{index}") for index, pair in enumerate(numbers)]


def _numpy_number() -> float:
    return float(np.random.rand())  # noqa: NPY002


def _args(path: Path, **changes: Any) -> Namespace:
    values = {"dataset_path": str(path), "seed": 1, "request_id_prefix": "a-", "max_concurrency": 1, "num_prompts": 3}
    return Namespace(**{**values, **changes})


def test_memo_gives_what_the_original_gives(tmp_path: Path) -> None:
    """Samples, request ids, arguments and both random generators are as without the memo, loaded once."""
    data = tmp_path / "data"
    data.write_text("text")
    memo = worker.SampleMemo(_samples)
    for prefix, concurrency in (("a-", 1), ("b-", 2), ("c-", 4)):
        direct_args = _args(data, request_id_prefix=prefix, max_concurrency=concurrency)
        direct = _samples(direct_args, None)
        after = (random.random(), _numpy_number())
        args = _args(data, request_id_prefix=prefix, max_concurrency=concurrency)
        assert memo(args, None) == direct
        assert (random.random(), _numpy_number()) == after
        assert vars(args) == vars(direct_args)
    assert memo.loads == 1


def test_memo_loads_again_for_other_arguments_and_for_another_file(tmp_path: Path) -> None:
    """Another seed, number of prompts or file content is another set of samples."""
    data = tmp_path / "data"
    data.write_text("text")
    memo = worker.SampleMemo(_samples)
    first = memo(_args(data), None)
    assert memo(_args(data, seed=2), None) != first
    memo(_args(data, num_prompts=4), None)
    data.write_text("changed")
    os.utime(data, ns=(1, 1))
    assert memo(_args(data), None)[0].prompt.startswith("changed")
    assert memo.loads == 4


def test_memo_hands_out_copies(tmp_path: Path) -> None:
    """A caller that changes its samples does not change those of the next point."""
    data = tmp_path / "data"
    data.write_text("text")
    memo = worker.SampleMemo(_samples)
    for _ in range(3):
        got = memo(_args(data), None)
        assert not got[0].prompt.endswith("!")
        got[0].prompt += "!"
        got.pop()
    assert len(memo(_args(data), None)) == 3


def test_the_last_bar_of_a_run_is_the_measured_phase() -> None:
    """A bar of a warm-up is forgotten when the next one is opened; a phase that never ended has no duration."""
    phase = worker.Phase()
    assert phase.report() == dict.fromkeys(("cpu_s", "phase_s", "start", "end", "loop_lag", "clock_step_s"))
    warm_up = phase.open(total=2)
    warm_up.update(1)
    warm_up.close()
    bar = phase.open(total=5)
    bar.update(1)
    assert (phase.completed, phase.total) == (1, 5)
    assert phase.report()["end"] is None
    bar.close()
    told = phase.report()
    assert told["start"] <= told["end"]
    assert told["phase_s"] >= 0
    assert told["cpu_s"] >= 0


def test_the_worker_s_quick_dump_writes_json_s_bytes(tmp_path: Path) -> None:
    """The result file has the bytes that json.dump writes, NaN and infinities as the client has them included."""
    value = {"a": [0.1, 1e-7, float("nan"), float("inf"), "é\u2028"], "b": None}
    with (tmp_path / "quick").open("w") as quick, (tmp_path / "slow").open("w") as slow:
        worker._dump(value, quick)
        json.dump(value, slow)
    assert (tmp_path / "quick").read_bytes() == (tmp_path / "slow").read_bytes()
