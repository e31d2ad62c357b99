"""From a server's readiness to its first measured request, with and without the warm-up that is not measured.

Usage: python benchmarks/first_request.py [--warm-up 0 32]

Each warm-up is one real run of the local experiment's smallest point on a new server; times are of its record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from copies import copy_workflow

SNAKEMAKE = Path(sys.executable).with_name("snakemake")


def timeline(folder: Path, warm_up_prompts: int) -> dict[str, float]:
    """Seconds since the start of the server, by event, of a run of one point."""

    def change(config: dict) -> None:
        config["benchmarks"]["demo"].update(concurrency=[2], warm_up_prompts=warm_up_prompts)
        config["experiments"]["local"]["runs"] = 1

    copy_workflow(folder, change)
    subprocess.run([SNAKEMAKE, "--profile", "profiles/local", "--quiet", "all", "--", "points"], cwd=folder, check=True)
    (record,) = [json.loads(path.read_text()) for path in folder.glob("results/points/*/*/*/run1/c*.json")]
    return {entry["event"]: entry["elapsed_s"] for entry in record["server"]["timeline"]}


def main() -> None:
    """Measure and print one line per warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm-up", type=int, nargs="+", default=[0, 32])
    options = parser.parse_args()
    told = []
    for count in options.warm_up:
        with tempfile.TemporaryDirectory() as name:
            times = timeline(Path(name) / "workflow", count)
        ready, warm, first = (times[event] for event in ("first_completion", "warmed_up", "first_request"))
        told.append(
            f"{count} warm-up requests: ready after {ready:.1f} s, from then {warm - ready:.2f} s until warm, "
            f"from warm {first - warm:.2f} s, in all {first - ready:.2f} s from ready to the first measured request"
        )
    print("\n".join(told))


if __name__ == "__main__":
    main()
