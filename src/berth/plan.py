"""What is to be measured: configuration and what exists become runs, points and missing points. Reads, never writes."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from berth.clienttool import DEFAULT
from berth.columns import row_entry
from berth.config import Network
from berth.coordinates import LEVEL_PATTERN, PointId, RunId, parse_point
from berth.errors import BerthError
from berth.goodput import words
from berth.image_request import request_of
from berth.imported import imported_paths
from berth.jobs import Jobs
from berth.parts import levels_of
from berth.record import peek
from berth.resources import step_options
from berth.spec import Definition, Unmeasurable, define, image_of
from berth.spool import decided

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from berth.config import Benchmark, Config, Deployment, Experiment, Platform
    from berth.coordinates import Level
    from berth.rendering import Rendering
    from berth.stopping import Decision

FIGURE_KINDS = ("output_throughput", "request_throughput", "ttft", "tpot", "itl", "e2el", "throughput_vs_latency")
# The kinds of a sweep over request rates.
RATE_KINDS = (*(f"{kind}_over_rate" for kind in FIGURE_KINDS[:-1]), FIGURE_KINDS[-1])
# Published sets hold one number per point: output tokens per second.
PUBLISHED_KINDS = ("output_throughput",)
# The files of each figure.
FORMATS = ("pdf", "svg", "png")


@dataclass(frozen=True)
class Run:
    """One run that this platform can measure."""

    id: RunId
    experiment: Experiment
    deployment: Deployment
    benchmark: Benchmark
    definition: Definition
    # Where the sweep decides what is measured: what it has decided so far.
    decision: Decision | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that belong to it, as far as that is known."""
        return self.decision.wanted if self.decision else self.benchmark.levels

    @property
    def points(self) -> tuple[PointId, ...]:
        """Its points, by rising level."""
        return tuple(self.id.point(level) for level in self.levels)


@dataclass(frozen=True)
class Plan:
    """Everything that rules ask; made once while the Snakefile is read."""

    config: Config
    root: Path
    runs: dict[str, Run]
    existing: frozenset[str]
    spooled: frozenset[str]
    attempts: dict[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    imported: tuple[Path, ...] = ()
    unmeasurable: tuple[str, ...] = ()

    def require_measurable(self) -> None:
        """Do nothing if every run that is asked for can be measured.

        It is asked by what measures or draws; what only looks, such as `render`, does without.

        Raises:
            BerthError: no commit, no benchmark client, or a point that does not fit into the site's longest job.
        """
        if self.unmeasurable:
            raise BerthError(self.unmeasurable[0])
        self.jobs.require_fitting()

    @cached_property
    def jobs(self) -> Jobs:
        """The jobs in which the missing points are measured."""
        return Jobs(self)

    @cached_property
    def missing(self) -> frozenset[str]:
        """Keys of the points that are asked for, can be measured here and are not in results."""
        if self.config.partial:
            return frozenset()
        return frozenset(point.key for run in self.runs.values() for point in run.points) - self.existing

    @cached_property
    def open_runs(self) -> tuple[str, ...]:
        """Runs whose sweep decides what is measured, and has something to measure: it is not known yet what."""
        unmeasured = self.missing - self.spooled
        return tuple(
            key for key, run in self.runs.items() if run.decision and any(p.key in unmeasured for p in run.points)
        )

    @cached_property
    def targets(self) -> frozenset[str]:
        """Missing points that can be asked for by name before anything is measured."""
        return frozenset(key for key in self.missing if key.rpartition("/")[0] not in set(self.open_runs))

    @cached_property
    def only_missing(self) -> str:
        """A regular expression for the first wildcard of a point's path that lets missing points pass and no others.

        It looks ahead over the whole key, so that one expression constrains the five wildcards together.
        """
        keys = [re.escape(key) for key in sorted(self.targets)]
        for run in self.open_runs:
            there = "|".join(re.escape(key.rpartition("/")[2]) for key in self.existing if key.startswith(f"{run}/"))
            keys.append(rf"{re.escape(run)}/(?!(?:{there})\.)" + LEVEL_PATTERN)
        return rf"(?=(?:{'|'.join(keys)})\.)[^/]+" if keys else r"(?!)"

    @property
    def takes_machine(self) -> bool:
        """True where no scheduler gives a server its own machine."""
        return self.config.platforms[self.config.platform].scheduler == "local"

    @cached_property
    def figures(self) -> dict[str, tuple[str, ...]]:
        """Kinds of figure per experiment that has something to draw."""
        keys = self.existing | set(self.failures)
        if not self.config.partial:
            keys |= {point.key for run in self.runs.values() for point in run.points}
        by_rate = {key.partition("/")[0] for key in keys if key.rpartition("/")[2].startswith("q")}
        measured = {key.partition("/")[0] for key in keys if key.rpartition("/")[2].startswith("c")}
        measured |= {path.parents[3].name for path in self.imported}
        drawn: dict[str, tuple[str, ...]] = {}
        for name, experiment in self.config.experiments.items():
            if self.config.select and name not in self.config.select:
                continue
            if name in measured or name in by_rate:
                kinds = (FIGURE_KINDS if name in measured else ()) + (RATE_KINDS if name in by_rate else ())
                if self.goodput.get(name):
                    kinds += ("goodput",) * (name in measured) + ("goodput_over_rate",) * (name in by_rate)
                drawn[name] = tuple(dict.fromkeys(kinds))
            elif experiment.published:
                drawn[name] = PUBLISHED_KINDS
        return drawn

    @property
    def goodput(self) -> dict[str, dict[str, float]]:
        """The limits on latency of each experiment that has some."""
        limits = {
            name: self.config.benchmarks[experiment.benchmark].goodput
            for name, experiment in self.config.experiments.items()
        }
        return {name: each for name, each in limits.items() if each}

    @property
    def asked(self) -> dict[str, dict[str, Any]]:
        """What the table must know of experiments that say more than their levels, as plain values."""
        told: dict[str, dict[str, Any]] = {name: {"goodput": limits} for name, limits in self.goodput.items()}
        for name, experiment in self.config.experiments.items():
            asked = self.config.benchmarks[experiment.benchmark].asked
            if asked.decides:
                told[name] = {**told.get(name, {}), **vars(asked)}
        return told

    def note_of(self, experiment: str, kind: str) -> str:
        """What must be said below a figure."""
        return words(self.goodput.get(experiment, {})) if kind.startswith("goodput") else ""

    def published_of(self, experiment: str, kind: str) -> tuple[str, ...]:
        """The published curves that belong into a figure; a published set knows output throughput alone."""
        return self.config.experiments[experiment].published if kind in PUBLISHED_KINDS else ()

    @cached_property
    def not_run(self) -> list[dict[str, Any]]:
        """Rows for points that a run with a failure has not reached, so that its curve is seen to end early."""
        failed = {key.rpartition("/")[0] for key in self.failures}
        known = self.existing | set(self.failures)
        return [
            {
                "experiment": run.id.experiment,
                "platform": run.id.platform,
                "deployment": run.deployment.name,
                "spec": run.id.spec,
                "run": run.id.run,
                **row_entry(point.level, run.benchmark.max_concurrency),
            }
            for run in self.runs.values()
            if run.id.key in failed
            for point in run.points
            if point.key not in known
        ]

    def at(self, key: str) -> Run:
        """The run with this key.

        Raises:
            BerthError: the configuration no longer holds it, so it was edited since the job was planned.
        """
        if key not in self.runs:
            raise BerthError(
                f"{key}: the configuration does not define this run (any more). "
                "Configuration that is edited while Snakemake runs changes the plan; start Snakemake again."
            )
        return self.runs[key]

    def sweep_request(self, key: str, part: str) -> dict[str, Any]:
        """The fields of sweep.SweepRequest for a part of a run, receipts apart, as plain values."""
        found = self.at(key)
        config, deployment, where = self.config, found.deployment, found.id
        settings = config.platforms[deployment.platform]
        site = settings.recipes.get(deployment.recipe)
        return {
            "experiment": where.experiment,
            "platform": where.platform,
            "spec": where.spec,
            "run": where.run,
            "definition": found.definition.full,
            "levels": levels_of(part, sorted({*found.benchmark.levels, *found.levels})),
            "asked": found.benchmark.asked if found.decision else None,
            "deployment": asdict(deployment),
            "benchmark": {
                **asdict(found.benchmark),
                "validity": found.experiment.validity_over(found.benchmark),
            },
            "recipe_file": f"{config.config_dir}/recipes/{deployment.recipe}.yaml",
            "platform_settings": platform_settings(deployment, settings),
            "site": {"args": site.args, "env": site.env, "reason": site.reason} if site else {},
            "repo": config.models[deployment.model].repo,
            "results": config.results,
            "settings": asdict(config.sweep),
            "restarts": found.experiment.restarts,
            "kubernetes": self._release(found) if settings.kubernetes else {},
            "tools": self.tools([found.benchmark.client]),
        }

    def tools(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The file and the receipt of each of these clients that is not vLLM's own, by name."""
        config = self.config
        chosen = [config.clients[name] for name in names if name != DEFAULT]
        folder = f"{config.results}/images/{config.platform}"
        return {
            each.name: {
                "file": f"{config.config_dir}/clients/{each.name}.yaml",
                "receipt": f"{folder}/{each.name}-{each.version}.json",
            }
            for each in chosen
        }

    def rendering(self, run: Run) -> Rendering:
        """The deployment of a run as it would run, for this run's benchmark."""
        # Every job of Snakemake imports the plan, and few of them render.
        from berth.rendering import Use, rendering_of  # noqa: PLC0415

        named = self.config.datasets[run.benchmark.dataset]
        dataset = self.root / self.config.results / "datasets" / named.name / named.file
        use = Use(run.experiment, asdict(run.benchmark), dataset, run.definition)
        return replace(rendering_of(self.config, run.deployment, self.root, sys.version_info[:2]), uses=(use,))

    def _release(self, run: Run) -> dict[str, Any]:
        from berth.kubeplan import release_request  # noqa: PLC0415  # As above.

        return release_request(self.rendering(run))

    def image(self, platform: str, recipe: str, version: str) -> dict[str, Any]:
        """Reference, digest and kind of the image of a recipe's version, or a client's, on a platform."""
        for each in self.config.deployments.values():
            if (each.platform, each.recipe, each.version) == (platform, recipe, version):
                return image_of(self.config, each, self.root)
        tool = self.config.clients.get(recipe)
        if tool and tool.version == version:
            return tool.image(self.config.platforms[platform].runtime)
        raise BerthError(f"no deployment on {platform} uses recipe {recipe} {version}, and it is no client.")

    def image_request(self, platform: str, recipe: str, version: str) -> dict[str, Any]:
        """The fields of image_request.ImageRequest; empty where the image is an environment."""
        return request_of(self.image(platform, recipe, version), recipe, self.config.platforms[platform])


def platform_settings(deployment: Deployment, settings: Platform) -> dict[str, Any]:
    """What a job is told of its platform, as plain values."""
    return {
        "accelerator": asdict(settings.accelerator),
        "runtime": settings.runtime,
        "host": settings.host,
        "ports": list(settings.ports),
        "scratch_dir": settings.scratch_dir,
        "scheduler": settings.scheduler,
        "interface": settings.interface,
        "hosts": [asdict(host) for host in settings.hosts],
        "step_options": step_options(deployment, settings),
        "warn_s": settings.queue.warn_s if settings.queue else 0,
        "modules": list(settings.modules),
        "options": list(settings.container.options),
        "storage": settings.container.storage,
        "network": asdict(settings.network or Network()),
        "node_models": settings.node_copies,
        "power": asdict(settings.power) if settings.power else None,
    }


def make_plan(config: Config, root: Path) -> Plan:
    """The plan for the platform at hand.

    Raises:
        BerthError: a deployment cannot be defined, or a file in results is no record that this version can read.
            What cannot be measured is no error here: see Plan.require_measurable.
    """
    results = root / config.results
    unmeasurable: list[str] = []
    runs = {run.id.key: run for run in _runs(config, root, unmeasurable)}
    existing = frozenset(_records(results / "points", set(config.experiments)))
    return Plan(
        config=config,
        root=root,
        runs=runs,
        existing=existing,
        spooled=frozenset(_spooled(results / "spool", runs)) - existing,
        attempts=_attempts(results / "sweeps"),
        failures=tuple(sorted(_keys(results / "failures", set(config.experiments)))),
        imported=tuple(imported_paths(results, config.experiments)),
        unmeasurable=tuple(unmeasurable),
    )


def _runs(config: Config, root: Path, unmeasurable: list[str]) -> list[Run]:
    runs: list[Run] = []
    for experiment in config.experiments.values():
        if config.select and experiment.name not in config.select:
            continue
        benchmark = config.benchmarks[experiment.benchmark]
        seen: dict[str, str] = {}
        for name in experiment.deployments:
            deployment = config.deployments[name]
            if deployment.platform != config.platform:
                continue
            try:
                definition = define(config, deployment, benchmark, root)
            except Unmeasurable as error:
                unmeasurable.append(str(error))
                continue
            if definition.id in seen:
                raise BerthError(
                    f"config/config.yaml: experiments.{experiment.name}.deployments: {name} and {seen[definition.id]} "
                    "define the same server. Remove one, and raise runs to measure it more than once."
                )
            seen[definition.id] = name
            for number in range(1, experiment.runs[name] + 1):
                where = RunId(experiment.name, config.platform, definition.id, number)
                decision = decided(root / config.results, where, benchmark.asked) if benchmark.asked.decides else None
                runs.append(Run(where, experiment, deployment, benchmark, definition, decision))
    return runs


def _keys(folder: Path, experiments: set[str]) -> list[str]:
    found = []
    for experiment in sorted(experiments):
        for path in (folder / experiment).glob("*/*/run*/[cq]*.json"):
            key = path.relative_to(folder).as_posix().removesuffix(".json")
            if parse_point(key) is None:
                raise BerthError(
                    f"{path}: this is no path of a point (SPEC is ten hexadecimal digits, then runN/cN.json or "
                    "runN/qRATE.json). "
                    "Move it away, or correct its name."
                )
            found.append(key)
    return found


def _records(folder: Path, experiments: set[str]) -> list[str]:
    keys = _keys(folder, experiments)
    for key in keys:
        peek(folder / f"{key}.json", key=key)
    return keys


def _spooled(folder: Path, runs: dict[str, Run]) -> list[str]:
    keys = []
    for run in runs.values():
        for point in run.points:
            path = folder / f"{point.key}.json"
            if path.exists():
                peek(path, key=point.key)
                keys.append(point.key)
    return keys


def _attempts(folder: Path) -> dict[str, int]:
    attempts: dict[str, int] = {}
    for path in folder.glob("*/*/*/run*.attempt*.done"):
        key, _, rest = path.relative_to(folder).as_posix().rpartition(".attempt")
        attempts[key] = max(attempts.get(key, 1), int(rest.partition(".")[0]) + 1)
    return attempts
