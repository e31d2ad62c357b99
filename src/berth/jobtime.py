"""How long the scheduler job around this process may still run.

Sources: squeue(1), field %L; sbatch(1), SLURM_JOB_END_TIME (Slurm 22.05 does not set it); flux-job(1), timeleft.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress

from berth.checkup import ask
from berth.ready import MORE_TIME, OutOfTime
from berth.walltime import WARNING_EARLY_S

_TIMEOUT_S = 10.0
# A Flux job without a limit has at least this many seconds left.
_FLUX_UNLIMITED_S = 2**32 - 1


def ready_within_s(warn_s: float) -> float | None:
    """Seconds from now within which a server must be ready to be measured at all in this job; None without a limit.

    `warn_s` is how long before its end the scheduler was asked to warn the job.

    Raises:
        OutOfTime: they have passed already.
    """
    left = seconds_left()
    if left is None:
        return None
    within_s = left - warn_s - WARNING_EARLY_S
    if within_s <= 0:
        raise OutOfTime(
            f"No server was started: this job ends in {left:.0f} s, and its warning comes {warn_s:g} s before that, or "
            f"up to {WARNING_EARLY_S:g} s earlier.",
            MORE_TIME,
        )
    return within_s


def seconds_left() -> float | None:
    """Seconds that the job has left; None outside a job, without a limit, or where the scheduler does not say."""
    known = [left for left in (_slurm(), _flux()) if left is not None]
    return min(known, default=None)


def parse_time_left(text: str) -> float | None:
    """Seconds of what squeue prints for %L, [DAYS-][[HOURS:]MINUTES:]SECONDS; None for UNLIMITED and other words.

    >>> parse_time_left("1-02:03:04")
    93784.0
    """
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _slurm() -> float | None:
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    # Asked and not read from the environment: an operator may have changed the limit since the job started.
    answer = _answer("squeue", "--noheader", f"--jobs={job}", "--format=%L")
    if answer is not None:
        return parse_time_left(answer)
    with suppress(KeyError, ValueError):
        return float(os.environ["SLURM_JOB_END_TIME"]) - time.time()
    return None


def _flux() -> float | None:
    # In a batch script only FLUX_URI is set by every version. Outside a job the command ends with an error.
    if not any(os.environ.get(name) for name in ("FLUX_JOB_ID", "FLUX_ENCLOSING_ID", "FLUX_URI")):
        return None
    answer = _answer("flux", "job", "timeleft")
    with suppress(TypeError, ValueError):
        left = float(answer or "")
        return left if left < _FLUX_UNLIMITED_S else None
    return None


def _answer(*argv: str) -> str | None:
    answer = ask(*argv, timeout_s=_TIMEOUT_S)
    return (answer.out.strip() or None) if answer.good else None
