"""Ray (PyPI) in an environment of its own: vLLM's environment for the CPU has none."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
from locked_environment import make_environment

LOCK = Path(__file__).parents[1] / "locks" / "ray.lock"


class RayMissingError(Exception):
    """Why there is no Ray here."""


def ray_environment() -> Path:
    """The environment, which is built once in the cache ($BERTH_CACHE or ~/.cache/berth) and then reused.

    Raises RayMissingError where it cannot be built.
    """
    cache = Path(os.environ.get("BERTH_CACHE") or Path.home() / ".cache" / "berth")
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    root = cache / f"ray-{wanted[:12]}"
    marker = root / ".whole"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{root}.lock"):
        if marker.exists():
            return root
        shutil.rmtree(root, ignore_errors=True)
        try:
            make_environment(root, LOCK)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(root, ignore_errors=True)
            detail = str(error.stderr or error).strip().splitlines()[-3:]
            raise RayMissingError(f"Ray could not be installed (tests/locks/ray.lock): {detail}") from error
        marker.touch()
        return root
