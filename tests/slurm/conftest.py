"""A private Slurm for the session."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The workspace of the workflow's tests; test files are no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from slurm_cluster import INSTALL, PROGRAMS, Slurm, folder_for_slurm, missing_programs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell without job control starts what it puts into the background with SIGINT ignored, which is inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Four nodes with four GPUs each, without accounting."""
    missing = missing_programs(*PROGRAMS)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}. {INSTALL}")
    with folder_for_slurm() as folder:
        cluster = Slurm.start(folder)
        yield cluster
        cluster.stop()


@pytest.fixture(scope="session")
def accounted() -> Iterator[Slurm]:
    """Two nodes, with accounting by slurmdbd: the account `research` is ours, `others` is not, nor any other QOS."""
    missing = missing_programs(*PROGRAMS, "slurmdbd", "mariadbd", "mariadb-install-db")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}. {INSTALL} slurmdbd mariadb-server")
    with folder_for_slurm() as folder:
        cluster = Slurm.start(folder, nodes=2, accounting=True)
        yield cluster
        cluster.stop()
