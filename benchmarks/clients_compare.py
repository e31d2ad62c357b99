"""Do the benchmark clients measure the same? The rule `cross_check` on the local platform's real vLLM server.

Usage: python benchmarks/clients_compare.py [--levels 1 8 32] [--repeats 3] [--clients vllm guidellm aiperf]

One server, the same prompts, the clients in turn; prints the table with ratios, the noise of each client over its runs,
and verdicts. The clients' environments are built by `make clients`; without them the rule builds them first. The
machine should have nothing else to do: on two busy cores the noise was 5 to 50 %, so that no difference could be seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from copies import copy_workflow

SNAKEMAKE = Path(sys.executable).with_name("snakemake")


def main() -> None:
    """Measure, and print the report of the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", nargs="+", default=["vllm", "guidellm", "aiperf"])
    options = parser.parse_args()

    def change(config: dict[str, Any]) -> None:
        config["cross_check"] = {
            "levels": options.levels,
            "repeats": options.repeats,
            "clients": options.clients,
        }

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "workflow"
        copy_workflow(folder, change)
        command = [SNAKEMAKE, "--profile", "profiles/local", "--quiet", "all", "--config", "experiment=local"]
        subprocess.run([*command, "--", "cross_check"], cwd=folder, check=True, stdout=sys.stderr)
        found = folder / "results/cross_check/local/local"
        print((found / "cross_check.md").read_text())
        for path in sorted(found.glob("*/run1/c*.json")):
            client = json.loads(path.read_text())["client"]
            print(f"{path.parts[-3]} {client['version']} at {path.stem}: not given {client.get('not_given', [])}")


if __name__ == "__main__":
    main()
