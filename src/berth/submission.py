"""Whether Slurm would take a job, and which key of the platform file to change where it would not.

`sbatch --test-only` is asked, which submits nothing. Its messages are those of Slurm 22.05.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.checkup import ask
from berth.errors import BerthError
from berth.jobtime import parse_time_left

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Resource of snakemake-executor-plugin-slurm -> option of sbatch.
OPTIONS = {
    "nodes": "--nodes",
    "tasks_per_node": "--ntasks-per-node",
    "cpus_per_task": "--cpus-per-task",
    "mem_mb": "--mem",
    "gres": "--gres",
    "runtime": "--time",
    "slurm_account": "--account",
    "slurm_partition": "--partition",
    "qos": "--qos",
    "constraint": "--constraint",
    "slurm_extra": "",
}
# What Slurm says -> keys of the platform file. The first that fits counts: "account" before "partition".
_BLAMED = (
    (r"qos", "slurm.qos"),
    (r"account", "slurm.account"),
    (r"partition", "slurm.partition"),
    (r"feature|constraint", "slurm.constraint"),
    (r"gres|generic resource|tres", "slurm.gpus, slurm.gpu_type"),
    (r"time limit", "slurm.max_minutes"),
    (r"option|reservation|node name|licen[sc]e", "slurm.extra"),
)
# Said of nodes that are too small, and also while nodes that would do are down.
_NO_SUCH_NODES = "node configuration"
# States of sinfo in which a node takes jobs, now or after the ones that it has.
_UP = ("idle", "alloc", "mix", "comp", "plnd", "resv")
# The resources that nodes may be too small for, in the order in which they are left out to find the one at fault.
_SIZES = {
    "gres": "accelerator.per_node, slurm.gpu_type",
    "mem_mb": "slurm.mem_mb_per_node",
    "cpus_per_task": "slurm.cpus_per_node",
    "constraint": "slurm.constraint",
    "slurm_extra": "accelerator.per_node, slurm.gpu_type, slurm.extra",
    "nodes": "nodes, or nodes of the deployment in config/config.yaml",
}


@dataclass(frozen=True)
class Verdict:
    """What Slurm says of a job: it would take it (True), would refuse it (False), or cannot tell now (None).

    `keys` of the platform file ask for what is refused; `command` asks again.
    """

    taken: bool | None
    said: str
    keys: str
    command: tuple[str, ...]


def sbatch_test(resources: Mapping[str, Any]) -> list[str]:
    """The command that asks Slurm whether it would take a job, without a job."""
    argv = ["sbatch", "--test-only", "--wrap=true"]
    for key, option in OPTIONS.items():
        value = resources.get(key)
        if option and value not in (None, "", -1):
            argv.append(f"{option}={value}")
    return [*argv, *shlex.split(str(resources.get("slurm_extra") or ""))]


def judge(resources: Mapping[str, Any]) -> Verdict:
    """What Slurm says of a job with these resources."""
    command = tuple(sbatch_test(resources))
    answer = ask(*command)
    if answer.good:
        said = answer.complaint.removeprefix("sbatch: ")
        limit = _exceeded_limit(resources)
        return Verdict(False, limit, "slurm.max_minutes", command) if limit else Verdict(True, said, "", command)
    # The last line is a general one; where there is another before it, that one names the value.
    said = next(iter(answer.err.strip().splitlines()), answer.complaint)
    for start in ("sbatch: error: ", "allocation failure: "):
        said = said.removeprefix(start)
    if _NO_SUCH_NODES not in said:
        keys = next((keys for word, keys in _BLAMED if re.search(word, said, re.IGNORECASE)), "slurm")
        return Verdict(False, said, keys, command)
    down = _not_up(resources.get("slurm_partition"))
    if down:
        # The test is against nodes that are up; a real job may wait for the others.
        return Verdict(None, f"{said}, but these nodes are not up: {down}", _too_large(resources), command)
    return Verdict(False, said, _too_large(resources), command)


def require_taken(jobs: Iterable[tuple[str, Mapping[str, Any]]], platform_file: str) -> None:
    """Return if Slurm would take each job, given as what it is for and its resources; equal ones are asked once.

    Raises:
        BerthError: it would refuse one: in its own words, with the keys to change.
    """
    distinct = {tuple(sorted((key, str(value)) for key, value in job.items())): (what, job) for what, job in jobs}
    for what, job in distinct.values():
        verdict = judge(job)
        if verdict.taken is False:
            raise BerthError(
                f"{platform_file}: {verdict.keys}: Slurm would refuse the job of {what}: {verdict.said}. Nothing was "
                f"submitted. Correct it; this asks Slurm again: {shlex.join(verdict.command)}"
            )


def _too_large(resources: Mapping[str, Any]) -> str:
    """The keys of the resource without which Slurm would take the job."""
    for name, keys in _SIZES.items():
        if resources.get(name) not in (None, "", -1):
            fewer = {key: value for key, value in resources.items() if key != name}
            if ask(*sbatch_test(fewer)).good:
                return keys
    return "accelerator.per_node, slurm.cpus_per_node, slurm.mem_mb_per_node, nodes"


def _of(partition: str | None) -> list[str]:
    return [f"--partition={partition}"] if partition else []


def _not_up(partition: str | None) -> str:
    """The nodes of a partition (None: of all) that take no job now."""
    answer = ask("sinfo", "--noheader", *_of(partition), "--format=%t %N")
    states = [line.split() for line in answer.out.splitlines() if line.strip()]
    # A mark behind a state, such as idle* or idle~, says that the node does not respond or is switched off.
    return ",".join(line[-1] for line in states if line[0] not in _UP)


def _exceeded_limit(resources: Mapping[str, Any]) -> str:
    """What is wrong with a job that is longer than its partition allows; "" where nothing is.

    Most sites take such a job, and it waits for ever.
    """
    minutes, partition = resources.get("runtime"), resources.get("slurm_partition")
    for line in ask("sinfo", "--noheader", *_of(partition), "--format=%P %l").out.splitlines():
        name, _, limit = line.strip().partition(" ")
        # A job without a partition goes to the default one, which sinfo marks.
        limit_s = parse_time_left(limit) if partition or name.endswith("*") else None
        if isinstance(minutes, int) and limit_s is not None and minutes * 60 > limit_s:
            name = name.rstrip("*")
            return f"{minutes} minutes are more than partition {name} allows ({limit}), so that it would wait for ever"
    return ""
