"""Berth's sweep against a bare loop of `vllm bench serve`: the same points on a server of the same definition.

Usage: python benchmarks/sweep_efficiency.py [--prompts 160] [--levels 2 4 8]

Each side starts its own server in turn; wall times run from the first point's start to the last point's end, so that
the server's start counts for neither. Prints wall and measured seconds, the loss per point and the ratio of wall times.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml
from copies import copy_workflow

from berth.bench import BenchSettings, bench_argv
from berth.container import process_argv, process_env
from berth.parse import load_config
from berth.plan import make_plan
from berth.processes import new_token
from berth.ready import Checks, wait_until_ready
from berth.recipes import load_recipe
from berth.resolve import resolve
from berth.serve import Launch, serve
from berth.sockets import free_port

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
MODEL = "berth/tiny-llama"


def berth_side(folder: Path) -> tuple[float, float, list[float]]:
    """Wall and measured seconds of the points, and the loss of each, from the records of a real run."""
    subprocess.run([SNAKEMAKE, "--profile", "profiles/local", "points"], cwd=folder, check=True)
    records = [json.loads(path.read_text()) for path in folder.glob("results/points/*/*/*/run1/c*.json")]
    records.sort(key=lambda record: record["wall"]["start"])
    starts = [datetime.fromisoformat(record["wall"]["start"]).timestamp() for record in records]
    end = datetime.fromisoformat(records[-1]["wall"]["end"]).timestamp()
    durations = [record["result"]["duration"] for record in records]
    # From the start of a point to that of the next: judging, writing and everything else between two points is loss.
    spans = [after - before for before, after in zip(starts, [*starts[1:], end], strict=True)]
    events = {entry["event"]: entry["elapsed_s"] for entry in records[0]["server"]["timeline"]}
    print(f"Berth: ready after {events['first_completion']:.1f} s, warm after {events['warmed_up']:.1f} s")
    return end - starts[0], sum(durations), [span - each for span, each in zip(spans, durations, strict=True)]


def loop_side(folder: Path, levels: list[int]) -> tuple[float, float]:
    """Wall and measured seconds of a loop over the same points on a new server of the same definition."""
    config = load_config(yaml.safe_load((folder / "config/config.yaml").read_text()), folder)
    run = next(iter(make_plan(config, folder).runs.values()))
    image = json.loads((folder / "results/images/local/vllm-0.32.0.json").read_text())["path"]
    model = Path(json.loads((folder / "results/staged/local/tiny-llama.json").read_text())["dest"])
    scratch = folder / "loop"
    scratch.mkdir()
    port, key = free_port("127.0.0.1", 18000, 18999), secrets.token_urlsafe(32)
    container = resolve(
        load_recipe(folder / "config/recipes/vllm.yaml"),
        accelerator="cpu",
        version="0.32.0",
        platform_name="local",
        model_path=model,
        served_name=MODEL,
        host="127.0.0.1",
        port=port,
        cache_dir=scratch,
        files_dir=scratch,
        device="CPU",
        deployment_args=run.deployment.args,
        deployment_env=run.deployment.env,
    ).container
    env = process_env(container, image, os.environ)
    launch = Launch(
        argv=tuple(process_argv(container, image)),
        env=env,
        secret_env={"VLLM_API_KEY": key},
        cwd=scratch,
        host="127.0.0.1",
        port=port,
        served_model=MODEL,
    )
    settings = BenchSettings(
        base_url=f"http://127.0.0.1:{port}",
        served_model=MODEL,
        tokenizer=str(model),
        dataset_path=folder / "results/datasets/sharegpt-like-half/sharegpt.json",
        num_prompts=run.benchmark.num_prompts,
        seed=run.benchmark.seed,
    )
    client_env = {**env, "OPENAI_API_KEY": key, "no_proxy": "*"}

    def bench(level: int, name: str) -> float:
        command = [f"{image}/bin/vllm", "bench", "serve", *bench_argv(settings, level, scratch / name)]
        subprocess.run(command, env=client_env, check=True, capture_output=True)
        return float(json.loads((scratch / name).read_text())["duration"])

    with serve(launch, log_path=scratch / "server.log", token=new_token(), grace_s=10, known_failures=()) as server:
        wait_until_ready(server, api_key=key, checks=Checks(), stall_s=300, request_timeout_s=10, poll_s=0.2)
        bench(8, "warm.json")
        started = time.perf_counter()
        measured = sum(bench(level, f"c{level}.json") for level in levels)
        return time.perf_counter() - started, measured


def main() -> None:
    """Measure both and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()

    def change(config: dict) -> None:
        config["benchmarks"]["demo"].update(num_prompts=options.prompts, concurrency=options.levels)
        config["experiments"]["local"]["runs"] = 1

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "workflow"
        copy_workflow(folder, change)
        wall, measured, lost = berth_side(folder)
        loop_wall, loop_measured = loop_side(folder, options.levels)
    told = ", ".join(f"{each:.2f}" for each in lost)
    print(f"Berth: wall {wall:.1f} s, measured {measured:.1f} s ({measured / wall:.1%}), lost per point: {told} s")
    loop_lost = (loop_wall - loop_measured) / len(options.levels)
    print(f"Loop:  wall {loop_wall:.1f} s, measured {loop_measured:.1f} s ({loop_measured / loop_wall:.1%}), ", end="")
    print(f"lost per point: {loop_lost:.2f} s on average")
    print(f"ratio of wall times {wall / loop_wall:.2f}; of the measured times {measured / loop_measured:.2f}")


if __name__ == "__main__":
    main()
