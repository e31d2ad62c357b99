"""One job of a scheduler that somebody else submitted: whether it is there, how it ended, and how it is cancelled.

Sources: squeue(1), scontrol(1), scancel(1); flux-jobs(1), flux-cancel(1). profiles/eldorado/flux-status.sh reads the
same states of Flux.
"""

from __future__ import annotations

import re
from typing import Literal

from berth.checkup import ask

JobState = Literal["queued", "running", "gone", "unknown"]
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "NEW", "DEPEND", "PRIORITY", "SCHED"}
_UNKNOWN_JOB = re.compile(r"invalid job id|unknown|not found|no such|invalid jobid", re.IGNORECASE)
_GONE = {"INACTIVE"}

# What a scheduler calls the end of a job -> kind and cause, as a history holds them.
_ENDS = {
    "NODE_FAIL": ("node", "A node of the job failed."),
    "BOOT_FAIL": ("node", "A node of the job did not start."),
    "TIMEOUT": ("walltime", "The job's time was over."),
    "CANCELLED": ("cancelled", "The job was cancelled."),
    "CANCELED": ("cancelled", "The job was cancelled."),
    "PREEMPTED": ("cancelled", "The job was preempted."),
    "OUT_OF_MEMORY": ("memory", "The job took more memory than it had asked for."),
}
_LOST = ("killed", "The job ended without a word: its processes were killed, or its node died.")


def job_state(scheduler: str, job_id: str) -> JobState:
    """Whether a job waits, runs or is gone; unknown where the scheduler gives no answer now."""
    if scheduler == "slurm":
        answer = ask("squeue", "--noheader", f"--jobs={job_id}", "--format=%T")
    else:
        answer = ask("flux", "jobs", "-n", "-o", "{state}", job_id)
    if not answer.good:
        return "gone" if _UNKNOWN_JOB.search(answer.err) else "unknown"
    word = answer.out.strip().split("\n")[0].strip()
    if not word or word in _GONE:
        return "gone"
    return "queued" if word in _QUEUED else "running"


def how_ended(scheduler: str, job_id: str) -> tuple[str, str]:
    """Kind and cause of the end of a job, as far as the scheduler still knows it."""
    if scheduler == "slurm":
        found = re.search(r"\bJobState=(\w+)", ask("scontrol", "show", "job", job_id).out)
        return _ENDS.get(found[1], _LOST) if found else _LOST
    return _ENDS.get(ask("flux", "jobs", "-n", "-o", "{result}", job_id).out.strip(), _LOST)


def cancel_command(scheduler: str, job_id: str) -> list[str]:
    """The command that cancels a job: its processes are asked first."""
    return ["scancel", job_id] if scheduler == "slurm" else ["flux", "cancel", job_id]


def submitted_id(log: str) -> str:
    """The id that Snakemake's executor printed for the one job that it submitted; "" as long as it did not."""
    found = re.search(r"with SLURM jobid (\d+)|with external jobid '?([^'\s.]+)", log)
    return (found[1] or found[2]) if found else ""
