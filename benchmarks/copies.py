"""A copy of the shipped workflow for a benchmark to work in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]


def copy_workflow(folder: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Copy everything that Snakemake needs into `folder`, with a changed config/config.yaml; returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "environment.yml", "workflow", "config", "profiles", "data"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy2(source, folder / name)
    file = folder / "config/config.yaml"
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))
    return config
