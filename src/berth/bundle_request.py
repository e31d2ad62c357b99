"""What a bundle of the selected experiments has to hold, from the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from berth.errors import BerthError

if TYPE_CHECKING:
    from berth.plan import Plan


def request_of(plan: Plan) -> dict[str, Any]:
    """The fields of bundle_contents.BundleRequest for this platform's deployments in the selected experiments.

    Raises:
        BerthError: no file is named, or there is nothing to pack.
    """
    config = plan.config
    if not config.bundle:
        raise BerthError("config/config.yaml: bundle: pack_bundle needs a file: --config bundle=/path/to/bundle.tar")
    runs = list(plan.runs.values())
    if not runs:
        raise BerthError(
            f"config/config.yaml: no selected experiment has a deployment on {config.platform} that can be measured, "
            "so there is nothing to pack. Correct select, or give its models their commits."
        )
    images = {(run.deployment.recipe, run.deployment.version) for run in runs}
    images |= {(tool.name, tool.version) for tool in (config.clients.get(run.benchmark.client) for run in runs) if tool}
    return {
        "bundle": config.bundle,
        "root": str(plan.root),
        "results": config.results,
        "platform": config.platform,
        "models": sorted({run.deployment.model for run in runs}),
        "datasets": sorted({run.benchmark.dataset for run in runs}),
        "images": [
            {"recipe": recipe, "version": version, "image": plan.image(config.platform, recipe, version)}
            for recipe, version in sorted(images)
        ],
        "wheels": config.bundle_wheels,
        "in_pods": config.platforms[config.platform].scheduler == "kubernetes",
    }
