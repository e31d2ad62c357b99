"""Checks of the scheduler. Commands and their output: Slurm 22.05 and later, flux-core 0.50 and later."""

from __future__ import annotations

import getpass
import re
import shlex
from typing import TYPE_CHECKING, Any

from berth.checkup import Result, ask, fail, ok, warn
from berth.errors import BerthError
from berth.slurm import judge_status_command
from berth.submission import judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from berth.config import Flux, Slurm

_LOAD = "run doctor where the scheduler's commands are, most often on a login node, or load its module"


def slurm_checks(
    slurm: Slurm, jobs: Mapping[str, Mapping[str, Any]], status_command: str | None, first_check_s: int | None
) -> Iterator[Result]:
    """Slurm answers, keeps what Snakemake needs to know, and would take the sweep of each deployment.

    `jobs` has the resources of a sweep by deployment (resources.sweep_resources); `status_command` and `first_check_s`
    are the profile's, None where jobs are not submitted with Slurm.
    """
    ping = ask("scontrol", "ping")
    if ping.code is None:
        yield fail("Slurm: scontrol is not on PATH or does not answer", _LOAD)
        return
    if not ping.good or " UP" not in ping.out:
        yield fail(f"Slurm: {ping.complaint}", "ask the site whether slurmctld is up")
        return
    yield ok(f"Slurm answers: {ping.out.strip().splitlines()[0]}")
    config = ask("scontrol", "show", "config").out
    yield _status(status_command, first_check_s, config)
    if slurm.partition:
        yield _partition(slurm.partition)
    if slurm.account:
        yield _account(slurm.account, config)
    for name, resources in jobs.items():
        yield _takes(name, resources)


def _status(command: str | None, first_check_s: int | None, config: str) -> Result:
    """Whether the state of an ended job can be told."""
    if command is None or first_check_s is None:
        return ok("Slurm: jobs are not submitted in this call (executor local), so no state of theirs is asked for")
    try:
        judge_status_command(command, first_check_s, config)
    except BerthError as error:
        return fail(f"Slurm: {error}", "change the profile's config.yaml")
    answer = ask(command, "--noheader")
    if not answer.good:
        return fail(f"Slurm: {command}: {answer.complaint}", "set slurm-status-command in the profile's config.yaml")
    return ok(f"Slurm: {command} tells the state of jobs")


def _partition(name: str) -> Result:
    answer = ask("sinfo", "--noheader", f"--partition={name}", "--format=%R %a %D %G")
    lines = [line.split() for line in answer.out.splitlines() if line.strip()]
    if not answer.good or not lines:
        every = sorted(set(ask("sinfo", "--noheader", "--format=%R").out.split()))
        return fail(
            f"Slurm: there is no partition {name}",
            f"set slurm.partition in the platform file to one of: {', '.join(every) or 'none is visible to you'}",
        )
    if not any(line[1] == "up" for line in lines):
        return fail(f"Slurm: partition {name} is {lines[0][1]}", "wait until it is up, or choose another")
    nodes = sum(int(line[2]) for line in lines)
    return ok(f"Slurm: partition {name} is up, {nodes} nodes, {', '.join(sorted({line[3] for line in lines}))}")


def _account(name: str, config: str) -> Result:
    if not re.search(r"^AccountingStorageType\s*=\s*accounting_storage/slurmdbd", config, flags=re.MULTILINE):
        return ok(f"Slurm: account {name} is not checked, because this Slurm keeps no accounts")
    user = getpass.getuser()
    answer = ask("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=Account")
    accounts = sorted(set(answer.out.split()))
    if not answer.good:
        return warn(f"Slurm: accounts cannot be listed: {answer.complaint}", "check slurm.account with the site")
    if name not in accounts:
        return fail(
            f"Slurm: {user} may not use account {name}",
            f"set slurm.account in the platform file to one of: {', '.join(accounts) or 'none; ask the site for one'}",
        )
    return ok(f"Slurm: {user} may use account {name}")


def _takes(name: str, resources: Mapping[str, Any]) -> Result:
    verdict = judge(resources)
    if verdict.taken:
        return ok(f"Slurm: would take the job of {name}: {verdict.said}")
    remedy = f"correct {verdict.keys} in the platform file; this asks again: {shlex.join(verdict.command)}"
    if verdict.taken is None:
        return warn(f"Slurm: would not take the job of {name} now: {verdict.said}", f"wait for them, or {remedy}")
    return fail(f"Slurm: would refuse the job of {name}: {verdict.said}", remedy)


def flux_checks(flux: Flux, nodes: int) -> Iterator[Result]:
    """Flux answers, knows the queue, and has as many nodes as the largest deployment needs."""
    version = ask("flux", "version")
    if version.code is None:
        yield fail("Flux: flux is not on PATH or does not answer", _LOAD)
        return
    up = ask("flux", "uptime")
    if not up.good:
        yield fail(f"Flux: {up.complaint}", "run doctor inside the site's Flux instance (flux uptime must answer)")
        return
    yield ok(f"Flux answers: {up.out.strip().splitlines()[0].strip() if up.out.strip() else 'flux uptime is well'}")
    yield _queue(flux.queue)
    counted = ask("flux", "resource", "list", "--states=up", "--no-header", "--format={nnodes}").out.split()
    if len(counted) == 1 and counted[0].isdigit() and int(counted[0]) < nodes:
        yield fail(
            f"Flux: {counted[0]} nodes are up, and a deployment needs {nodes}",
            "lower nodes of the deployment, or wait until more are up (flux resource list)",
        )


def _queue(name: str) -> Result:
    if not name:
        return ok("Flux: no queue is set, so the default one is used")
    answer = ask("flux", "queue", "status", f"--queue={name}")
    if not answer.good:
        return fail(f"Flux: queue {name}: {answer.complaint}", "set flux.queue in the platform file (flux queue list)")
    if "disabled" in answer.out:
        return fail(f"Flux: queue {name} takes no jobs: {answer.out.strip().splitlines()[0]}", "wait, or take another")
    return ok(f"Flux: queue {name} takes jobs")


def submitted_with(plugin: str, installed: Sequence[str]) -> Result:
    """Whether Snakemake can submit jobs there; `installed` are the names of the packages that are."""
    if plugin in installed:
        return ok(f"{plugin} is installed")
    return fail(f"{plugin} is not installed beside Snakemake", f"pip install {plugin}")
