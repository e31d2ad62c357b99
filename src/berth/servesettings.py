"""What keeping a deployment up takes, as plain values of the configuration: for its keeper, and for its jobs."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from berth._schema import nearest
from berth.errors import BerthError
from berth.fsio import canonical_json, sha256_text
from berth.kubeserve import request_of
from berth.plan import platform_settings
from berth.recipes import load_recipe
from berth.rendering import rendering_of
from berth.resources import sweep_resources
from berth.spec import decide_for, image_of
from berth.until import parse_until
from berth.walltime import JOB_START_S, WARNING_EARLY_S, start_s

if TYPE_CHECKING:
    from pathlib import Path

    from berth.config import Config, Deployment
    from berth.recipe import Recipe
    from berth.resources import Resources

_ID_DIGITS = 10
# What is needed after requests were drained, for the job's own end.
_END_S = 10.0
# No name of an experiment begins so: a service has its own folders on a node's disk.
_EXPERIMENT = "_serve"


@dataclass(frozen=True)
class ServeRequest:
    """Everything that keeping one deployment up takes, as plain values.

    `staged` are the receipts that are made first, `target` what is asked of Snakemake for a term (with {number}),
    `argv` the command line of the Snakemake that was called. `until` is in seconds since the epoch. `kubernetes` has
    the fields of kubeserve.ServeRequest where the cluster keeps the server up, else nothing.
    """

    deployment: str
    platform: str
    scheduler: str
    served_model: str
    results: str
    key_variable: str
    argv: list[str]
    staged: list[str]
    target: str
    settings: dict[str, Any]
    until: float | None
    term_s: float | None
    start_s: float
    stop_grace_s: float
    lease_stale_s: float
    kubernetes: dict[str, Any]


def served_deployment(config: Config) -> Deployment:
    """The deployment that `--config deployment=NAME` names.

    Raises:
        BerthError: none is named, it is unknown, or of another platform.
    """
    here = sorted(name for name, each in config.deployments.items() if each.platform == config.platform)
    known = f"Deployments on {config.platform}: {', '.join(here) or 'none'}."
    name = config.deployment
    if not name:
        raise BerthError(f"deployment: which one? Say --config deployment=NAME. {known}")
    if name not in config.deployments:
        raise BerthError(f'deployment: there is no deployment "{name}".{nearest(name, here)} {known}')
    found = config.deployments[name]
    if found.platform != config.platform:
        raise BerthError(
            f"deployment: {name} is of platform {found.platform}, and this is {config.platform}. Use the profile of "
            f"{found.platform}, or another deployment. {known}"
        )
    return replace(found, client_nodes=0)


def serve_request(config: Config, root: Path, argv: list[str], *, local: bool) -> ServeRequest:
    """What the keeper of the named deployment is told; with `local` jobs run beside it, whatever the platform says.

    Raises:
        BerthError: it cannot be served: unknown, unpinned, a setting that does not fit, a date that has passed.
    """
    deployment = served_deployment(config)
    platform = config.platforms[deployment.platform]
    recipe = _recipe(config, deployment, root)
    _check(config, deployment, recipe, root)
    name, results = deployment.name, config.results
    until = parse_until(config.until, time.time())
    on_kubernetes: dict[str, Any] = {}
    if platform.kubernetes:
        rendering = rendering_of(config, deployment, root, sys.version_info[:2])
        on_kubernetes = request_of(rendering, config.sweep.stall_s, until)
    receipts = _receipts(config, deployment)
    return ServeRequest(
        deployment=name,
        platform=platform.name,
        scheduler="local" if local and platform.queue else platform.scheduler,
        served_model=config.models[deployment.model].repo,
        results=results,
        key_variable=recipe.server_key,
        argv=argv,
        staged=list(receipts.values()),
        target=f"{results}/services/{platform.name}/{name}/t{{number}}.done",
        settings=asdict(config.services),
        until=until,
        term_s=term_minutes(config, deployment) * 60.0 if platform.queue and not local else None,
        start_s=JOB_START_S + start_s(config.models[deployment.model].weights_bytes),
        stop_grace_s=config.sweep.stop_grace_s,
        lease_stale_s=config.sweep.lease_stale_s,
        kubernetes=on_kubernetes,
    )


def term_request(config: Config, root: Path, number: int) -> dict[str, Any]:
    """The fields of term.TermRequest for one term of the named deployment, as plain values.

    Raises:
        BerthError: as serve_request().
    """
    deployment = served_deployment(config)
    platform = config.platforms[deployment.platform]
    recipe = _recipe(config, deployment, root)
    drain = recipe.drain(deployment.version)
    if drain and drain.flag not in deployment.args:
        drained = {drain.flag: int(config.services.drain_s)}
        deployment = replace(deployment, args={**deployment.args, **drained})
    model, image = config.models[deployment.model], image_of(config, deployment, root)
    definition = {
        "model": {"name": model.name, **model.identity},
        "image": {"reference": image["reference"], "digest": image["digest"]},
        "serve": asdict(deployment),
    }
    site = platform.recipes.get(deployment.recipe)
    receipts = _receipts(config, deployment)
    return {
        "deployment": deployment.name,
        "platform": platform.name,
        "number": number,
        "results": config.results,
        "settings": asdict(config.services),
        "server": {
            "experiment": f"{_EXPERIMENT}/{deployment.name}",
            "platform": platform.name,
            "spec": sha256_text(canonical_json(definition))[:_ID_DIGITS],
            # Two terms may be on one node while one takes over; the one after the next finds the caches of this one.
            "run": 1 + number % 2,
            "definition": definition,
            "levels": [],
            "deployment": asdict(deployment),
            "benchmark": {"mode": None},
            "recipe_file": f"{config.config_dir}/recipes/{deployment.recipe}.yaml",
            "platform_settings": platform_settings(deployment, platform),
            "site": {"args": site.args, "env": site.env, "reason": site.reason} if site else {},
            "repo": model.repo,
            "results": config.results,
            "settings": asdict(config.sweep),
            "restarts": 0,
            "model_receipt": receipts["model"],
            "image_receipt": receipts["image"],
            "logs": f"{config.results}/logs/serve/{platform.name}/{deployment.name}/t{number}",
        },
    }


def term_minutes(config: Config, deployment: Deployment) -> int:
    """Minutes that the job of a term asks for."""
    queue = config.platforms[deployment.platform].queue
    longest = queue.max_minutes if queue else None
    return min(config.services.minutes, longest or config.services.minutes)


def term_resources(config: Config) -> Resources:
    """What the job of a term asks its scheduler for.

    Raises:
        BerthError: the deployment needs more accelerators of a node than there are.
    """
    deployment = served_deployment(config)
    return sweep_resources(deployment, config.platforms[deployment.platform], term_minutes(config, deployment))


def nested(argv: list[str], targets: list[str]) -> list[str]:
    """The command line of a Snakemake with the same options and other targets."""
    words = [word for word in argv[1:] if word not in ("serve", "unserve")]
    rules = next((index for index, word in enumerate(argv[1:]) if word in ("serve", "unserve")), len(words))
    return [argv[0], "-m", "snakemake", *words[:rules], *targets, *words[rules:]]


def _recipe(config: Config, deployment: Deployment, root: Path) -> Recipe:
    return load_recipe(root / config.config_dir / "recipes" / f"{deployment.recipe}.yaml")


def _receipts(config: Config, deployment: Deployment) -> dict[str, str]:
    results, platform = config.results, deployment.platform
    return {
        "model": f"{results}/staged/{platform}/{deployment.model}.json",
        "image": f"{results}/images/{platform}/{deployment.recipe}-{deployment.version}.json",
    }


def _check(config: Config, deployment: Deployment, recipe: Recipe, root: Path) -> None:
    where = f"config/config.yaml: deployments.{deployment.name}"
    model, platform = config.models[deployment.model], config.platforms[deployment.platform]
    if model.source == "hub" and model.revision is None:
        raise BerthError(
            f"{config.config_dir}/models/{model.name}.yaml: revision: the model is not pinned, so that the next server "
            "could be another one. Put in the commit that `git ls-remote https://huggingface.co/"
            f"{model.repo} HEAD` prints."
        )
    recipe.check_inputs(deployment.inputs, f"{where}.inputs")
    for name, what in recipe.further_secrets.items():
        if not os.environ.get(name):
            raise BerthError(f"{recipe.file}: secrets.further: the variable {name} is not set. Export it: {what}")
    image_of(config, deployment, root)
    decide_for(recipe, deployment, platform, None)
    sweep_resources(deployment, platform, 1)
    services, queue = config.services, platform.queue
    if queue and services.drain_s + config.sweep.stop_grace_s + _END_S > queue.warn_s:
        raise BerthError(
            f"config/config.yaml: services.drain_s: {services.drain_s:g} s, with {config.sweep.stop_grace_s:g} s of "
            f"sweep.stop_grace_s and {_END_S:g} s for the end of the job, do not fit into the {queue.warn_s} s before "
            f"its end at which {platform.scheduler} warns a job (warn_s in config/platforms/{platform.name}.yaml). "
            "Lower it, or raise warn_s."
        )
    minutes = term_minutes(config, deployment)
    if queue and minutes * 60 <= queue.warn_s + WARNING_EARLY_S + JOB_START_S:
        raise BerthError(
            f"config/config.yaml: services.minutes: a job of {minutes} minutes is warned {queue.warn_s} s before its "
            "end or up to a minute earlier, so that no server could be ready in it. Raise it, or lower warn_s in "
            f"config/platforms/{platform.name}.yaml."
        )
