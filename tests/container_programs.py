"""The real container programs of the tests: where they are, and what to install where they are not."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# What Podman 4.3 needs as root without every capability, on a host with both versions of cgroups.
CONTAINERS_CONF = """[containers]
default_ulimits=["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime="runc"
events_logger="file"
"""


def find_apptainer() -> Path | None:
    """Apptainer on PATH, or where tools/install-apptainer.sh puts it."""
    found = shutil.which("apptainer")
    if found:
        return Path(found)
    cache = os.environ.get("BERTH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "berth"
    installed = Path(cache) / "apptainer" / "bin" / "apptainer"
    return installed if installed.exists() else None


def apptainer_environment() -> dict[str, str]:
    """The environment of the tests with Apptainer on PATH; the test that asks is skipped where there is none."""
    found = find_apptainer()
    if found is None:
        pytest.skip("Apptainer is not installed: tools/install-apptainer.sh, or your distribution's package")
    return {**os.environ, "PATH": f"{found.parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def podman_environment(folder: Path) -> dict[str, str]:
    """The environment of the tests with what Podman needs as root of a CI machine; skips where there is none."""
    if shutil.which("podman") is None:
        pytest.skip("Podman is not installed: apt-get install podman")
    conf = folder / "containers.conf"
    conf.write_text(CONTAINERS_CONF)
    return {**os.environ, "CONTAINERS_CONF": str(conf)}


@contextlib.contextmanager
def podman_nodes(folder: Path, names: Sequence[str]) -> Iterator[dict[str, dict[str, str]]]:
    """The environments of Podman on nodes, by name: each has a storage of its own, and all share the file system."""
    base = podman_environment(folder)
    # With a runroot of more than 50 characters Podman waits 20 s for the end of every container.
    with tempfile.TemporaryDirectory(prefix="berth-") as place:
        nodes = {}
        for name in names:
            conf = folder / f"{name}.conf"
            conf.write_text(f'[storage]\ndriver="overlay"\ngraphroot="{place}/{name}"\nrunroot="{place}/{name}/run"\n')
            nodes[name] = {**base, "CONTAINERS_STORAGE_CONF": str(conf)}
        yield nodes
        for name, environ in nodes.items():
            subprocess.run(["podman", "rmi", "--all", "--force"], env=environ, check=True, capture_output=True)
            subprocess.run(["umount", f"{place}/{name}/overlay"], check=False, capture_output=True)
