"""What defines a measurement, and its short hash: another definition is another folder, and old data stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.clienttool import DEFAULT, VLLM_BENCH
from berth.decide import Decision, Site, decide
from berth.errors import BerthError
from berth.fsio import canonical_json, sha256_text
from berth.mode import check_clean
from berth.network import at_site
from berth.pins import LOCKS, read_lock
from berth.recipes import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from berth.config import Benchmark, Config, Deployment, Platform
    from berth.recipe import Recipe

SPEC_SCHEMA = 1
_ID_DIGITS = 10


@dataclass(frozen=True)
class Definition:
    """A measurement's definition: `full` is what is hashed, `image` what has to be staged for it."""

    id: str
    full: dict[str, Any]
    image: dict[str, Any]


class Unmeasurable(BerthError):  # noqa: N818  # What the deployment is.
    """A model without a commit, or a service without a benchmark client: nothing can be measured with it."""


def define(
    config: Config, deployment: Deployment, benchmark: Benchmark, root: Path, *, allow_unpinned: bool = False
) -> Definition:
    """The definition of a deployment under a benchmark.

    It holds model and revision, image, serving arguments and environment, parallelism, hardware and benchmark. It does
    not hold the levels of concurrency, the number of runs, ports, paths and waiting times: those may change without
    making a point another one. `allow_unpinned` is for what measures nothing, so that neither a commit nor a client is
    missed: the id of such a definition is none that a measurement would have.

    Raises:
        Unmeasurable: the model is not pinned, or the recipe has no benchmark client.
        BerthError: recipe and deployment do not go together.
    """
    model = config.models[deployment.model]
    platform = config.platforms[deployment.platform]
    if model.source == "hub" and model.revision is None and not allow_unpinned:
        raise Unmeasurable(
            f"{config.config_dir}/models/{model.name}.yaml: revision: the model is not pinned, so nothing can be "
            f"measured with it. Put in the commit that `git ls-remote https://huggingface.co/{model.repo} HEAD` "
            "prints, or leave its experiments out with select."
        )
    recipe = _recipe_of(config, deployment, root)
    where = f"config/config.yaml: deployments.{deployment.name}"
    recipe.check_inputs(deployment.inputs, f"{where}.inputs")
    if not recipe.clients and not allow_unpinned:
        raise Unmeasurable(
            f"{where}.recipe: {deployment.recipe} has no benchmark client, so that nothing can be measured with it. "
            "Measure the server behind it, or leave its experiments out with select; `render` shows how it is started."
        )
    dataset = config.datasets[benchmark.dataset]
    if dataset.source == "jsonl" and recipe.clients and not recipe.client(deployment.version).jsonl_args:
        raise BerthError(
            f"config/datasets/{dataset.name}.yaml: source: jsonl: the benchmark client of {deployment.recipe} "
            f"{deployment.version} cannot send a file with an output length for each line, and {where} is measured "
            "with it. Use a newer version, or another dataset."
        )
    decision = decide_for(recipe, deployment, platform, benchmark.mode)
    if benchmark.mode == "clean":
        check_clean(recipe, decision.args, decision.env, where)
    image = _image(recipe, deployment, platform)
    full = {
        "schema": SPEC_SCHEMA,
        "model": {"name": model.name, **model.identity},
        "image": {"reference": image["reference"], "digest": image["digest"]},
        "serve": {
            "recipe": deployment.recipe,
            "version": deployment.version,
            "nodes": deployment.nodes,
            "tensor_parallel": deployment.tensor_parallel,
            "pipeline_parallel": deployment.pipeline_parallel,
            "args": decision.args,
            "env": decision.env,
            # Only where there are any: the ids of all other definitions stay what they were.
            **({"inputs": deployment.inputs} if deployment.inputs else {}),
        },
        "hardware": {
            "platform": platform.name,
            "accelerator": platform.accelerator.name,
            "accelerators_per_node": platform.accelerator.per_node,
        },
        "benchmark": {
            "dataset": dataset.identity,
            "num_prompts": benchmark.num_prompts,
            "seed": benchmark.seed,
            # Where rates are the levels, the definition says so; the rates themselves are no part of it.
            "request_rate": "swept" if benchmark.request_rates else benchmark.request_rate,
            "temperature": benchmark.temperature,
            "ignore_eos": benchmark.ignore_eos,
            "warm_up_prompts": benchmark.warm_up_prompts,
            "client": VLLM_BENCH if benchmark.client == DEFAULT else benchmark.client,
            # Only where it is not the server's own: the ids of all other definitions stay what they were.
            **({"client_image": _client_image(config, benchmark, platform)} if benchmark.client != DEFAULT else {}),
            # Only where it is so: the ids of all other definitions stay what they were.
            **({"client_nodes": deployment.client_nodes} if deployment.client_nodes else {}),
            **({"max_concurrency": benchmark.max_concurrency} if benchmark.max_concurrency else {}),
            # Left out where there is none, so that older points keep their definition.
            **({"mode": benchmark.mode} if benchmark.mode else {}),
            **({"seed_per_point": True} if benchmark.seed_per_point else {}),
        },
    }
    return Definition(sha256_text(canonical_json(full))[:_ID_DIGITS], full, image)


def site_of(platform: Platform, recipe: str) -> Site:
    """What a platform sets for a recipe."""
    settings = platform.recipes.get(recipe)
    site = Site(args=settings.args, env=settings.env, reason=settings.reason) if settings else Site()
    return at_site(site, platform.network) if platform.network else site


def decide_for(recipe: Recipe, deployment: Deployment, platform: Platform, mode: str | None) -> Decision:
    """The settings of a deployment on its platform, for a benchmark's mode."""
    return decide(
        recipe,
        accelerator=platform.accelerator.kind,
        version=deployment.version,
        platform_name=platform.name,
        device=platform.accelerator.name,
        mode=mode,
        site=site_of(platform, recipe.name),
        deployment_args=deployment.args,
        deployment_env=deployment.env,
        deployment_reason=deployment.reason,
        nodes=deployment.nodes,
    )


def _client_image(config: Config, benchmark: Benchmark, platform: Platform) -> dict[str, Any]:
    try:
        image = config.clients[benchmark.client].image(platform.runtime)
    except BerthError as error:
        raise Unmeasurable(str(error)) from None
    return {"reference": image["reference"], "digest": image["digest"]}


def image_of(config: Config, deployment: Deployment, root: Path) -> dict[str, Any]:
    """What has to be staged for a deployment: kind, reference, digest, and what an environment is built from."""
    return _image(_recipe_of(config, deployment, root), deployment, config.platforms[deployment.platform])


def _recipe_of(config: Config, deployment: Deployment, root: Path) -> Recipe:
    return load_recipe(root / config.config_dir / "recipes" / f"{deployment.recipe}.yaml")


def _image(recipe: Recipe, deployment: Deployment, platform: Platform) -> dict[str, Any]:
    image = recipe.image(deployment.version, platform.accelerator.kind)
    if image.kind == "container":
        return {"kind": image.kind, "reference": image.reference, "digest": image.digest or None}
    lock = read_lock(LOCKS / image.lock)
    return {
        "kind": image.kind,
        "reference": lock.pin(image.package),
        "digest": lock.digest,
        "lock": image.lock,
        "package": image.package,
        "program": recipe.entrypoint,
        "size_bytes": image.size_bytes,
    }
