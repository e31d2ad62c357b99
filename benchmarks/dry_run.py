"""`snakemake -n` with 10,000 existing points and 100 missing ones, against Snakemake alone with as many files.

Usage: python benchmarks/dry_run.py [--existing 10000] [--missing 100] [--repeat 3]

Prints seconds (the least of the repeats) and peak memory of both, and their ratio. The other side is a Snakefile with
one rule that has all existing files as inputs and a rule that makes the missing ones.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from copies import copy_workflow

from berth.coordinates import RunId
from berth.fsio import write_json
from berth.parse import load_config
from berth.plan import make_plan

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
LEVELS = 100


def make_workspace(folder: Path, existing: int, missing: int) -> None:
    """The shipped workflow with an experiment of existing + missing points, of which the first are there."""

    def change(config: dict) -> None:
        config["benchmarks"]["demo"]["concurrency"] = list(range(1, LEVELS + 1))
        config["experiments"]["local"]["runs"] = (existing + missing) // LEVELS

    config = copy_workflow(folder, change)
    plan = make_plan(load_config(config, folder), folder)
    spec = next(iter(plan.runs.values())).id.spec
    for number in range(existing):
        point = RunId("local", "local", spec, number // LEVELS + 1).point(number % LEVELS + 1)
        path = folder / "results/points" / f"{point.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record_of(spec, point.run.run, point.concurrency), indent=2) + "\n")


def record_of(spec: str, run: int, concurrency: int) -> dict:
    """A record with everything that a plan looks at, as large as a real one."""
    return {
        "schema": 1,
        "point": {
            "experiment": "local",
            "platform": "local",
            "spec": spec,
            "run": run,
            "concurrency": concurrency,
            "deployment": "tiny-local",
        },
        "spec": {},
        "server": {"command": ["x" * 100] * 40},
        "client": {},
        "result": {"output_throughput": 100.0 + concurrency},
        "requests_file": None,
        "server_metrics": None,
        "validity": {"verdict": "accepted", "reasons": []},
        "failure": None,
        "wall": {},
    }


def make_plain(folder: Path, existing: int, missing: int) -> None:
    """Snakemake alone: one rule with all existing files as inputs, one that makes the missing ones."""
    for number in range(existing):
        write_json(folder / f"points/{number // LEVELS}/c{number % LEVELS}.json", {})
    (folder / "Snakefile").write_text(
        f"""
EXISTING = [f"points/{{n // {LEVELS}}}/c{{n % {LEVELS}}}.json" for n in range({existing})]
MISSING = [f"new/{{n}}.json" for n in range({missing})]
rule all:
    input: "table.csv"
rule table:
    input: EXISTING, MISSING
    output: "table.csv"
    shell: "touch {{output}}"
rule new:
    output: "new/{{n}}.json"
    shell: "touch {{output}}"
"""
    )


def measure(folder: Path, arguments: list[str], repeat: int) -> tuple[float, float]:
    """Least seconds of a dry run, and the peak memory of all children so far in MB."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run([SNAKEMAKE, *arguments, "-n", "--quiet", "all"], cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Measure both and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--existing", type=int, default=10_000)
    parser.add_argument("--missing", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plain, berth = Path(name) / "plain", Path(name) / "berth"
        plain.mkdir()
        make_plain(plain, options.existing, options.missing)
        # The peak of all children only grows, so the smaller one goes first.
        plain_s, plain_mb = measure(plain, ["--cores", "1"], options.repeat)
        make_workspace(berth, options.existing, options.missing)
        berth_s, berth_mb = measure(berth, ["--profile", "profiles/local"], options.repeat)
    print(f"Snakemake alone: {plain_s:.2f} s, {plain_mb:.0f} MB")
    print(f"Berth:           {berth_s:.2f} s, {berth_mb:.0f} MB")
    print(f"ratio {berth_s / plain_s:.2f}")


if __name__ == "__main__":
    main()
