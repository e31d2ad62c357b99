"""What a sweep or a service on Kubernetes is told, as plain values: the chart, its values, and how the client runs."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from berth.chartvalues import chart_values, in_pod, not_rendered
from berth.errors import BerthError
from berth.helm import chart_words
from berth.resolve import client_container

if TYPE_CHECKING:
    from berth.rendering import Rendering

# A claim is one of a model, and a name of at most 63 characters.
_SLUG = 40
# What a site's proxies are not for: the server, in the same cluster.
_CLIENT_ENV = {"no_proxy": "*", "NO_PROXY": "*", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def release_request(rendering: Rendering) -> dict[str, Any]:
    """Everything that follows from the configuration; names that hold for one release are not in it.

    Raises:
        BerthError: such a deployment cannot be put on Kubernetes by Berth's own chart.
    """
    require_releasable(rendering)
    pod = in_pod(rendering)
    settings, recipe, version = pod.settings, pod.rendering.recipe, rendering.deployment.version
    values = chart_values(pod)
    client: dict[str, Any] = {"env": {}, "python": "", "program": "", "key_variable": recipe.client_key}
    if recipe.clients:
        container = client_container(recipe, pod.container, version=version, name="client")
        client |= {
            "env": {"HOME": values["cache"]["mountPath"], "USER": "berth", **container.env, **_CLIENT_ENV},
            "python": recipe.client(version).python,
            "program": recipe.client(version).command[0],
        }
    client |= {
        "server_variable": recipe.server_key,
        "cpus": settings.client_cpus,
        "memory_gib": settings.client_memory_gib,
    }
    return {
        "context": settings.context,
        "namespace": settings.namespace,
        "chart": chart_words(settings, rendering.root),
        "values": values,
        "client": client,
        "server_key": recipe.server_key,
        "store_secret": settings.store_secret,
        "claim": settings.claim or (claim_name(rendering) if settings.keep_model else ""),
        "make_claim": settings.keep_model and not settings.claim,
        "schedule_s": settings.schedule_s,
        "modules": list(rendering.platform.modules),
    }


def require_releasable(rendering: Rendering) -> None:
    """Return when a deployment can run from Berth's own chart.

    Raises:
        BerthError: it cannot; why, and what to do.
    """
    where = f"config/platforms/{rendering.platform.name}.yaml"
    why = not_rendered(rendering)
    if why:
        raise BerthError(f"{where}: {why.replace('is not rendered', 'cannot run on Kubernetes')}")
    settings = rendering.platform.kubernetes
    if settings is not None and not settings.own_chart:
        raise BerthError(
            f"{where}: kubernetes.chart: Berth measures and serves with its own chart, because another one does not "
            "say what it waits for. Leave chart out; `snakemake render` writes the values of the other."
        )
    if rendering.recipe.further_secrets:
        names = ", ".join(rendering.recipe.further_secrets)
        raise BerthError(
            f"{rendering.recipe.file}: secrets.further ({names}): the chart brings no further secrets into a pod. Run "
            f"{rendering.deployment.name} on another platform."
        )


def claim_name(rendering: Rendering) -> str:
    """The name of the claim that keeps a model for all deployments of a namespace."""
    model = rendering.model
    slug = re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-")[:_SLUG].strip("-")
    digits = hashlib.sha256(f"{model.repo}@{model.revision}".encode()).hexdigest()[:8]
    return f"berth-model-{slug}-{digits}"


def of_release(request: dict[str, Any], name: str, token: str, store_secret: str) -> dict[str, Any]:
    """The values of one release of a request: its names, and the claim that it uses."""
    values = {**request["values"], "labels": {"berth/instance": token}}
    if "apiKey" in values:
        values["apiKey"] = {**values["apiKey"], "existingSecret": f"{name}-api-key"}
    download = values["extraInit"]
    volume = {**download["volume"], "existingClaim": request["claim"]}
    values["extraInit"] = {**download, "s3": {**download["s3"], "existingSecret": store_secret}, "volume": volume}
    return values


def for_measuring(values: dict[str, Any], grace_s: float) -> dict[str, Any]:
    """The values of a server that is measured: nobody reaches it from outside, and nobody waits for its end."""
    inside = {key: value for key, value in values.items() if key not in ("route", "ingress")}
    return {
        **inside,
        "maxUnavailablePodDisruptionBudget": "0",
        "drainSeconds": 0,
        "terminationGracePeriodSeconds": max(1, round(grace_s)),
    }
