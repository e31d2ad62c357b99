"""The scheduler jobs of a plan: which levels each measures, after which other job, and what it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.parts import before, levels_of, texts
from berth.prediction import estimate
from berth.resources import sweep_resources
from berth.walltime import split

if TYPE_CHECKING:
    from berth.coordinates import Level
    from berth.plan import Plan
    from berth.resources import Resources
    from berth.walltime import Estimate


class Jobs:
    """Asked by rules, while the Snakefile is read and once more inside each job; estimates are made when asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._estimates: dict[str, Estimate] = {}
        self._parts: dict[str, tuple[str, ...]] = {}

    def require_fitting(self) -> None:
        """Do nothing if every missing point fits into a job.

        Raises:
            BerthError: a point does not fit into the longest job that the site allows.
        """
        for key in self._plan.runs:
            self.of(key)

    def estimate(self, key: str) -> Estimate:
        """What a run is predicted to take, from earlier records and published curves."""
        if key not in self._estimates:
            run, config = self._plan.at(key), self._plan.config
            self._estimates[key] = estimate(
                results=self._plan.root / config.results,
                spec=run.id.spec,
                levels=sorted({*run.benchmark.levels, *run.levels}),
                num_prompts=run.benchmark.num_prompts,
                weights_bytes=config.models[run.deployment.model].weights_bytes,
                published_dir=self._plan.root / config.published_dir,
                published=run.experiment.published,
                platform=run.id.platform,
            )
        return self._estimates[key]

    def of(self, key: str) -> tuple[str, ...]:
        """The jobs in which a run's missing points are measured, as parts.texts has them; one where they fit.

        Raises:
            BerthError: a point does not fit into the longest job that the site allows.
        """
        if key in self._parts:
            return self._parts[key]
        run = self._plan.at(key)
        unmeasured = self._plan.missing - self._plan.spooled
        levels = [point.level for point in run.points if point.key in unmeasured]
        queue = self._plan.config.platforms[run.id.platform].queue
        jobs = [levels] if levels else []
        if queue is not None and queue.max_minutes is not None:
            jobs = split(
                self.estimate(key),
                levels,
                max_minutes=queue.max_minutes,
                warn_s=queue.warn_s,
                where=f"deployment {run.deployment.name}",
                key=f"{self._plan.config.config_dir}/platforms/{run.id.platform}.yaml: max_minutes",
            )
        self._parts[key] = tuple(texts(jobs))
        return self._parts[key]

    def marker(self, key: str, level: Level) -> list[str]:
        """The marker of the job that measures a point of a run; none where the point waits in the spool already.

        Every plan takes an attempt number that no marker has yet, so that a marker left by a killed Snakemake is
        never taken for a sweep of this one.
        """
        run = self._plan.at(key)
        if run.id.point(level).key in self._plan.spooled:
            return []
        if key in self._plan.open_runs:
            return [self.decision_file(key)]
        levels = run.levels
        attempt = self._plan.attempts.get(key, 1)
        return [self._marker(key, attempt, part) for part in self.of(key) if level in levels_of(part, levels)]

    def decision_file(self, key: str) -> str:
        """What the sweeps of an open run have decided: the levels whose points are to be accepted."""
        return f"{self._plan.config.results}/sweeps/{key}.attempt{self._plan.attempts.get(key, 1)}.levels.json"

    def markers(self, key: str, attempt: int) -> list[str]:
        """The markers of all jobs that measure a run."""
        return [self._marker(key, attempt, part) for part in self.of(key)]

    def marker_before(self, key: str, attempt: int, part: str) -> list[str]:
        """The marker of the job that measures the levels before a part; none for the first part of a run.

        The later job waits for it as for any input, and not in nodes that are allocated already.
        """
        earlier = before(part)
        return [self._marker(key, attempt, earlier)] if earlier else []

    def resources(self, key: str, part: str) -> Resources:
        """What the job that measures a part of a run asks its scheduler for."""
        run = self._plan.at(key)
        platform = self._plan.config.platforms[run.id.platform]
        if platform.queue is None:
            return {}
        measured = self._plan.existing | self._plan.spooled
        levels = levels_of(part, sorted({*run.benchmark.levels, *run.levels}))
        missing = [level for level in levels if run.id.point(level).key not in measured]
        if missing and run.decision and run.benchmark.refine:
            # Which levels it will add is not known; none takes longer than the longest.
            longest = max(levels, key=lambda level: self.estimate(key).points_s[level])
            missing += [longest] * int(run.benchmark.refine["points"])
        minutes = self.estimate(key).job_minutes(missing, platform.queue.warn_s)
        return sweep_resources(run.deployment, platform, min(minutes, platform.queue.max_minutes or minutes))

    def _marker(self, key: str, attempt: int, part: str) -> str:
        return f"{self._plan.config.results}/sweeps/{key}.attempt{attempt}.{part}.done"
