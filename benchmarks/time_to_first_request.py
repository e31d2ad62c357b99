"""From submission to the first measured request on Slurm, by phase.

Usage: python benchmarks/time_to_first_request.py            # a private Slurm on this host, the real vLLM, one run
       python benchmarks/time_to_first_request.py RESULTS    # the runs in a folder of results, where Slurm answers

Submission and start of the job are Slurm's (sacct, or scontrol while it knows the job), the job's own steps are from
the sweep's log, the server's from the point's record. Slurm and the log count whole seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVER = {
    "listening": "server: process until it listens (imports, model load)",
    "health": "server: health",
    "models": "server: it names its model",
    "first_completion": "server: first completion",
    "warmed_up": "client ready, and warm-up",
    "first_request": "first measured request",
}


def job_times(job: str) -> tuple[datetime, datetime]:
    """When a job was submitted, and when it started."""
    done = subprocess.run(
        ["sacct", "-X", "-n", "-P", "-j", job, "-o", "Submit,Start"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and done.stdout.strip():
        submitted, started = done.stdout.strip().splitlines()[-1].split("|")
    else:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
        submitted, started = (re.search(rf"\b{word}Time=(\S+)", shown)[1] for word in ("Submit", "Start"))
    return datetime.fromisoformat(submitted).astimezone(), datetime.fromisoformat(started).astimezone()


def logged(log: str, words: str, after: datetime) -> datetime:
    """The time of the first line of a sweep's log that holds these words; a log has times of day only."""
    clock = re.search(rf"^(\d\d:\d\d:\d\d) .*{re.escape(words)}", log, re.MULTILINE)[1]
    at = datetime.combine(after.date(), datetime.strptime(clock, "%H:%M:%S").time()).astimezone()  # noqa: DTZ007
    return at if at >= after - timedelta(seconds=1) else at + timedelta(days=1)


def phases(record: dict[str, Any], log: str, submitted: datetime, started: datetime) -> list[tuple[str, float]]:
    """Name and seconds of each phase; the record is that of the first point that the job measured."""
    sweep = logged(log, "points are missing", started)
    process = logged(log, "server: process_started", sweep)
    elapsed = {event["event"]: event["elapsed_s"] for event in record["server"]["timeline"]}
    found = [
        ("queue: submitted until the job runs", (started - submitted).total_seconds()),
        ("job: two nested starts of Snakemake", (sweep - started).total_seconds()),
        ("sweep: lease, receipts, leftovers", (process - sweep).total_seconds()),
    ]
    before = 0.0
    for event, name in SERVER.items():
        # A client that is started anew for each point does not tell its first request.
        if event in elapsed:
            found.append((name, elapsed[event] - before))
            before = elapsed[event]
    return found


def report(results: Path, typed: datetime | None = None) -> None:
    """Print a table for each job that measured a run in a folder of results; `typed` is when Snakemake was called."""
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(results.glob("points/*/*/*/run*/c*.json")):
        record = json.loads(path.read_text())
        key = (path.parent.relative_to(results / "points").as_posix(), record["server"]["job_id"])
        if key[1] and (key not in jobs or record["wall"]["start"] < jobs[key]["wall"]["start"]):
            jobs[key] = record
    for (run, job), record in jobs.items():
        logs = sorted((results / "logs/sweep" / run).parent.glob(f"{Path(run).name}.attempt*.log"))
        submitted, started = job_times(job)
        table = phases(record, logs[-1].read_text(), submitted, started)
        if typed:
            print(f"\nSnakemake was called {(submitted - typed).total_seconds():.1f} s before it submitted the job.")
        print(f"\n{run}, job {job}\n\n| phase | seconds |\n|---|---|")
        for name, seconds in table:
            print(f"| {name} | {seconds:.1f} |")
        print(f"| **submission to the first measured request** | **{sum(seconds for _, seconds in table):.1f}** |")


def on_a_private_slurm() -> None:
    """Bring up a Slurm, measure one run of two points with the real vLLM on it, and report."""
    sys.path[:0] = [str(ROOT / "tests/slurm"), str(ROOT / "tests/workflow")]
    from slurm_cluster import Slurm, SlurmWorkspace, folder_for_slurm  # noqa: PLC0415

    with folder_for_slurm() as folder, tempfile.TemporaryDirectory() as place:
        cluster = Slurm.start(folder)
        try:
            workspace = SlurmWorkspace.on(cluster, Path(place) / "workspace")
            workspace.use_vllm(runs=1)
            # What is done once for a cluster does not belong to the time of a job.
            workspace.run("points", "--until", "stage_model", "stage_image", "fetch_dataset")
            typed = datetime.now().astimezone()
            workspace.run("points")
            os.environ.update(cluster.environment)
            report(workspace.path / "results", typed)
        finally:
            cluster.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, help="a folder of results; none: a private Slurm is started")
    given = parser.parse_args()
    report(given.results) if given.results else on_a_private_slurm()
