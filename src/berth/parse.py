"""Configuration files into the types of config.py, with one clear error for what is wrong."""

from __future__ import annotations

import contextlib
import getpass
import re
from datetime import date
from pathlib import Path
from typing import Any

from berth import access_settings
from berth._schema import check, load_yaml, nearest
from berth.analysis import compare_settings, cross_check_settings, statistics_settings
from berth.clienttool import DEFAULT, load_client
from berth.config import (
    Accelerator,
    Benchmark,
    Config,
    Dataset,
    Deployment,
    Experiment,
    Flux,
    Host,
    Model,
    Network,
    NodeModels,
    Platform,
    Power,
    RecipeSettings,
    Registry,
    RuntimeSettings,
    ServiceSettings,
    Slurm,
    Staging,
    Store,
    SweepSettings,
)
from berth.coordinates import Rate
from berth.errors import BerthError
from berth.jsonl import DEFAULT_OUTPUT_TOKENS, with_digest
from berth.kubernetes import settings_of

# Podman refuses a --runroot of more than 50 characters, and ours ends with /run.
_LONGEST_STORAGE = 46


def load_config(raw: dict[str, Any], root: Path) -> Config:
    """The validated configuration.

    `raw` is config/config.yaml with the profile's and the command line's settings merged in, as Snakemake hands it
    over. `root` is the working directory, to which config_dir is relative.

    Raises:
        BerthError: names file, key, value, what is allowed and what to do.
    """
    raw = _without_none(raw)
    check(raw, "config", "config/config.yaml (or --config, or the profile)")
    folder = root / raw.get("config_dir", "config")
    models = {name: _model(name, value) for name, value in _folder(folder / "models", "model").items()}
    datasets = {name: _dataset(name, value) for name, value in _folder(folder / "datasets", "dataset").items()}
    platforms = {name: _platform(name, value) for name, value in _folder(folder / "platforms", "platform").items()}
    recipes = sorted(path.stem for path in (folder / "recipes").glob("*.yaml"))
    deployments = {name: Deployment(name=name, **value) for name, value in raw["deployments"].items()}
    benchmarks = {name: _benchmark(name, value, datasets) for name, value in raw["benchmarks"].items()}
    experiments = {name: _experiment(name, value) for name, value in raw["experiments"].items()}
    asked = {benchmarks[each.benchmark].dataset for each in experiments.values() if each.benchmark in benchmarks}
    datasets |= {name: with_digest(datasets[name], root) for name in sorted(asked & set(datasets))}
    config = Config(
        platform=raw["platform"],
        models=models,
        datasets=datasets,
        platforms=platforms,
        deployments=deployments,
        benchmarks=benchmarks,
        experiments=experiments,
        sweep=SweepSettings(**raw.get("sweep", {})),
        results=raw.get("results", "results").rstrip("/"),
        config_dir=raw.get("config_dir", "config"),
        published_dir=raw.get("published_dir", "data/published"),
        partial=_true(raw, "partial"),
        select=tuple(raw.get("select", ())),
        clients={path.stem: load_client(path) for path in sorted((folder / "clients").glob("*.yaml"))},
        services=ServiceSettings(**raw.get("services", {})),
        deployment=raw.get("deployment", ""),
        until=raw.get("until", ""),
        share=tuple(raw.get("share", ())),
        dry_run=_true(raw, "dry_run"),
        delete_extra=_true(raw, "delete_extra"),
        model=raw.get("model", ""),
        point=raw.get("point", ""),
        quick=_true(raw, "quick"),
        bundle=raw.get("bundle", ""),
        bundle_wheels=_true({"bundle_wheels": True} | raw, "bundle_wheels"),
        experiment=raw.get("experiment", ""),
        against=raw.get("against", ""),
        only_runs=tuple(int(run) for run in raw.get("only_runs", ())),
        baseline=str(raw.get("baseline", "")),
        imports=raw.get("imports", ""),
        compare=compare_settings(raw["compare"]) if "compare" in raw else None,
        statistics=statistics_settings(raw["statistics"]) if "statistics" in raw else None,
        cross_check=cross_check_settings(raw["cross_check"]) if "cross_check" in raw else None,
    )
    _check_references(config, recipes)
    _check_clients(config)
    return config


def _without_none(raw: dict[str, Any]) -> dict[str, Any]:
    # An empty section in YAML is null; it means the same as leaving it out. YAML makes a time of some texts.
    given = {key: value for key, value in raw.items() if value is not None}
    # In a mapping on the command line Snakemake makes texts of numbers.
    given |= {key: _with_numbers(given[key]) for key in ("cross_check",) if key in given}
    if isinstance(given.get("until"), date):
        given["until"] = given["until"].isoformat()
    return given


def _store(value: dict[str, Any]) -> Store:
    patterns = {key: tuple(value.get(key, ())) for key in ("include", "exclude")}
    return Store(**{**value, **patterns})


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _true(raw: dict[str, Any], key: str) -> bool:
    # The command line hands over text.
    return str(raw.get(key, False)).lower() == "true"


def _folder(folder: Path, schema: str) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        value = load_yaml(path)
        check(value, schema, str(path))
        found[path.stem] = value
    if not found:
        raise BerthError(f"{folder}: no *.yaml file here. Add at least one {schema}, or correct config_dir.")
    return found


def _model(name: str, value: dict[str, Any]) -> Model:
    patterns = {key: tuple(value.get(key, ())) for key in ("allow_patterns", "ignore_patterns")}
    return Model(name=name, **{**value, **patterns})


def _dataset(name: str, value: dict[str, Any]) -> Dataset:
    if value["source"] == "jsonl":
        value = {"output_tokens": DEFAULT_OUTPUT_TOKENS, **value}
    return Dataset(name=name, **{**value, "scale": float(value.get("scale", 1.0))})


def _platform(name: str, value: dict[str, Any]) -> Platform:
    file = f"config/platforms/{name}.yaml"
    ports = value["server"]["ports"]
    if ports[0] > ports[1]:
        raise BerthError(f"{file}: server.ports: {ports} is no range; the first port must not exceed the last.")
    if "hosts" in value and value["scheduler"] != "local":
        raise BerthError(
            f"{file}: hosts: it is only for scheduler local, and scheduler is {value['scheduler']}, which gives a job "
            "its nodes. Remove the section, or correct scheduler."
        )
    for scheduler in {"slurm", "flux", "kubernetes"} & set(value):
        if value["scheduler"] != scheduler:
            raise BerthError(
                f"{file}: {scheduler}: it is only for scheduler {scheduler}, and scheduler is {value['scheduler']}. "
                "Remove the section, or correct scheduler."
            )
    for runtime in {"podman", "apptainer"} & set(value):
        if value["runtime"] != runtime:
            raise BerthError(
                f"{file}: {runtime}: it is only for runtime {runtime}, and runtime is {value['runtime']}. "
                "Remove the section, or correct runtime."
            )
    return Platform(
        name=name,
        label=value["label"],
        description=value.get("description", ""),
        accelerator=Accelerator(**value["accelerator"]),
        nodes=value["nodes"],
        scheduler=value["scheduler"],
        runtime=value["runtime"],
        models_dir=value["paths"]["models"],
        images_dir=value["paths"].get("images", ""),
        scratch_dir=_own(value["paths"]["scratch"]),
        node_models_dir=_own(value["paths"].get("node_models", "")),
        node_models=_node_models(value, file),
        store=_store(value["store"]),
        host=value["server"]["host"],
        ports=(ports[0], ports[1]),
        recipes={recipe: RecipeSettings(**settings) for recipe, settings in value.get("recipes", {}).items()},
        power=_power(value, file),
        network=_network(value["network"]) if "network" in value else None,
        registry=Registry(**value["registry"]) if "registry" in value else None,
        # A cluster without a section is asked for jobs all the same, by the site's defaults.
        slurm=Slurm(**_queue(value.get("slurm", {}))) if value["scheduler"] == "slurm" else None,
        flux=Flux(**_queue(value.get("flux", {}))) if value["scheduler"] == "flux" else None,
        interface=value["server"].get("interface", ""),
        hosts=tuple(Host(each["name"], each["address"], tuple(each["run"])) for each in value.get("hosts", ())),
        container=_runtime(value.get("podman", {}) | value.get("apptainer", {}), file),
        modules=tuple(value.get("modules", ())),
        kubernetes=settings_of(value, file),
        access=access_settings.settings_of(value, file),
    )


def _runtime(value: dict[str, Any], file: str) -> RuntimeSettings:
    storage = _own(value.get("storage", ""))
    if len(storage) > _LONGEST_STORAGE:
        raise BerthError(
            f"{file}: podman.storage: {storage} has {len(storage)} characters, and Podman takes {_LONGEST_STORAGE} at "
            "most. Choose a shorter path on a local disk."
        )
    return RuntimeSettings(options=tuple(value.get("options", ())), storage=storage)


def _node_models(value: dict[str, Any], file: str) -> NodeModels | None:
    section = value.get("node_models", {})
    folder = value["paths"].get("node_models", "")
    if section and not folder:
        raise BerthError(
            f"{file}: node_models: it needs paths.node_models, the folder on a node's own disk. Add it, or remove the "
            "section."
        )
    if folder and value["runtime"] == "kubernetes":
        raise BerthError(f"{file}: paths.node_models: a pod has its model on a volume. Remove the key.")
    if folder and folder.rstrip("/") == value["paths"]["models"].rstrip("/"):
        raise BerthError(
            f"{file}: paths.node_models: {folder} is paths.models, which all nodes share. Name a folder on a node's "
            "disk, or remove the key."
        )
    settings = NodeModels(**section)
    if settings.source == "store" and value["store"]["kind"] != "s3":
        raise BerthError(
            f"{file}: node_models.source: nodes cannot reach an embedded store. Use shared, or a store of kind s3."
        )
    return settings if folder else None


def _own(folder: str) -> str:
    """A folder on a node's disk, which several users share: $USER and `~` are filled in."""
    filled = folder.replace("$USER", getpass.getuser()) if "$USER" in folder else folder
    return str(Path(filled).expanduser()) if filled.startswith("~") else filled


def _power(value: dict[str, Any], file: str) -> Power | None:
    if "power" not in value:
        return None
    raw = value["power"]
    if ("parser" in raw) == ("pattern" in raw):
        raise BerthError(f"{file}: power: give either parser or pattern, which find the watts in the command's output.")
    try:
        re.compile(raw.get("pattern", ""))
    except re.error as error:
        raise BerthError(f"{file}: power.pattern: no regular expression: {error}.") from None
    return Power(**{**raw, "command": tuple(raw["command"])})


def _network(value: dict[str, Any]) -> Network:
    return Network(**{**value, "no_proxy": tuple(value.get("no_proxy", ()))})


def _queue(value: dict[str, Any]) -> dict[str, Any]:
    staging = Staging(**value["staging"]) if "staging" in value else None
    return {**value, "extra": tuple(value.get("extra", ())), "staging": staging}


def _benchmark(name: str, value: dict[str, Any], datasets: dict[str, Dataset]) -> Benchmark:
    where = f"config/config.yaml: benchmarks.{name}"
    levels = _levels(value, where)
    rate = value.get("request_rate", "inf")
    if rate != "inf" and (isinstance(rate, str) or rate <= 0):
        raise BerthError(f"{where}.request_rate: {rate!r} is not allowed. Use a positive number, or inf.")
    dataset = datasets.get(value["dataset"])
    if dataset is not None and dataset.source == "random":
        # Answers have a fixed length only where the model's own end of the text does not count.
        value = {"ignore_eos": True, **value}
    if value.get("seed_per_point") and value.get("mode") != "clean":
        raise BerthError(
            f"{where}.seed_per_point: true needs mode: clean; in mode paper every point has the same prompts. Set the "
            "mode, or remove the key."
        )
    if value.get("mode") == "clean" and value.get("warm_up_prompts") == 0:
        raise BerthError(
            f"{where}.warm_up_prompts: 0 is not allowed in mode clean, which warms the server up before every point. "
            "Remove the key (16), or set it to at least 1."
        )
    # 0 and 0.0 are one temperature and must be one spec.
    numbers = {key: float(value[key]) for key in ("temperature",) if value.get(key) is not None}
    numbers |= {"request_rate": rate if rate == "inf" else float(rate)}
    return Benchmark(name=name, **{**value, **numbers, **levels})


def _levels(value: dict[str, Any], where: str) -> dict[str, tuple[Any, ...]]:
    """What is swept, rising, by its key."""
    given = [key for key in ("concurrency", "request_rates") if key in value]
    if len(given) != 1:
        raise BerthError(
            f"{where}: give concurrency (a closed load: so many requests in flight) or request_rates (an open load: so "
            f"many requests per second), and not {'both' if given else 'neither'}."
        )
    (key,) = given
    if key == "request_rates" and value.get("client", DEFAULT) != DEFAULT:
        raise BerthError(
            f"{where}.client: {value['client']} is measured over concurrency alone. Remove it, or give concurrency in "
            "the place of request_rates."
        )
    others = {"concurrency": ("max_concurrency",), "request_rates": ("request_rate",)}[key]
    for other in others:
        if other in value:
            raise BerthError(f"{where}.{other}: it does not go with {key}. Remove one of them.")
    levels = value[key]
    duplicates = sorted({level for level in levels if levels.count(level) > 1})
    if duplicates:
        raise BerthError(f"{where}.{key}: {duplicates[0]} stands twice. Every level is one point; remove one.")
    return {key: tuple(sorted(Rate(level) if key == "request_rates" else level for level in levels))}


def _experiment(name: str, value: dict[str, Any]) -> Experiment:
    where = f"config/config.yaml: experiments.{name}"
    deployments = tuple(value["deployments"])
    if len(set(deployments)) != len(deployments):
        raise BerthError(f"{where}.deployments: a deployment stands twice. Use runs to measure it more than once.")
    runs = value["runs"]
    if isinstance(runs, int):
        runs = dict.fromkeys(deployments, runs)
    if set(runs) != set(deployments):
        wrong = min(set(runs) ^ set(deployments))
        raise BerthError(f'{where}.runs: "{wrong}" must stand both here and in deployments. Give a number for each.')
    published = tuple(value.get("published", ()))
    for item in published:
        if not re.fullmatch(r"[^/]+/[^/]+", item):
            raise BerthError(f'{where}.published: "{item}" is not allowed. Write SET/FIGURE, as in beltre2025/fig9.')
    return Experiment(name=name, **{**value, "deployments": deployments, "runs": runs, "published": published})


def _check_references(config: Config, recipes: list[str]) -> None:
    where = "config/config.yaml"
    _known(config.platform, config.platforms, f"{where}: platform", "platform")
    for name in config.select:
        _known(name, config.experiments, f"{where}: select", "experiment")
    if config.model:
        _known(config.model, config.models, f"{where}: model", "model")
    for deployment in config.deployments.values():
        at = f"{where}: deployments.{deployment.name}"
        _known(deployment.model, config.models, f"{at}.model", "model")
        _known(deployment.recipe, recipes, f"{at}.recipe", "recipe")
        _known(deployment.platform, config.platforms, f"{at}.platform", "platform")
        _check_fits(deployment, config.platforms[deployment.platform], at)
    for benchmark in config.benchmarks.values():
        _known(benchmark.dataset, config.datasets, f"{where}: benchmarks.{benchmark.name}.dataset", "dataset")
    for experiment in config.experiments.values():
        at = f"{where}: experiments.{experiment.name}"
        for name in experiment.deployments:
            _known(name, config.deployments, f"{at}.deployments", "deployment")
        _known(experiment.benchmark, config.benchmarks, f"{at}.benchmark", "benchmark")
    for platform in config.platforms.values():
        for recipe in platform.recipes:
            _known(recipe, recipes, f"config/platforms/{platform.name}.yaml: recipes", "recipe")


def _check_clients(config: Config) -> None:
    known = {DEFAULT, *config.clients}
    for benchmark in config.benchmarks.values():
        _known(benchmark.client, known, f"config/config.yaml: benchmarks.{benchmark.name}.client", "client")
    for name in config.cross_check.clients if config.cross_check else ():
        _known(name, known, "config/config.yaml: cross_check.clients", "client")


def _known(name: str, known: Any, where: str, what: str) -> None:
    if name not in known:
        names = sorted(known)
        raise BerthError(f'{where}: there is no {what} "{name}".{nearest(name, names)} Known: {", ".join(names)}.')


def _check_fits(deployment: Deployment, platform: Platform, at: str) -> None:
    if deployment.job_nodes > platform.nodes:
        client = f" and {deployment.client_nodes} for the client" if deployment.client_nodes else ""
        raise BerthError(
            f"{at}.nodes: {deployment.nodes} nodes{client}, but platform {platform.name} gives a job at most "
            f"{platform.nodes}."
        )
    if deployment.job_nodes > 1:
        _check_reachable(deployment, platform, at)
    ranks = deployment.tensor_parallel * deployment.pipeline_parallel
    accelerators = deployment.nodes * platform.accelerator.per_node
    if ranks > accelerators:
        raise BerthError(
            f"{at}: tensor_parallel {deployment.tensor_parallel} x pipeline_parallel {deployment.pipeline_parallel} = "
            f"{ranks} ranks, but {deployment.nodes} node(s) of {platform.name} have {accelerators} "
            f"{platform.accelerator.name}. Lower the parallelism or raise nodes."
        )


def _check_reachable(deployment: Deployment, platform: Platform, at: str) -> None:
    file = f"config/platforms/{platform.name}.yaml"
    if platform.scheduler == "local" and deployment.job_nodes > len(platform.hosts):
        raise BerthError(
            f"{at}: it takes {deployment.job_nodes} nodes, server and client together, but {file} has scheduler local "
            f"and {len(platform.hosts)} hosts. List the machines under hosts, or use a platform with a scheduler."
        )
    if platform.scheduler == "kubernetes":
        raise BerthError(
            f"{at}: several nodes (nodes, client_nodes) need scheduler slurm, flux or local, and {file} has kubernetes."
        )
    remote = deployment.client_nodes or platform.hosts
    if remote and platform.host in ("127.0.0.1", "localhost", "::1"):
        raise BerthError(
            f"{file}: server.host: {platform.host} is reached from the server's own node alone, and {at} has its "
            "client on another. Set it to 0.0.0.0."
        )
