"""Environments of the tests' own, each of one lock."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from berth.image import default_cache_dir
from berth.packages import install_lock

if TYPE_CHECKING:
    from pathlib import Path


def make_environment(root: Path, lock: Path) -> None:
    """An environment in a folder that is not there yet. Raises subprocess.CalledProcessError with what was said."""
    venv = [sys.executable, "-m", "venv", "--without-pip", str(root)]
    subprocess.run(venv, check=True, capture_output=True, text=True)
    install_lock(root / "bin/python", lock, default_cache_dir(), hashes=False)
