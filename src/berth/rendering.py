"""One deployment as it would run, for people: its container, its client and its places, with nothing started or staged.

Names and addresses that only a job knows stand in it as shell variables (berth.shelltext.variable).
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.bench import bench_argv, settings_of
from berth.container import Container, Mount
from berth.coordinates import Rate
from berth.errors import BerthError
from berth.gpus import shares_node
from berth.image import default_cache_dir, environment_folder
from berth.pins import LOCKS, read_lock
from berth.recipes import load_recipe
from berth.references import archive_name, sif_name
from berth.resolve import Resolved, client_container, resolve
from berth.shelltext import variable, words
from berth.spec import Definition, define, site_of

if TYPE_CHECKING:
    from berth.config import Config, Deployment, Experiment, Model, Platform
    from berth.coordinates import Level
    from berth.recipe import Recipe

# The shell variables of the rendered scripts.
NAME, BASE_URL = variable("NAME"), variable("BASE_URL")
CONCURRENCY, REQUEST_RATE = variable("CONCURRENCY"), variable("REQUEST_RATE")
SEED = variable("SEED")
DEVICES = words("DEVICES")
HEAD, NODE, RANK = variable("HEAD_ADDRESS"), variable("NODE_ADDRESS"), variable("NODE_RANK")
INTERFACE = variable("NODE_INTERFACE")


@dataclass(frozen=True)
class Use:
    """One experiment that measures the deployment; `definition` is what its points are filed under."""

    experiment: Experiment
    benchmark: dict[str, Any]
    dataset: Path
    definition: Definition

    @property
    def by_rate(self) -> bool:
        """Whether its levels are request rates."""
        return bool(self.benchmark["request_rates"])

    @property
    def levels(self) -> tuple[Level, ...]:
        """What it sweeps."""
        return tuple(self.benchmark["request_rates"] or self.benchmark["concurrency"])

    @property
    def variable(self) -> str:
        """The variable that tells the client's script its level."""
        return "REQUEST_RATE" if self.by_rate else "CONCURRENCY"


@dataclass(frozen=True)
class Rendering:
    """What the scripts of one deployment are made from. All paths are absolute."""

    deployment: Deployment
    platform: Platform
    model: Model
    recipe: Recipe
    uses: tuple[Use, ...]
    root: Path
    results: Path
    python: tuple[int, int]

    @property
    def unpinned(self) -> bool:
        """Whether the model's commit is not known, so that nothing can be measured with it."""
        return self.model.source == "hub" and self.model.revision is None

    @property
    def folder(self) -> Path:
        """Where the rendered files are."""
        return self.results / "render" / self.platform.name / self.deployment.name

    @property
    def scratch(self) -> Path:
        """Where a server that is started by hand works; a sweep has a folder of its own beside it."""
        return self._path(self.platform.scratch_dir) / "berth" / "by-hand" / self.deployment.name

    @property
    def models_dir(self) -> Path:
        """Where the platform keeps models."""
        return self._path(self.platform.models_dir)

    @property
    def model_dir(self) -> Path:
        """Where the staged model is."""
        return self.models_dir / self.model.repo

    @property
    def served_dir(self) -> Path:
        """Where a server reads the model: the staged one, or its copy on the node's own disk."""
        folder = self.platform.node_models_dir
        return Path(folder) / self.model.repo if folder else self.model_dir

    @property
    def port(self) -> int:
        """The first port of the platform's range."""
        return self.platform.ports[0]

    @property
    def cluster_port(self) -> int:
        """The port at which the nodes of one server meet: the one after the server's."""
        return self.port + 1

    @property
    def near_host(self) -> str:
        """The host at which a client on the server's node reaches it."""
        return "127.0.0.1" if self.platform.host == "0.0.0.0" else self.platform.host  # noqa: S104  # A comparison.

    @property
    def image_path(self) -> Path:
        """The environment or the SIF that the command runs from; for Podman what its nodes load."""
        folder = self._path(self.platform.images_dir) if self.platform.images_dir else default_cache_dir()
        image = self.recipe.image(self.deployment.version, self.platform.accelerator.kind)
        if image.kind == "environment":
            return environment_folder(read_lock(LOCKS / image.lock), image.package, folder, self.python)
        name = archive_name if self.platform.runtime == "podman" else sif_name
        return folder / name(image.reference, image.digest)

    @property
    def mode(self) -> str | None:
        """The mode of the benchmarks that measure the deployment; renderings() sees that it is one."""
        return next((use.benchmark["mode"] for use in self.uses), None)

    @cached_property
    def server(self) -> Resolved:
        """The server's container, or the first node's."""
        return self.node(0)

    def node(self, rank: int) -> Resolved:
        """The container of the first node (0), or of any other (1)."""
        deployment, platform = self.deployment, self.platform
        return resolve(
            self.recipe,
            accelerator=platform.accelerator.kind,
            version=deployment.version,
            platform_name=platform.name,
            model_path=self.served_dir,
            served_name=self.model.repo,
            host=platform.host,
            port=self.port,
            cache_dir=self.scratch / "cache",
            files_dir=self.folder / "files",
            name=NAME,
            device=platform.accelerator.name,
            mode=self.mode,
            site=site_of(platform, self.recipe.name),
            deployment_args=deployment.args,
            deployment_env=deployment.env,
            deployment_reason=deployment.reason,
            inputs=deployment.inputs,
            nodes=deployment.nodes,
            tensor_parallel=deployment.tensor_parallel,
            pipeline_parallel=deployment.pipeline_parallel,
            node_rank=rank,
            rank_word=RANK,
            head_address=HEAD,
            node_address=NODE,
            node_interface=INTERFACE,
            cluster_port=str(self.cluster_port),
            device_flags=(DEVICES,) if self.shares_node else (),
        )

    @property
    def shares_node(self) -> bool:
        """Whether a job of it leaves accelerators of its nodes to others, so that its own are named."""
        deployment, accelerator = self.deployment, self.platform.accelerator
        ranks = deployment.tensor_parallel * deployment.pipeline_parallel
        return accelerator.kind != "cpu" and shares_node(ranks, deployment.nodes, accelerator.per_node)

    def client(self, use: Use) -> Container:
        """The benchmark client for one point, with its arguments."""
        mounts = (
            Mount(str(use.dataset), str(use.dataset), read_only=True),
            Mount(str(self.model_dir), str(self.model_dir), read_only=True),
            Mount(str(self.scratch), str(self.scratch)),
        )
        version = self.deployment.version
        container = client_container(
            self.recipe, self.server.container, version=version, name=f"{NAME}-client", mounts=mounts
        )
        command = self.recipe.client(version).command
        settings = settings_of(
            use.benchmark,
            base_url=BASE_URL,
            served_model=self.model.repo,
            tokenizer=self.model_dir,
            dataset_path=use.dataset,
            client=self.recipe.client(version),
            dataset=use.definition.full["benchmark"]["dataset"],
        )
        if use.by_rate:
            argv = bench_argv(settings, Rate(1), self.scratch / f"q{REQUEST_RATE}.json")
            argv[argv.index("--request-rate") + 1] = REQUEST_RATE
        else:
            argv = bench_argv(settings, 1, self.scratch / f"c{CONCURRENCY}.json")
            argv[argv.index("--max-concurrency") + 1] = CONCURRENCY
        if use.benchmark["seed_per_point"]:
            argv[argv.index("--seed") + 1] = SEED
        return replace(container, entrypoint=command[0], args=(*command[1:], *argv))

    def workflow(self, target: Path) -> str:
        """The command that lets Berth make a file, in the folder `root`."""
        name = target.relative_to(self.root) if target.is_relative_to(self.root) else target
        words = ["snakemake", "--cores", "1", "--config", f"platform={self.platform.name}", "--", str(name)]
        return shlex.join(words)

    def _path(self, text: str) -> Path:
        path = Path(text).expanduser()
        return path if path.is_absolute() else self.root / path


def rendering_of(config: Config, deployment: Deployment, root: Path, python: tuple[int, int]) -> Rendering:
    """A deployment that nothing measures, as it would run; see renderings()."""
    return Rendering(
        deployment=deployment,
        platform=config.platforms[deployment.platform],
        model=config.models[deployment.model],
        recipe=load_recipe(root / config.config_dir / "recipes" / f"{deployment.recipe}.yaml"),
        uses=(),
        root=root,
        results=root / config.results,
        python=python,
    )


def renderings(config: Config, root: Path, python: tuple[int, int]) -> dict[str, Rendering]:
    """The deployments of the platform at hand that the selected experiments use, by name. Nothing is read but recipes.

    `root` is the working directory; `python` is the version that environments are built with.

    Raises:
        BerthError: recipe and deployment do not go together, or a deployment is used in two modes.
    """
    platform = config.platforms[config.platform]
    uses: dict[str, list[Use]] = {}
    for experiment in config.experiments.values():
        if config.select and experiment.name not in config.select:
            continue
        benchmark = config.benchmarks[experiment.benchmark]
        dataset = root / config.results / "datasets" / benchmark.dataset / config.datasets[benchmark.dataset].file
        for name in experiment.deployments:
            deployment = config.deployments[name]
            if deployment.platform == platform.name:
                definition = define(config, deployment, benchmark, root, allow_unpinned=True)
                uses.setdefault(name, []).append(Use(experiment, asdict(benchmark), dataset, definition))
    for name, found in uses.items():
        modes = {use.benchmark["mode"]: use.experiment.name for use in found}
        if len(modes) > 1:
            told = " and ".join(f"{experiment} ({mode or 'no mode'})" for mode, experiment in modes.items())
            raise BerthError(
                f"config/config.yaml: {name} is measured in different modes by {told}, so that its server has no one "
                "command. Choose one with select, or give each its own deployment."
            )
    return {
        name: replace(rendering_of(config, config.deployments[name], root, python), uses=tuple(found))
        for name, found in uses.items()
    }
