"""The scripts of profiles/eldorado against a stand-in for `flux` that prints what Flux's manual says.

No real Flux runs here: none can be installed from a registry. docs/flux.md says what was compared with what.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "profiles/eldorado"
ID = "41988313088"

# Notes its arguments, one call a line, and answers from files: `state` for `flux jobs`, `fail` times with an error.
STANDIN = """#!/bin/sh
here=$(dirname "$0")
printf '%s\\n' "$*" >>"$here/calls"
case $1 in
    batch) echo f22GQcrM3 ;;
    job) echo 41988313088 ;;
    cancel) exit 1 ;;
    jobs)
        left=$(cat "$here/fail" 2>/dev/null || echo 0)
        if [ "$left" -gt 0 ]; then
            echo $((left - 1)) >"$here/fail"
            echo "flux-jobs: ERROR: [Errno 113] broker: Host is unreachable" >&2
            exit 1
        fi
        cat "$here/state"
        ;;
esac
"""


class Flux:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        program = folder / "bin/flux"
        program.write_text(STANDIN)
        program.chmod(0o755)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "BERTH_FLUX_PAUSE_S": "0",
        }
        return subprocess.run(
            [PROFILE / script, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self, state: str, *, failing: int = 0) -> str:
        (self.folder / "bin/state").write_text(f"{state}\n")
        (self.folder / "bin/fail").write_text(str(failing))
        return self.run("flux-status.sh", ID).stdout

    @property
    def calls(self) -> list[str]:
        return (self.folder / "bin/calls").read_text().splitlines()


@pytest.fixture
def flux(tmp_path: Path) -> Flux:
    return Flux(tmp_path)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("DEPEND ", "running"),
        ("PRIORITY ", "running"),
        ("SCHED ", "running"),
        ("RUN ", "running"),
        ("CLEANUP ", "running"),
        ("INACTIVE COMPLETED", "success"),
        ("INACTIVE FAILED", "failed"),
        ("INACTIVE CANCELED", "failed"),
        ("INACTIVE TIMEOUT", "failed"),
    ],
)
def test_every_state_of_flux_is_one_word(flux: Flux, state: str, told: str) -> None:
    """Each state and result of Flux's manual becomes exactly one line with a word that the executor knows."""
    assert flux.status(state) == f"{told}\n"
    assert flux.calls == [f"jobs -n -o {{state}} {{result}} {ID}"]


def test_flux_that_does_not_answer_is_asked_again(flux: Flux) -> None:
    """A broker that is down for a moment is no failed job; one that stays away is, with its own words."""
    assert flux.status("RUN ", failing=4) == "running\n"
    assert flux.status("RUN ", failing=5) == "failed\n"


def test_unknown_state_is_a_failed_job_and_told(flux: Flux) -> None:
    """A state of a later Flux does not leave Snakemake waiting for ever."""
    (flux.folder / "bin/state").write_text("DREAMING \n")
    done = flux.run("flux-status.sh", ID)
    assert done.stdout == "failed\n"
    assert "DREAMING" in done.stderr


def test_submission_in_full(flux: Flux) -> None:
    """Nodes, a slot for each, its GPUs and CPUs, minutes as minutes, Berth's options, the log, the script; the id."""
    options = "--queue=pbatch --exclusive --signal=SIGUSR1@180s"
    done = flux.run("flux-submit.sh", "4", "4", "96", "804", options, "sweep", "/tmp/script.sh")
    assert done.stdout == f"{ID}\n"
    batch = (
        "batch --nodes=4 --nslots=4 --cores-per-slot=96 --time-limit=804m --job-name=berth-sweep "
        f"--output=.snakemake/flux_logs/sweep-{{{{id}}}}.log {options} --gpus-per-slot=4 /tmp/script.sh"
    )
    assert flux.calls == [batch, "job id --to=dec f22GQcrM3"]
    assert (flux.folder / ".snakemake/flux_logs").is_dir()


def test_submission_without_gpus_and_options(flux: Flux) -> None:
    """A staging job names no GPUs; a script with a space in its path stays one argument."""
    flux.run("flux-submit.sh", "1", "0", "4", "60", "", "stage_model", "/tmp/a b.sh")
    assert "gpus" not in flux.calls[0]
    assert flux.calls[0].endswith(" /tmp/a b.sh")


def test_cancel_takes_several_and_is_never_an_error(flux: Flux) -> None:
    """Jobs that have ended already make `flux cancel` fail, which is no failure of Snakemake's."""
    assert flux.run("flux-cancel.sh", "1", "2").returncode == 0
    assert flux.calls == ["cancel 1 2"]


def test_profile_calls_the_scripts_as_the_executor_does() -> None:
    """Submit and status are shell commands; cancel is one executable, which the executor starts without a shell."""
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    submit = shlex.split(profile["cluster-generic-submit-cmd"])
    assert len(submit) == 7  # The script and six arguments; the executor adds the seventh.
    for key in ("cluster-generic-cancel-cmd", "cluster-generic-status-cmd"):
        assert os.access(ROOT / profile[key], os.X_OK)
    assert os.access(ROOT / submit[0], os.X_OK)
