"""Ray (PyPI) in an environment of its own: vLLM's environment for the CPU has none."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock

LOCK = Path(__file__).parents[1] / "locks" / "ray.lock"
_PIP_TIMEOUT_S = 900


class RayMissingError(Exception):
    """Why there is no Ray here."""


def ray_environment() -> Path:
    """The environment, which is built once in the cache ($BERTH_CACHE or ~/.cache/berth) and then reused.

    Raises RayMissingError where pip cannot build it.
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
        pip = [str(root / "bin/python"), "-m", "pip", "install", "-q", "--no-deps", "-r", str(LOCK)]
        try:
            for command in ([sys.executable, "-m", "venv", str(root)], pip):
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            shutil.rmtree(root, ignore_errors=True)
            detail = str(error.stderr or error).strip().splitlines()[-1:]
            raise RayMissingError(f"pip could not install Ray (tests/locks/ray.lock): {detail}") from error
        marker.touch()
        return root
