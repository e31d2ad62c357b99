"""guidellm and aiperf as clients of a point: what is asked, what their real output means, and their ceilings.

The captured outputs are of the real programs, five requests at concurrency 2 against a stand-in that streams one token
every 4 ms: tests/unit/samples/README.md.
"""

from __future__ import annotations

import gzip
import json
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from berth import _client_aiperf as aiperf
from berth import _client_guidellm as guidellm
from berth import instant_server
from berth._client_launch import ClientFailed, Launch
from berth.bench import BenchSettings
from berth.ceilings import Ceiling, fraction_of
from berth.clienttool import ClientTool, load_client
from berth.errors import BerthError
from berth.toolclient import ToolLaunch, open_tool_client
from berth.validity import Observed, Thresholds, judge
from berth.vllm_result import Asked, Request, not_given, percentile, vllm_lists, vllm_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.vllm_result import Request as AnyRequest

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).with_name("samples")
SETTINGS = BenchSettings(
    base_url="http://127.0.0.1:8000",
    served_model="tiny",
    tokenizer="/models/tiny",
    dataset_path=Path("/data/s.json"),
    num_prompts=2,
)
ROWS = [{"prompt": "one two", "prompt_len": 2, "output_len": 9}, {"prompt": "three", "prompt_len": 1, "output_len": 4}]
ASKED = Asked(5, 2, float("inf"), "stand-in")
OUTPUT_LENS = [52, 9, 29, 38, 71]


def captured(name: str) -> dict[str, str]:
    """What the real program wrote."""
    files: dict[str, str] = json.loads(gzip.decompress((SAMPLES / f"{name}.point.json.gz").read_bytes()))
    return files


def judged(requests: Sequence[AnyRequest], duration: float | None) -> list[str]:
    """The reasons of the gate."""
    result = vllm_result(requests, duration, ASKED)
    seen = Observed(result=result, requests=vllm_lists(requests), concurrency=2, num_prompts=5)
    return [reason.code for reason in judge(seen, Thresholds(min_duration_s=0.1)).reasons]


def test_guidellm_has_the_names_of_vllm_where_the_meaning_is_equal() -> None:
    """Times and tokens of five real requests; of the gaps the mean alone is known, and the rest is null and named."""
    requests, duration, span = guidellm.read(captured("guidellm-0.8.1"))
    result = vllm_result(requests, duration, ASKED)
    assert [request.output_tokens for request in sorted(requests, key=lambda each: each.start_s)] == OUTPUT_LENS
    assert result["total_output_tokens"] == sum(OUTPUT_LENS)
    assert result["output_throughput"] == pytest.approx(sum(OUTPUT_LENS) / duration)
    assert 4.0 < result["median_tpot_ms"] < 5.0
    assert 4.0 < result["mean_itl_ms"] < 5.0
    assert not_given(result) == ["request_goodput", "median_itl_ms", "std_itl_ms", "p99_itl_ms"]
    assert "itls" not in vllm_lists(requests)
    assert span["end"] - span["start"] == pytest.approx(duration, abs=0.01)
    assert judged(requests, duration) == []


def test_aiperf_has_every_gap() -> None:
    """Its records hold all gaps between events, so that all statistics of vLLM's client are there."""
    requests, duration, _ = aiperf.read(captured("aiperf-0.13.0"))
    result = vllm_result(requests, duration, ASKED)
    assert vllm_lists(requests)["output_lens"] == OUTPUT_LENS
    assert [len(gaps) for gaps in vllm_lists(requests)["itls"]] == [tokens - 1 for tokens in OUTPUT_LENS]
    assert 4.0 < result["median_itl_ms"] < 5.0
    assert not_given(result) == ["request_goodput"]
    assert judged(requests, duration) == []


def test_definitions_are_those_of_vllm() -> None:
    """TPOT leaves the first token and requests of one token out, percentiles are interpolated, failures count not."""
    requests = [
        Request(0.0, 0.1, 1.1, 5, 11, gaps=10, gaps_s=(0.1,) * 10),
        Request(0.5, 0.2, 0.2, 5, 1, gaps_s=()),
        Request(0.6, error="boom"),
    ]
    result = vllm_result(requests, 2.0, Asked(3, 2, 4.0, "m"))
    assert (result["completed"], result["failed"], result["request_rate"]) == (2, 1, 4.0)
    assert result["mean_tpot_ms"] == pytest.approx(100.0)
    assert result["mean_ttft_ms"] == pytest.approx(150.0)
    assert result["p99_ttft_ms"] == pytest.approx(199.0)
    assert percentile([], 50) is None
    assert "failed_requests" in judged(requests, 2.0)


def test_both_are_asked_what_vllm_would_ask() -> None:
    """Prompts and lengths in order, the temperature, ignore_eos as the benchmark says, and a rate where one is set."""
    theirs = guidellm.inputs(SETTINGS, 8, ROWS, Path("/s"))
    assert [json.loads(line) for line in theirs["prompts.jsonl"].splitlines()] == [
        {"prompt": "one two", "output_tokens_count": 9},
        {"prompt": "three", "output_tokens_count": 4},
    ]
    spec = json.loads(theirs["guidellm.config.json"])["spec"]
    assert spec["profile"] == {"kind": "concurrent", "streams": [8]}
    assert spec["backend"]["extras"]["body"] == {"ignore_eos": False, "temperature": 0.0}
    files = aiperf.inputs(replace(SETTINGS, ignore_eos=True, request_rate=2.5), 8, ROWS, Path("/s"))
    assert json.loads(files["prompts.jsonl"].splitlines()[1]) == {"text": "three", "output_length": 4}
    asked = json.loads(files["aiperf.yaml"])["benchmark"]
    assert asked["phases"] == {"type": "poisson", "rate": 2.5, "concurrency": 8, "requests": 2}
    assert asked["endpoint"]["extra"] == {"ignore_eos": True, "temperature": 0.0}
    assert asked["endpoint"]["api_key"] == "${OPENAI_API_KEY:none}"


def test_a_client_has_an_image_for_each_runtime_but_kubernetes() -> None:
    """A process gets the pinned environment, Podman the container, and Kubernetes is told what to set instead."""
    for name in ("guidellm", "aiperf"):
        tool = load_client(ROOT / "config/clients" / f"{name}.yaml")
        assert tool.image("process")["reference"] == f"{name}=={tool.version}"
        assert tool.image("podman")["kind"] == "container"
        with pytest.raises(BerthError, match="client to vllm"):
            tool.image("kubernetes")


PROGRAM = """#!{python}
import json, os, sys, pathlib
folder = pathlib.Path(sys.argv[sys.argv.index("--config") + 1]).parent
assert "sk-of-the-test" not in " ".join(sys.argv)
assert not any("sk-of-the-test" in each.read_text() for each in folder.iterdir())
assert (folder / "prompts.jsonl").stat().st_mode & 0o077 == 0
if {fails}:
    sys.exit("ERROR: Connection refused")
files = json.loads(pathlib.Path({captured!r}).read_text())
for name, text in files.items():
    (folder / name).write_text(text)
"""
SAMPLER = """
import json, pathlib, sys
asked, written = map(pathlib.Path, sys.argv[2:])
rows = [{"prompt": "one", "prompt_len": 1, "output_len": 3}] * 2
written.write_text(json.dumps([rows for _ in json.loads(asked.read_text())]))
"""


def launch(folder: Path, *, fails: bool) -> ToolLaunch:
    """A client whose program and whose sampler are stand-ins: only those can fail on demand."""
    text = folder / "captured.json"
    text.write_text(json.dumps(captured("guidellm-0.8.1")))
    program = folder / "program"
    program.write_text(PROGRAM.format(python=sys.executable, fails=fails, captured=str(text)))
    program.chmod(stat.S_IRWXU)
    worker = folder / "worker.py"
    worker.write_text(SAMPLER)
    log = folder / "client.log"
    sampler = Launch((sys.executable,), worker, (), {}, {}, log, "process")
    key = {guidellm.KEY_VARIABLE: "sk-of-the-test"}
    run = Launch((), worker, (str(program),), {}, key, log, "process")
    tool: ClientTool = load_client(ROOT / "config/clients/guidellm.yaml")
    return ToolLaunch(tool, run, sampler, folder / "exchange")


def test_a_point_keeps_what_the_client_wrote_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The client's own report is in the requests character by character; its files are gone; the key stood nowhere."""
    with open_tool_client(launch(tmp_path, fails=False)) as client:
        client.prepare(SETTINGS)
        client.wait_ready(60)
        measured = client.measure(replace(SETTINGS, num_prompts=5), 2, tmp_path)
    assert measured.requests["client_files"] == captured("guidellm-0.8.1")
    assert measured.result["completed"] == 5
    section = measured.client_section()
    assert (section["name"], section["version"], section["mode"]) == ("guidellm", "0.8.1", "process")
    assert section["not_given"] == ["request_goodput", "median_itl_ms", "std_itl_ms", "p99_itl_ms"]
    assert not list((tmp_path / "exchange").glob("*.client"))


def test_a_client_that_fails_is_told_with_cause_remedy_and_log(tmp_path: Path) -> None:
    """A known line of its log gives cause and remedy; the end of the log follows."""
    with open_tool_client(launch(tmp_path, fails=True)) as client, pytest.raises(ClientFailed) as caught:
        client.measure(SETTINGS, 2, tmp_path)
    assert "could not reach the server" in caught.value.cause
    assert "Look at the server's log" in caught.value.remedy
    assert "ERROR: Connection refused" in str(caught.value)


def test_a_point_near_the_ceiling_of_its_client_is_flagged(tmp_path: Path) -> None:
    """Requests and tokens cost the client time; above 80 % of it a point is flagged; other versions are not judged."""
    ceiling = Ceiling("vllm-bench", "0.32.0", "warm", 0.001, 0.00001, 990.0, 90000.0, "2026-11-24T00:00:00+00:00")
    path = tmp_path / "clients/local.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"schema": 1, "nodes": {"a": {"vllm-bench": ceiling.__dict__}}}))
    client = {"name": "vllm-bench", "version": "0.32.0", "mode": "warm"}
    result = {"request_throughput": 500.0, "output_throughput": 35000.0}
    found = fraction_of(tmp_path, "local", "b", client, result)
    assert found == pytest.approx(0.85)
    assert fraction_of(tmp_path, "local", "a", {**client, "version": "0.33.0"}, result) is None
    assert fraction_of(tmp_path, "other", "a", client, result) is None
    good = {"completed": 1, "total_output_tokens": 5, "duration": 10.0}
    seen = Observed(result=good, requests={}, concurrency=1, num_prompts=1, ceiling_fraction=found)
    (reason,) = judge(seen, Thresholds()).reasons
    assert (reason.code, reason.threshold) == ("client_bound", 0.8)
    assert judge(replace(seen, ceiling_fraction=0.7), Thresholds()).verdict == "accepted"


def test_the_stand_in_needs_nothing_but_python() -> None:
    """It is run by any image's Python: the standard library, and uvloop where that is there."""
    text = Path(instant_server.__file__).read_text()
    assert "from berth" not in text
