"""The real guidellm and aiperf against the stand-in that answers at once: what reaches it, and what comes back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_client_vllm import text_of

from berth import instant_server
from berth._client_launch import Launch
from berth.bench import BenchSettings
from berth.ceiling import stand_in
from berth.clienttool import load_client
from berth.image import default_cache_dir, environment_folder
from berth.pins import LOCKS, read_lock
from berth.tinymodel import generate_model
from berth.toolclient import ADAPTERS, ToolLaunch, open_tool_client
from berth.validity import Observed, Thresholds, judge

if TYPE_CHECKING:
    from berth.clienttool import ClientTool

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-of-the-test-4c1d"
ROWS = [{"prompt": f"prompt number {n}", "prompt_len": 3, "output_len": 4 + n} for n in range(12)]
# vLLM's Python writes the prompts down; tests/integration/test_client_vllm.py has that part. Here they are given.
SAMPLER = f"""
import json, pathlib, sys
asked, written = map(pathlib.Path, sys.argv[2:])
written.write_text(json.dumps([{ROWS!r} for _ in json.loads(asked.read_text())]))
"""


def program_of(tool: ClientTool) -> Path:
    """The client's program in the cache; skips where it is not built."""
    image = tool.images["environment"]
    lock = read_lock(LOCKS / image["lock"])
    folder = environment_folder(lock, image["package"], default_cache_dir(), sys.version_info[:2])
    if not (folder / ".berth-complete.json").exists():
        pytest.skip(f"no {tool.name}: `make clients` builds it")
    return folder / "bin" / tool.program


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_the_real_client_asks_for_the_same_prompts_in_the_same_order(name: str, tmp_path: Path) -> None:
    """At concurrency 1: prompts, lengths and sampling as asked, all complete, the key in no file, nothing doubted."""
    tool = load_client(ROOT / "config/clients" / f"{name}.yaml")
    program = program_of(tool)
    generate_model(dest=tmp_path / "model", manifest_path=tmp_path / "manifest.json")
    worker = tmp_path / "worker.py"
    worker.write_text(SAMPLER)
    given = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    env = {variable: value for variable, value in {**given, **tool.env}.items() if value}
    log = tmp_path / "client.log"
    sampler = Launch((sys.executable,), worker, (), given, {}, log, "process")
    run = Launch((), worker, (str(program),), env, {ADAPTERS[name].KEY_VARIABLE: KEY}, log, "process")
    bodies = tmp_path / "bodies.jsonl"
    launch = ToolLaunch(tool, run, sampler, tmp_path / "exchange")
    with stand_in(KEY, bodies=bodies) as url, open_tool_client(launch) as client:
        settings = BenchSettings(
            base_url=url,
            served_model=instant_server.MODEL,
            tokenizer=str(tmp_path / "model"),
            dataset_path=None,
            num_prompts=len(ROWS),
        )
        measured = client.measure(settings, 1, tmp_path)
    sent = [body for body in map(json.loads, bodies.read_text().splitlines()) if text_of(body) in str(ROWS)]
    assert [(text_of(body), body["max_completion_tokens"]) for body in sent] == [
        (row["prompt"], row["output_len"]) for row in ROWS
    ]
    assert all(body["temperature"] == 0 and not body.get("ignore_eos") and body["stream"] for body in sent)
    assert (measured.result["completed"], measured.result["failed"]) == (len(ROWS), 0)
    assert measured.result["total_output_tokens"] == sum(row["output_len"] for row in ROWS)
    assert measured.requests["output_lens"] == [row["output_len"] for row in ROWS]
    assert KEY not in json.dumps([measured.requests, measured.command, measured.result]) + log.read_text()
    seen = Observed(result=measured.result, requests=measured.requests, concurrency=1, num_prompts=len(ROWS))
    assert judge(seen, Thresholds(min_duration_s=0, min_concurrency_fraction=0)).verdict == "accepted"
