"""The packages of a lock as files, for a machine without a package index."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.fsio import write_text
from berth.image import TORCH_CPU_INDEX
from berth.packages import beside
from berth.pins import read_lock

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_MARKER = ".berth-lock-sha256"
_LINES = 12
_DOWNLOAD = [sys.executable, "-m", "pip", "download", "--no-input"]


def download_wheels(lock: Path, folder: Path, *, hashes: bool) -> Path:
    """A folder with what `pip install --requirement LOCK` needs, for this Python and kind of machine.

    pip's own settings hold (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX, proxies), so that a site's mirror does. A
    folder that is whole for this lock and Python is kept. `hashes` says that the lock has them.

    Raises:
        BerthError: pip cannot get them, with its last lines.
    """
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    marker = folder / _MARKER
    if marker.exists() and marker.read_text() == wanted:
        return folder
    # What another lock asked for must not come along.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    logger.info("getting the packages of %s", lock)
    command = [*_DOWNLOAD, "--no-deps", "--dest", str(folder)]
    if hashes:
        extra = ["--require-hashes"]
    else:
        pins = read_lock(lock)
        extra = ["--only-binary=:all:", *beside(pins)]
        # torch's CPU build has an index of its own, as in the building of the image.
        if pins.has("torch") and not os.environ.get("PIP_NO_INDEX"):
            extra += ["--extra-index-url", TORCH_CPU_INDEX]
    _run([*command, *extra, "--requirement", str(lock)], lock)
    # A package that comes as its sources is built where it is installed, with packages that no lock of it names.
    if needed := build_requirements(folder):
        _run([*_DOWNLOAD, "--dest", str(folder), "--only-binary=:all:", *needed], lock)
    write_text(marker, wanted)
    return folder


def build_requirements(folder: Path) -> list[str]:
    """What the source packages in a folder need to be built (PEP 518; setuptools where they do not say)."""
    found: set[str] = set()
    for path in folder.glob("*.tar.gz"):
        with tarfile.open(path) as tar:
            names = [name for name in tar.getnames() if name.count("/") == 1 and name.endswith("/pyproject.toml")]
            handle = tar.extractfile(names[0]) if names else None
            project = tomllib.loads(handle.read().decode()) if handle else {}
        # pip builds sources that say nothing with these.
        found |= set(project.get("build-system", {}).get("requires", ["setuptools>=40.8.0", "wheel"]))
    return sorted(found)


def _run(command: list[str], lock: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-_LINES:])
    raise BerthError(
        f"The packages of {lock} could not be had (exit code {done.returncode}). Set PIP_INDEX_URL, https_proxy or "
        "PIP_CERT as your site needs, or leave them out with --config bundle_wheels=false where the other site has "
        f"its own way to Python's packages. Last lines:\n{tail}"
    )
