"""What Berth asks Slurm before anything is submitted."""

from __future__ import annotations

import re
import subprocess

from berth.errors import BerthError

_TIMEOUT_S = 30
_NO_ACCOUNTING = ("(null)", "accounting_storage/none")


def check_status_command(command: str | None, first_check_s: int) -> None:
    """Return if the state of a finished job can be told by `command` (sacct or squeue).

    `first_check_s` is the executor's init-seconds-before-status-checks.

    Raises:
        BerthError: Slurm does not answer, or Snakemake would wait for ever for jobs that have ended.
    """
    judge_status_command(command, first_check_s, _show_config())


def judge_status_command(command: str | None, first_check_s: int, config: str) -> None:
    """The same on the text that `scontrol show config` prints.

    Raises:
        BerthError: Snakemake would wait for ever for jobs that have ended.
    """
    values = {key: value.strip() for key, value in re.findall(r"^(\w+)\s*= ?(.*)$", config, flags=re.MULTILINE)}
    if command == "sacct" and values.get("AccountingStorageType", "(null)") in _NO_ACCOUNTING:
        raise BerthError(
            "profile: slurm-status-command: sacct, but this Slurm keeps no accounting (AccountingStorageType is "
            f"{values.get('AccountingStorageType')}), so that Snakemake would never see a job end. Set it to squeue."
        )
    age_s = int(re.match(r"\d*", values.get("MinJobAge", "")).group() or 0)  # type: ignore[union-attr]
    if command == "squeue" and age_s < 3 * first_check_s:
        raise BerthError(
            f"profile: slurm-status-command: squeue, but Slurm forgets a job {age_s} s after its end (MinJobAge), "
            f"which is less than three times slurm-init-seconds-before-status-checks ({first_check_s}). Set the "
            f"latter to {max(age_s // 3, 1)} or less, or slurm-status-command to sacct where there is accounting."
        )


def _show_config() -> str:
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise BerthError(
            "scontrol is not on PATH. Run Snakemake where Slurm's commands are, most often on a login node, after "
            "`module load slurm` where the site has that."
        ) from None
    except subprocess.TimeoutExpired:
        raise BerthError(
            f"scontrol show config gave no answer in {_TIMEOUT_S} s. Is slurmctld up (scontrol ping)?"
        ) from None
    if done.returncode:
        raise BerthError(f"scontrol show config: {done.stderr.strip()} Is slurmctld up (scontrol ping)?")
    return done.stdout
