"""What a job asks its scheduler for, as resources of Snakemake's executors. Pure: plain values in, plain values out.

The names are those of snakemake-executor-plugin-slurm; profiles/eldorado hands those that Flux needs to its script.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from berth.config import Deployment, Flux, Slurm
from berth.errors import BerthError

if TYPE_CHECKING:
    from berth.config import Platform

Resources = dict[str, "int | str"]

# The plugin refuses an MPI job of one task, and only an MPI job runs its script in the batch step, once. Two fit: a
# server and a client.
TASKS_PER_NODE = 2


def sweep_names(platform: Platform) -> tuple[str, ...]:
    """Names of the resources of a sweep, the same for all deployments; none where there is no scheduler."""
    least = Deployment(name="", model="", recipe="", platform=platform.name, version="")
    return tuple(sweep_resources(least, platform, 1))


def accelerators_per_node(deployment: Deployment, platform: Platform) -> int:
    """Accelerators that a deployment uses on each of its nodes.

    Raises:
        BerthError: it needs more of a node than a node has.
    """
    ranks = deployment.tensor_parallel * deployment.pipeline_parallel
    count = -(-ranks // deployment.nodes)
    if count > platform.accelerator.per_node:
        raise BerthError(
            f"config/config.yaml: deployments.{deployment.name}: {ranks} ranks on {deployment.nodes} node(s) need "
            f"{count} accelerators on one, but a node of {platform.name} has {platform.accelerator.per_node}. Lower "
            "the parallelism or raise nodes."
        )
    return count


def sweep_resources(deployment: Deployment, platform: Platform, minutes: int) -> Resources:
    """What the job of a sweep asks for; what is not set is not there, and so left to the profile or the site.

    Raises:
        BerthError: the deployment needs more accelerators of a node than there are.
    """
    count = accelerators_per_node(deployment, platform)
    if platform.slurm:
        return _slurm(platform.slurm, deployment, minutes, 0 if platform.accelerator.kind == "cpu" else count)
    if platform.flux:
        return _flux(platform.flux, deployment, minutes, 0 if platform.accelerator.kind == "cpu" else count)
    return {}


def staging_resources(platform: Platform) -> Resources:
    """What the job that stages a model or an image asks for."""
    queue = platform.queue
    if queue is None or queue.staging is None:
        return {}
    staging = queue.staging
    common: Resources = {"runtime": staging.minutes, "cpus_per_task": staging.cpus}
    if isinstance(queue, Slurm):
        partition = staging.partition or queue.partition
        return {**common, **_given(slurm_account=queue.account, slurm_partition=partition, qos=queue.qos)}
    assert isinstance(queue, Flux)
    options = _flux_place(staging.partition or queue.queue, queue.bank)
    return {**common, "nodes": 1, "gpus_per_node": 0, "flux_options": shlex.join(options)}


def step_options(deployment: Deployment, platform: Platform) -> list[str]:
    """How a step of a job asks for the accelerators of its nodes; nothing where they are not asked for."""
    count = accelerators_per_node(deployment, platform)
    if not platform.slurm or platform.accelerator.kind == "cpu" or platform.slurm.gpus == "none":
        return []
    return [f"--gres=gpu:{count}" if platform.slurm.gpus == "gres" else f"--gpus-per-node={count}"]


def _slurm(slurm: Slurm, deployment: Deployment, minutes: int, gpus: int) -> Resources:
    extra = [f"--signal=B:USR1@{slurm.warn_s}"]
    gres = ""
    if gpus and slurm.gpus == "gres":
        gres = ":".join(filter(None, ("gpu", slurm.gpu_type, str(gpus))))
    elif gpus and slurm.gpus == "gpus-per-node":
        extra.append("--gpus-per-node=" + ":".join(filter(None, (slurm.gpu_type, str(gpus)))))
    if slurm.exclusive:
        extra.append("--exclusive")
    if deployment.job_nodes > 1:
        # Else the job ends with any of its nodes, before the sweep can say which one it was.
        extra.append("--no-kill")
    return {
        "nodes": deployment.job_nodes,
        "tasks_per_node": TASKS_PER_NODE,
        # Else the plugin adds --ntasks-per-gpu, and a job with GPUs waits for ever.
        "tasks_per_gpu": 0,
        # -1 keeps the plugin from asking for one CPU, which is what `threads` says.
        "cpus_per_task": slurm.cpus_per_node // TASKS_PER_NODE if slurm.cpus_per_node else -1,
        "mpi": "srun",
        "runtime": minutes,
        "slurm_extra": shlex.join([*extra, *slurm.extra]),
        **_given(
            gres=gres,
            mem_mb=slurm.mem_mb_per_node,
            slurm_account=slurm.account,
            slurm_partition=slurm.partition,
            qos=slurm.qos,
            constraint=slurm.constraint,
        ),
    }


def _given(**values: int | str | None) -> Resources:
    return {name: value for name, value in values.items() if value}


def _flux(flux: Flux, deployment: Deployment, minutes: int, gpus: int) -> Resources:
    options = _flux_place(flux.queue, flux.bank)
    if flux.exclusive:
        options.append("--exclusive")
    options.append(f"--signal=SIGUSR1@{flux.warn_s}s")
    return {
        "nodes": deployment.job_nodes,
        "gpus_per_node": gpus,
        "cpus_per_task": flux.cpus_per_node or 1,
        "runtime": minutes,
        "flux_options": shlex.join([*options, *flux.extra]),
    }


def _flux_place(queue: str, bank: str) -> list[str]:
    return [*([f"--queue={queue}"] if queue else []), *([f"--bank={bank}"] if bank else [])]
