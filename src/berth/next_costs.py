"""What the sweeps of a plan will cost, before they start: predicted from earlier records and published curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth.parts import levels_of
from berth.resources import accelerators_per_node

if TYPE_CHECKING:
    from berth.coordinates import Level
    from berth.plan import Plan


@dataclass(frozen=True)
class NextJob:
    """One job that would be started, and the seconds that its server's start and its points are predicted to take.

    `held` is what it holds by what it asks for, `asked_s` the time limit that it asks for; None without a scheduler.
    """

    run: str
    levels: tuple[Level, ...]
    nodes: int
    accelerators: int
    start_s: float
    points_s: float
    asked_s: float | None

    @property
    def accelerator_hours(self) -> float:
        """What it is predicted to cost."""
        return self.accelerators * (self.start_s + self.points_s) / 3600

    @property
    def most_accelerator_hours(self) -> float | None:
        """What it costs at most: until its time limit."""
        return None if self.asked_s is None else self.accelerators * self.asked_s / 3600


def next_jobs(plan: Plan) -> list[NextJob]:
    """The jobs that would measure what is missing, in the order of their runs.

    Raises:
        BerthError: a point does not fit into the longest job that the site allows.
    """
    found = []
    for key, run in sorted(plan.runs.items()):
        platform = plan.config.platforms[run.id.platform]
        deployment = run.deployment
        per_node = accelerators_per_node(deployment, platform) if platform.accelerator.per_node else 0
        nodes = deployment.nodes
        if platform.queue is not None and platform.queue.exclusive:
            # The whole nodes, the client's own too, whatever the server uses of them.
            per_node, nodes = platform.accelerator.per_node, deployment.job_nodes
        for part in plan.jobs.of(key):
            missing = plan.missing - plan.spooled
            levels = tuple(level for level in levels_of(part, run.levels) if run.id.point(level).key in missing)
            estimate = plan.jobs.estimate(key)
            runtime = plan.jobs.resources(key, part).get("runtime")
            found.append(
                NextJob(
                    run=key,
                    levels=levels,
                    nodes=deployment.job_nodes,
                    accelerators=per_node * nodes,
                    start_s=estimate.start_s,
                    points_s=sum(estimate.points_s[level] for level in levels),
                    asked_s=60.0 * int(runtime) if runtime is not None else None,
                )
            )
    return found
