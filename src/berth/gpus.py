"""Which accelerators of its node a job owns, and how a container gets those and no others.

A deployment that uses fewer accelerators than a node has shares the node. A plain process and Apptainer's container
stay in the job's control group, where the scheduler's own variables are right: they pass as they are. Podman leaves it
(https://github.com/NVIDIA/nvidia-container-toolkit/issues/585), so that it is told the numbers that hold on the node:
for CUDA one CDI device each, inside which they count from 0; for ROCm a variable, because a container that has
/dev/kfd reaches every accelerator (https://github.com/containers/podman/issues/21468).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from berth.container import podman_devices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What schedulers set, and CUDA and ROCm read. Numbers count within the job where the site confines its devices.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
# Slurm's own numbers, which are those of the node (srun(1), sbatch(1)): of a step, and of a job's batch script.
ON_NODE = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
# Where a scheduler says nothing else, the first that is set is taken for the node's numbers.
PODMAN_READS = {"cuda": VISIBLE[:1], "rocm": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}

_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Share:
    """A job's part of a node: `podman_flags` in place of those that pass all devices, and `env` for the container."""

    podman_flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def share_of(runtime: str, accelerator: str, environ: Mapping[str, str]) -> Share:
    """The job's part of this node as its environment tells it; outside a job nothing is told, and all are passed."""
    if runtime == "apptainer":
        return Share(env={name: environ[name] for name in VISIBLE if environ.get(name)})
    numbers = numbers_on_node(accelerator, environ) if runtime == "podman" else ()
    return Share(podman_flags=podman_devices(accelerator, numbers)) if numbers else Share()


def numbers_on_node(accelerator: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Numbers (or UUIDs) of the job's accelerators as they hold on the node; none where nothing tells them."""
    names = (*ON_NODE, *PODMAN_READS.get(accelerator, ()))
    text = next((value for name in names if (value := environ.get(name))), "")
    numbers: list[str] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        found = _RANGE.fullmatch(word)
        numbers += [str(each) for each in range(int(found[1]), int(found[2]) + 1)] if found else [word]
    # Old versions of Slurm say so where a job has none.
    return () if numbers == ["NoDevFiles"] else tuple(numbers)


def shares_node(ranks: int, nodes: int, per_node: int) -> bool:
    """Whether a server of so many ranks leaves accelerators of its nodes to other jobs."""
    return -(-ranks // nodes) < per_node


def cdi_names(podman_flags: Sequence[str]) -> tuple[str, ...]:
    """The CDI devices that these flags of Podman name; `all` where they name none."""
    prefix = "--device=nvidia.com/gpu="
    return tuple(flag.removeprefix(prefix) for flag in podman_flags if flag.startswith(prefix)) or ("all",)
