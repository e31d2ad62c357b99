"""A private Slurm for the session, and what happened to four runs of one experiment on it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The workspace of the workflow's tests; test files are no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from slurm_cluster import INSTALL, PROGRAMS, Slurm, missing_programs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Four nodes with four GPUs each, without accounting."""
    missing = missing_programs(*PROGRAMS)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}. {INSTALL}")
    # Not pytest's own folder, which is closed to others: munge refuses it.
    with tempfile.TemporaryDirectory(prefix="berth-slurm-") as folder:
        cluster = Slurm.start(Path(folder))
        yield cluster
        cluster.stop()
