"""A term as its keeper sees it: files, processes of this machine, and what scheduler commands answer.

The commands are stand-ins that print what Slurm's and Flux's manuals say; tests/slurm has the real Slurm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from berth.holder import Identity
from berth.processes import start_ticks
from berth.schedulerjobs import cancel_command, how_ended, job_state, submitted_id
from berth.termfiles import Failure, Order, Report, TermFiles
from berth.termjob import TermJob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = Identity.current()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a job."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    yield process
    process.kill()
    process.wait()


def identity_of(process: subprocess.Popen[bytes]) -> Identity:
    return replace(HERE, pid=process.pid, start_ticks=start_ticks(process.pid) or 0)


def order_of(launcher: Identity = HERE, scheduler: str = "local") -> Order:
    return Order(1, "/keys/tiny", scheduler, time.time(), launcher.as_json())


def report_of(identity: Identity, **changes: object) -> Report:
    report = Report(
        number=1,
        state="ready",
        job_id="4711",
        identity=identity.as_json(),
        token="t",
        at=10.0,
        started=5.0,
        host="node7",
        address="10.0.0.7",
        port=8001,
        ready_at=9.0,
        answered=10.0,
        failures=(Failure(8.0, "crash", "it died", "look"),),
    )
    return replace(report, **changes)  # type: ignore[arg-type]


def job_of(files: TermFiles, order: Order, log: Path, *, silent_s: float = 0.0) -> TermJob:
    files.give(order)
    return TermJob(files, order, log, silent_s=silent_s, lost_s=100.0)


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_files_come_back_and_are_numbered(tmp_path: Path) -> None:
    """Order and report are what was written, and no number is given twice, also after a term was settled."""
    files = TermFiles.of(tmp_path, "hops", "tiny")
    assert files.take_number() == 1
    order = order_of()
    files.give(order)
    report = report_of(HERE, podman=("podman",), shared_memory={"psm_1": 7})
    files.tell(report)
    assert files.order(1) == order
    assert files.report(1) == report
    assert report.leftover.token == "t"
    assert files.ordered() == files.reported() == [1]
    (tmp_path / "services/hops/tiny/t1.done").touch()
    files.settle(1)
    assert files.ordered() == []
    assert not (tmp_path / "services/hops/tiny/t1.done").exists()
    assert files.take_number() == 2
    # It told nothing, and yet its number is not given again.
    files.settle(2)
    assert files.take_number() == 3
    assert files.report(2) is files.order(2) is None


def test_a_report_that_would_run_something_else_is_refused() -> None:
    """Nothing but Podman is ever run from such a file."""
    with pytest.raises(ValueError, match="podman"):
        _ = report_of(HERE, podman=("rm", "-rf")).leftover


def test_a_term_without_scheduler(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """On this machine a term is queued, then ready, and over as soon as its process is."""
    files = TermFiles(tmp_path)
    job = job_of(files, order_of(), tmp_path / "log")
    job.look()
    assert job.instance().state == "queued"
    files.tell(report_of(identity_of(other)))
    job.look()
    assert job.ready
    assert job.served_s == 1.0
    told = job.instance()
    assert (told.state, told.host, told.address, told.port) == ("ready", "node7", "10.0.0.7", 8001)
    job.stop()
    assert files.order(1).stop  # type: ignore[union-attr]
    assert job.instance().state == "draining"
    other.kill()
    other.wait()
    job.look()
    assert job.end
    assert (job.end.kind, job.end.at) == ("killed", 10.0)


def test_what_a_term_told_is_its_end(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """A cause that was told before the process was killed is the cause."""
    files = TermFiles(tmp_path)
    job = job_of(files, order_of(), tmp_path / "log")
    files.tell(report_of(identity_of(other), state="draining", kind="walltime", cause="over"))
    job.look()
    assert job.end is None
    assert job.stopping
    other.kill()
    other.wait()
    job.look()
    assert job.end
    assert (job.end.kind, job.end.cause) == ("walltime", "over")


def test_a_submission_that_fails_says_what_snakemake_said(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """A Snakemake that ends without a job is the end of its term, with its last lines."""
    files, log = TermFiles(tmp_path), tmp_path / "log"
    job = job_of(files, order_of(identity_of(other), "slurm"), log)
    job.look()
    assert job.end is None
    log.write_text("Building DAG of jobs...\nsbatch: error: Invalid partition\nExiting because a job failed\n")
    other.kill()
    other.wait()
    job.look()
    assert job.end
    assert job.end.kind == "submit"
    assert "Invalid partition" in job.end.cause
    assert "Exiting" not in job.end.cause


def test_a_silent_job_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that tells nothing lives as long as the scheduler knows it, and ends as the scheduler says."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "squeue", "echo RUNNING")
    log = tmp_path / "log"
    log.write_text("Job 0 has been submitted with SLURM jobid 4711 (log: x).\n")
    job = job_of(TermFiles(tmp_path), order_of(scheduler="slurm"), log)
    job.look()
    assert job.job_id == "4711"
    assert job.end is None
    program(tmp_path, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    program(tmp_path, "scontrol", "echo 'JobId=4711 JobState=NODE_FAIL Reason=NodeDown'")
    job.look()
    assert job.end
    assert job.end.kind == "node"


@pytest.mark.parametrize(
    ("scheduler", "script", "state"),
    [
        ("slurm", "echo PENDING", "queued"),
        ("slurm", "echo COMPLETING", "running"),
        ("slurm", "true", "gone"),
        ("slurm", "echo 'Unable to contact slurm controller' >&2; exit 1", "unknown"),
        ("flux", "echo SCHED", "queued"),
        ("flux", "echo CLEANUP", "running"),
        ("flux", "echo INACTIVE", "gone"),
        ("flux", "echo 'flux-jobs: ERROR: Host is unreachable' >&2; exit 1", "unknown"),
    ],
)
def test_states_of_schedulers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str, script: str, state: str
) -> None:
    """A scheduler that does not answer is no job that has ended."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "squeue" if scheduler == "slurm" else "flux", script)
    assert job_state(scheduler, "4711") == state


def test_commands_of_flux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flux is asked with the options of flux-jobs(1), as profiles/eldorado does, and cancels as flux-cancel(1)."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "flux", f"printf '%s\\n' \"$*\" >>{tmp_path}/calls; echo TIMEOUT")
    job_state("flux", "41988313088")
    assert how_ended("flux", "41988313088")[0] == "walltime"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["jobs -n -o {state} 41988313088", "jobs -n -o {result} 41988313088"]
    assert cancel_command("flux", "41988313088") == ["flux", "cancel", "41988313088"]
    assert cancel_command("slurm", "4711") == ["scancel", "4711"]


def test_ids_as_executors_print_them() -> None:
    """The executors of Slurm and of cluster-generic print the id of a job in these words."""
    assert submitted_id("Job 0 has been submitted with SLURM jobid 4711 (log: /x/4711.log).") == "4711"
    assert submitted_id("Submitted job 0 with external jobid '41988313088'.") == "41988313088"
    assert submitted_id("Building DAG of jobs...") == ""
