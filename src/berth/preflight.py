"""What can be known to fail before anything is downloaded, queued or started."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from huggingface_hub import get_token

from berth._doctor_kubernetes import kubernetes_checks
from berth.disk import require_space
from berth.errors import BerthError
from berth.jsonl import check_dataset
from berth.kubectl import Cluster
from berth.kubeplan import require_releasable
from berth.modules import with_modules
from berth.network import check_certificates
from berth.sockets import free_port

if TYPE_CHECKING:
    from berth.config import Deployment, Model, Platform
    from berth.plan import Plan

_CONNECT_S = 10.0
_HUB = "https://huggingface.co"


def preflight(plan: Plan) -> None:
    """Return when nothing that is needed for the missing points is known to be absent.

    Raises:
        BerthError: a credential, room on a disk, a port, or an answer of the hub or the store is missing.
    """
    waiting = {point.key for run in plan.runs.values() for point in run.points} & plan.missing - plan.spooled
    runs = [run for run in plan.runs.values() if any(point.key in waiting for point in run.points)]
    if not runs:
        return
    platform = plan.config.platforms[plan.config.platform]
    if platform.kubernetes:
        for run in runs:
            require_releasable(plan.rendering(run))
        _check_kubernetes(platform)
    if platform.network:
        check_certificates(platform.network.ca_bundle, f"config/platforms/{platform.name}.yaml")
    results = plan.root / plan.config.results
    for name in sorted({run.deployment.model for run in runs}):
        if not (results / "staged" / platform.name / f"{name}.json").exists():
            _check_model(plan.config.models[name], platform, results)
    _check_datasets(plan, {run.benchmark.dataset for run in runs}, results)
    for run in runs:
        _check_image(run.definition.image, run.deployment, platform, results)
    if plan.takes_machine:
        free_port(platform.host, *platform.ports, key=f"config/platforms/{platform.name}.yaml: server.ports")


def _check_datasets(plan: Plan, names: set[str], results: Path) -> None:
    for name in sorted(names):
        if not (results / "datasets" / name / "receipt.json").exists():
            check_dataset(plan.config.datasets[name], plan.root)


def preflight_served(plan: Plan, deployment: Deployment) -> None:
    """Return when nothing that a deployment needs to be kept up is known to be absent.

    Raises:
        BerthError: as preflight().
    """
    platform = plan.config.platforms[deployment.platform]
    results = plan.root / plan.config.results
    if platform.kubernetes:
        _check_kubernetes(platform)
    if platform.network:
        check_certificates(platform.network.ca_bundle, f"config/platforms/{platform.name}.yaml")
    if not (results / "staged" / platform.name / f"{deployment.model}.json").exists():
        _check_model(plan.config.models[deployment.model], platform, results)
    image = plan.image(deployment.platform, deployment.recipe, deployment.version)
    _check_image(image, deployment, platform, results)
    if platform.scheduler == "local":
        free_port(platform.host, *platform.ports, key=f"config/platforms/{platform.name}.yaml: server.ports")


def _check_model(model: Model, platform: Platform, results: Path) -> None:
    pushed = (results / "store" / platform.name / f"{model.name}.json").exists()
    if not pushed and not (results / "models" / model.name / "manifest.json").exists():
        require_space(results, model.weights_bytes, f"The model {model.name}")
        if model.source == "hub":
            _check_hub(model)
    if not platform.kubernetes:
        require_space(Path(platform.models_dir).expanduser(), model.weights_bytes, f"The staged model {model.name}")
    if platform.store.kind == "s3":
        where = f"config/platforms/{platform.name}.yaml: store"
        if boto3.Session().get_credentials() is None:
            raise BerthError(
                f"{where}: no credentials for {platform.store.endpoint_url}. Set the environment variables "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            )
        _check_answers(
            platform.store.endpoint_url, f"{where}.endpoint_url", "Correct it, or ask the store's operators."
        )


def _check_image(image: dict[str, Any], deployment: Deployment, platform: Platform, results: Path) -> None:
    where = f"config/platforms/{platform.name}.yaml"
    wanted = ("podman", "apptainer", "kubernetes") if image["kind"] == "container" else ("process",)
    if platform.runtime not in wanted:
        what = "a container image" if image["kind"] == "container" else "an environment"
        raise BerthError(
            f"{where}: runtime: {platform.runtime}: {image['reference']} of {deployment.name} is {what}, which is "
            f"measured under runtime {' or '.join(wanted)}. Correct runtime, or leave its experiments out with select."
        )
    receipt = f"{deployment.recipe}-{deployment.version}.json"
    mirrored = results / "mirrored" / platform.name / receipt
    staged = results / "images" / platform.name / receipt
    if platform.registry and image["kind"] == "container" and not (mirrored.exists() and staged.exists()):
        remedy = "Correct it, or ask the registry's operators."
        _check_answers(f"https://{platform.registry.host}", f"{where}: registry.host", remedy)


def _check_kubernetes(platform: Platform) -> None:
    settings = platform.kubernetes
    assert settings is not None
    where = f"config/platforms/{platform.name}.yaml: modules"
    environ = with_modules(platform.modules, os.environ, where=where)
    for found in kubernetes_checks(settings, (), environ):
        if found.status == "FAIL":
            raise BerthError(f"{found.what}. What to do: {found.remedy}.")
    if not all(environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")):
        cluster = Cluster(settings.context, settings.namespace, environ)
        if not cluster.get("secrets", settings.store_secret):
            raise BerthError(
                f"config/platforms/{platform.name}.yaml: kubernetes.store_secret: there is no secret "
                f"{settings.store_secret} with the store's credentials for pods, and AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY are not set, from which a sweep makes its own. Export them, or make the secret."
            )


def _check_hub(model: Model) -> None:
    if model.gated and get_token() is None:
        raise BerthError(
            f"config/models/{model.name}.yaml: gated: {model.repo} is given only to accounts that accepted its "
            f"licence. Accept it at {_HUB}/{model.repo}, and set the environment variable HF_TOKEN to a token of "
            "such an account."
        )
    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    remedy = "Set HTTPS_PROXY or HF_ENDPOINT, or download the model where there is internet."
    _check_answers(endpoint, f"the hub for {model.repo}", remedy)


def _check_answers(url: str, where: str, remedy: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or ""):
        return  # The proxy decides; only the request itself can tell.
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise BerthError(f"{where}: {url} cannot be reached ({error}). {remedy}") from None
