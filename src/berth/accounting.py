"""What Slurm's accounting says of jobs: when they were submitted, when they ran, and which accelerators they held."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth import programs

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

_FIELDS = "JobIDRaw,Submit,Start,End,AllocNodes,AllocTRES"
# AllocTRES lists accelerators as gres/gpu=4, and once more by type as gres/gpu:h100=4.
_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")


@dataclass(frozen=True)
class JobTime:
    """One job, times in seconds since 1970; `ended` is None while it runs, `accelerators` where Slurm counts none."""

    submitted: float
    started: float
    ended: float | None
    nodes: int
    accelerators: int | None


def jobs_of_slurm(ids: Iterable[str]) -> dict[str, JobTime]:
    """The jobs by id, as sacct has them; nothing where there is no sacct, or no accounting."""
    wanted = sorted({each for each in ids if each.isdigit()}, key=int)
    if not wanted:
        return {}
    # sacct(1): with this format times are seconds since 1970, whatever the time zone.
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    argv = ["sacct", "--allocations", "--noheader", "--parsable2", f"--format={_FIELDS}", f"--jobs={','.join(wanted)}"]
    try:
        told = programs.run(argv, env=env).decode(errors="replace")
    except (programs.ProgramMissing, programs.ProgramFailed) as error:
        logger.info("What jobs waited and held is not known: %s", str(error).splitlines()[0])
        return {}
    return parse_sacct(told)


def parse_sacct(told: str) -> dict[str, JobTime]:
    """The jobs in what sacct printed; one that has not started is left out."""
    found = {}
    for line in told.splitlines():
        cells = line.split("|")
        if len(cells) != len(_FIELDS.split(",")):
            continue
        job, submitted, started, ended, nodes, tres = cells
        if not (submitted.isdigit() and started.isdigit()):
            continue
        gpus = _GPUS.search(tres)
        found[job] = JobTime(
            submitted=float(submitted),
            started=float(started),
            ended=float(ended) if ended.isdigit() else None,
            nodes=int(nodes) if nodes.isdigit() else 1,
            accelerators=int(gpus[1]) if gpus else None,
        )
    return found
