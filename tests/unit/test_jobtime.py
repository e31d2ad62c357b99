"""How long a job may still run, by what its scheduler says; tests/slurm asks a real Slurm."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from berth.jobtime import parse_time_left, ready_within_s, seconds_left
from berth.ready import OutOfTime

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_END_TIME", "FLUX_JOB_ID", "FLUX_ENCLOSING_ID", "FLUX_URI")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH beside the shell's, and no job around this process."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def says(programs: Path, name: str, script: str) -> None:
    path = programs / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("59", 59),
        ("9:05", 545),
        ("1:00:00", 3600),
        ("2-00:00:00", 172800),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
    ],
)
def test_every_form_of_squeue(text: str, seconds: float | None) -> None:
    """Days, hours, minutes and seconds as squeue writes them; words are no number."""
    assert parse_time_left(text) == seconds


def test_no_job_has_no_end(programs: Path) -> None:
    """Outside a job nothing is asked and nothing limits a server."""
    says(programs, "squeue", "echo 1:00")
    says(programs, "flux", "echo 60")
    assert seconds_left() is None
    assert ready_within_s(180) is None


def test_slurm_is_asked_for_this_job(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that Slurm has now counts, and not the one with which the job started."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 5))
    says(programs, "squeue", 'case "$*" in *--jobs=4711*) echo 1:00:00;; esac')
    assert seconds_left() == 3600
    # One hour, three minutes of warning, and one by which it may come early.
    assert ready_within_s(180) == 3600 - 180 - 60


def test_slurm_that_does_not_answer_leaves_what_it_set(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without squeue the end that later versions put into the environment counts."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 1000))
    assert seconds_left() == pytest.approx(1000, abs=100)


@pytest.mark.parametrize("variable", ["FLUX_JOB_ID", "FLUX_ENCLOSING_ID", "FLUX_URI"])
def test_flux_is_asked_inside_its_jobs(programs: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Whatever Flux sets in a job or a batch script leads to its answer; its word for no limit is no limit.

    No Flux can be installed here: the program answers as flux-job(1) says.
    """
    monkeypatch.setenv(variable, "any")
    says(programs, "flux", '[ "$*" = "job timeleft" ] && echo 900')
    assert seconds_left() == 900
    says(programs, "flux", "echo 4294967295")
    assert seconds_left() is None
    says(programs, "flux", 'echo "flux-job: not in a job" >&2; exit 1')
    assert seconds_left() is None


def test_too_little_time_is_told_before_a_server_starts(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that would be warned before any server can be ready starts none, and the record calls it aborted."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    says(programs, "squeue", "echo 3:59")
    with pytest.raises(OutOfTime, match="this job ends in 239 s, and its warning comes 180 s before") as caught:
        ready_within_s(180)
    assert caught.value.kind == "aborted"
    assert "sweep:runtime=MINUTES" in caught.value.remedy
