"""workflow/scripts/batch-step.sh in a real shell: who gets a scheduler's signal, and when a job's shell ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
STEP = ROOT / "workflow/scripts/batch-step.sh"

# In the place of a sweep: says when TERM is handled, and takes a moment to clean up.
SWEEP = """
import sys, time
from berth.signals import Terminated, announce, terminate_as_exception
try:
    with terminate_as_exception():
        announce()
        print("ready", flush=True)
        time.sleep(60)
except Terminated as asked:
    time.sleep(0.5)
    print("cleaned up", flush=True)
    sys.exit(asked.exit_code)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A job's script of the form that Snakemake's executors write, which is not executable."""
    (tmp_path / "sweep.py").write_text(SWEEP)
    path = tmp_path / "script"
    path.write_text(f"#!/bin/sh\n. {STEP} && {sys.executable} sweep.py && echo succeeded\n")
    return path


@pytest.fixture
def job(script: Path) -> Iterator[subprocess.Popen[str]]:
    """The script as a scheduler starts it, when its sweep is ready."""
    environment = {**os.environ, "SLURM_JOB_ID": "1", "TMPDIR": str(script.parent)}
    process = subprocess.Popen(
        ["sh", str(script)],
        cwd=script.parent,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    with process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_shell_alone_reaches_the_sweep(job: subprocess.Popen[str], script: Path, number: int) -> None:
    """Slurm warns the batch shell and no other process; the sweep is asked to end, cleans up, and its code is told."""
    job.send_signal(number)
    assert job.communicate()[0] == "cleaned up\n"
    assert job.returncode == 128 + signal.SIGTERM
    assert list(script.parent.glob("berth-batch.*")) == []


def test_shell_stays_until_the_sweep_has_cleaned_up(job: subprocess.Popen[str]) -> None:
    """A signal to every process at once ends the shells in between first; the job's shell waits for the sweep."""
    between = [p for p in psutil.Process(job.pid).children() if "sh" in p.name()]
    assert between
    for process in between:
        process.kill()
    job.send_signal(signal.SIGTERM)
    assert job.communicate()[0] == "cleaned up\n"
    assert job.returncode


def test_signal_before_the_sweep_is_ready_ends_the_job(tmp_path: Path) -> None:
    """While there is nothing to clean up the job simply ends."""
    path = tmp_path / "script"
    path.write_text(f"#!/bin/sh\n. {STEP} && touch started && sleep 60\n")
    environment = {**os.environ, "FLUX_ENCLOSING_ID": "f1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(["sh", str(path)], cwd=tmp_path, env=environment, start_new_session=True) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        process.terminate()
        assert process.wait() != 0
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_ID": "1"}])
def test_local_jobs_are_left_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    """Snakemake puts the same words before jobs on its own node, by `sh -c`: they run once, inside a job or not."""
    command = f". {STEP} && echo ran"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "FLUX_"))}
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "ran\n"


def test_exit_code_of_the_job_is_told(tmp_path: Path) -> None:
    """The scheduler gets the exit code that the job's own command had."""
    path = tmp_path / "script"
    path.write_text(f"#!/bin/sh\n. {STEP} && exit 7\n")
    environment = {**os.environ, "SLURM_JOB_ID": "1", "TMPDIR": str(tmp_path)}
    assert subprocess.run(["sh", str(path)], env=environment, check=False).returncode == 7
