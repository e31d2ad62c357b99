"""Values of a chart for one deployment: those of Berth's own chart, and those of vLLM's upstream chart.

Names, types and meanings that both charts have are vLLM's (examples/online_serving/chart-helm of its repository, with
extraInit.modelDownload). Secrets are names everywhere.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from berth.kubernetes import Kubernetes, api_key_secret, release_name
from berth.references import Reference
from berth.shelltext import quote, with_variables
from berth.walltime import START_FIXED_S

if TYPE_CHECKING:
    from berth.container import Container
    from berth.rendering import Rendering

# What a network volume gives at least while a server loads; the published start read 570 MB/s from a parallel one.
_SLOW_BYTES_S = 100_000_000
_PERIOD_S = 10
# Weights apart, a repository holds tokenizers and documents; and a volume has less room than its size.
_ROOM = 1.1
_MORE_GIB = 10
_END_S = 60
_GPU = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu"}
# NVIDIA's GPU feature discovery, and the node labeller of AMD's operator.
_GPU_LABEL = {"cuda": "nvidia.com/gpu.product", "rocm": "amd.com/gpu.product-name"}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
# Of the upstream chart, which mounts its volume there and nowhere else, and downloads the model right into it.
_UPSTREAM = PurePosixPath("/data")


@dataclass(frozen=True)
class Pod:
    """A deployment as it is in a pod: its places are the pod's own."""

    rendering: Rendering
    settings: Kubernetes
    release: str

    @property
    def container(self) -> Container:
        """The container of the server, or of its first node."""
        return self.rendering.server.container


def in_pod(rendering: Rendering) -> Pod:
    """The deployment with the model and the caches where a pod has them."""
    settings = rendering.platform.kubernetes
    if settings is None:
        raise AssertionError(f"{rendering.platform.name} is no cluster of Kubernetes")
    own = settings.own_chart
    model = str(PurePosixPath(rendering.platform.models_dir) / rendering.model.repo) if own else f"{_UPSTREAM}/"
    cache = rendering.platform.scratch_dir if own else str(_UPSTREAM)
    recipe = rendering.recipe
    recipe = replace(
        recipe,
        arguments=tuple(word.replace("${model}", model) for word in recipe.arguments),
        expects=replace(recipe.expects, cache_dir=cache),
    )
    platform = rendering.platform
    if platform.network:
        # A file of this machine; pods have a ConfigMap of them.
        platform = replace(platform, network=replace(platform.network, ca_bundle=""))
    return Pod(replace(rendering, recipe=recipe, platform=platform), settings, release_name(rendering.deployment.name))


def not_rendered(rendering: Rendering) -> str | None:
    """Why a deployment has no files: its platform's chart cannot put it on Kubernetes. None where it has."""
    if rendering.platform.kubernetes is None:
        return None
    why = _unfit(rendering) or (_unfit_for_nodes(rendering) if rendering.deployment.nodes > 1 else "")
    return f"{rendering.deployment.name} is not rendered: {why}" if why else None


def _unfit(rendering: Rendering) -> str:
    recipe, version = rendering.recipe, rendering.deployment.version
    if recipe.image(version, rendering.platform.accelerator.kind).kind != "container":
        return f"version {version} of {recipe.name} is an environment there, and no container image."
    if recipe.files:
        return f"{recipe.name} declares files, which the chart does not bring into a pod."
    return ""


def _unfit_for_nodes(rendering: Rendering) -> str:
    recipe, version, settings = rendering.recipe, rendering.deployment.version, rendering.platform.kubernetes
    if recipe.multi_node(version).kind == "ray":
        return f"{recipe.name} {version} spans nodes with Ray, and the chart with vLLM's own way. Use a newer version."
    if settings is not None and not settings.own_chart:
        return "the upstream chart puts a server on one node only. Leave kubernetes.chart out."
    if settings is not None and settings.access_mode != "ReadWriteMany":
        return "kubernetes.access_mode: every node reads the model. Use ReadWriteMany."
    return ""


def chart_values(pod: Pod) -> dict[str, Any]:
    """The values, in the order in which people read them."""
    return _own(pod) if pod.settings.own_chart else _upstream(pod)


def _own(pod: Pod) -> dict[str, Any]:
    settings, platform = pod.settings, pod.rendering.platform
    kind = platform.accelerator.kind
    image = _image(pod)
    values: dict[str, Any] = {
        "image": {
            "repository": image.name,
            "tag": image.tag,
            "digest": pod.container.digest,
            "command": _command(pod),
            "env": _env(pod),
            "pullSecrets": list(settings.pull_secrets),
        },
        **_ports(pod),
        "resources": _resources(pod),
        "shm": {"enabled": True, "size": f"{settings.shm_gib}Gi"},
        "gpuModels": list(settings.gpu_models),
        "gpuModelLabel": settings.gpu_model_label or _GPU_LABEL.get(kind, _GPU_LABEL["cuda"]),
        "maxUnavailablePodDisruptionBudget": str(settings.max_unavailable),
        "extraInit": _model(pod),
        **_probes(pod),
        "nodeSelector": dict(settings.node_selector),
        "tolerations": list(settings.tolerations),
        "nodes": pod.rendering.deployment.nodes,
        "clusterPort": pod.rendering.cluster_port,
        "drainSeconds": settings.drain_s,
        # Requests end first, and then the server has a minute.
        "terminationGracePeriodSeconds": settings.drain_s + _END_S,
        "cache": {
            "mountPath": platform.scratch_dir,
            "size": f"{settings.cache_gib}Gi" if settings.cache_gib else "",
        },
        "runtimeClassName": settings.runtime_class,
        "podSecurityContext": _user(settings),
        "caBundle": {"configMap": settings.ca_config_map, "openshift": settings.openshift_ca},
    }
    if pod.container.secret_env:
        key = pod.container.secret_env[0]
        values["apiKey"] = {"variable": key, "existingSecret": api_key_secret(pod.release)}
    return values | _exposed(pod)


def _upstream(pod: Pod) -> dict[str, Any]:
    settings, platform = pod.settings, pod.rendering.platform
    # NAME@sha256 and the digits, because the chart puts a colon between repository and tag.
    repository, tag = _image(pod).name, _image(pod).tag
    if pod.container.digest:
        repository, tag = f"{repository}@sha256", pod.container.digest.removeprefix("sha256:")
    return {
        "image": {
            "repository": repository,
            "tag": tag,
            "command": _command(pod),
            "env": _env(pod),
            "securityContext": {
                **{key: value for key, value in _user(settings).items() if key != "fsGroup"},
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        },
        **_ports(pod),
        "resources": _resources(pod, {"nvidia.com/gpu": 0}),
        "shm": {"enabled": True, "size": f"{settings.shm_gib}Gi"},
        "gpuModels": list(settings.gpu_models),
        "deploymentStrategy": {"type": "Recreate"},
        "externalConfigs": [{"secretRef": {"name": api_key_secret(pod.release)}}] if pod.container.secret_env else [],
        "maxUnavailablePodDisruptionBudget": str(settings.max_unavailable),
        "extraInit": {
            "modelDownload": {
                "enabled": True,
                # The chart's own environment comes from a secret that it makes of values.
                "waitContainer": {"env": _upstream_store(pod)},
                "downloadJob": {"env": _upstream_store(pod)},
            },
            "s3modelpath": _prefix(pod),
            "pvcStorage": _volume_size(pod),
            "awsEc2MetadataDisabled": True,
        },
        **_probes(pod),
        "nodeSelector": dict(settings.node_selector),
        "tolerations": list(settings.tolerations),
        "labels": {"environment": platform.name, "release": pod.release},
    }


def _upstream_store(pod: Pod) -> list[dict[str, Any]]:
    store = pod.rendering.platform.store
    plain = {"S3_ENDPOINT_URL": store.endpoint_url, "S3_BUCKET_NAME": store.bucket, "S3_PATH": _prefix(pod)}
    plain |= {"AWS_REGION": store.region, "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/tmp"}  # noqa: S108
    plain |= {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_MAX_ATTEMPTS": "10", **_proxies(pod)}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": pod.settings.store_secret, "key": name}}}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]


def _image(pod: Pod) -> Reference:
    """The image where the site has it."""
    image, registry = Reference.parse(pod.container.image), pod.rendering.platform.registry
    return image.moved_to(registry.host, registry.prefix) if registry else image


def _split(reference: str) -> tuple[str, str]:
    folder, slash, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{folder}{slash}{name}", tag


def _command(pod: Pod) -> list[str]:
    container = pod.container
    if pod.rendering.deployment.nodes == 1:
        return [container.entrypoint, *(_literal(word) for word in container.args)]
    other = pod.rendering.node(1).container
    first, rest = (" ".join(map(quote, (each.entrypoint, *each.args))) for each in (container, other))
    # Pods of a StatefulSet are numbered.
    choice = f'if [ "$NODE_RANK" -eq 0 ]; then\n  exec {first}\nelse\n  exec {rest}\nfi\n'
    return ["/bin/sh", "-ec", _literal(f'NODE_RANK="${{HOSTNAME##*-}}"\n{choice}')]


def _env(pod: Pod) -> list[dict[str, str]]:
    # A user without a name has no home, and some libraries ask for the name.
    values = {"HOME": pod.rendering.recipe.expects.cache_dir, "USER": "berth", **pod.container.env}
    return [{"name": name, "value": _in_pod(value)} for name, value in values.items()]


def _literal(text: str) -> str:
    """A text that Kubernetes hands on as it is: $(NAME) would be a variable, and $$ one dollar."""
    return text.replace("$", "$$") if re.search(r"\$[$(]", text) else text


def _in_pod(text: str) -> str:
    """A value in which what only a pod knows is a variable of Kubernetes."""
    return with_variables(_literal(text), "$({})")


def _ports(pod: Pod) -> dict[str, Any]:
    return {"containerPort": pod.rendering.port, "servicePort": 80, "replicaCount": 1}


def _resources(pod: Pod, gpus: dict[str, int] | None = None) -> dict[str, dict[str, Any]]:
    deployment, accelerator = pod.rendering.deployment, pod.rendering.platform.accelerator
    amounts: dict[str, Any] = {"cpu": pod.settings.cpus, "memory": f"{pod.settings.memory_gib}Gi", **(gpus or {})}
    if pod.container.accelerator != "none":
        ranks = deployment.tensor_parallel * deployment.pipeline_parallel
        amounts[_GPU[accelerator.kind]] = math.ceil(ranks / deployment.nodes)
    # The same twice: what is not reserved may be gone, and a server that is short of memory is killed.
    return {"requests": dict(amounts), "limits": dict(amounts)}


def startup_s(weights_bytes: int) -> int:
    """Seconds after which a server that has not answered once is given up."""
    return math.ceil((START_FIXED_S + weights_bytes / _SLOW_BYTES_S) / _PERIOD_S) * _PERIOD_S


def _probes(pod: Pod) -> dict[str, dict[str, Any]]:
    get = {"path": pod.rendering.recipe.ready.health, "port": pod.rendering.port}
    longest = startup_s(pod.rendering.model.weights_bytes) // _PERIOD_S
    timings = {
        "startupProbe": (_PERIOD_S, _PERIOD_S, 5, longest),
        "readinessProbe": (0, 10, 5, 3),
        "livenessProbe": (0, 30, 15, 6),
    }
    names = ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold")
    return {probe: {**dict(zip(names, timing, strict=True)), "httpGet": dict(get)} for probe, timing in timings.items()}


def _prefix(pod: Pod) -> str:
    store = pod.rendering.platform.store
    return "/".join(part for part in (store.prefix.strip("/"), pod.rendering.model.repo) if part)


def _volume_size(pod: Pod) -> str:
    return f"{math.ceil(pod.rendering.model.weights_bytes * _ROOM / 2**30) + _MORE_GIB}Gi"


def _model(pod: Pod) -> dict[str, Any]:
    settings, platform, model = pod.settings, pod.rendering.platform, pod.rendering.model
    repository, tag = _split(settings.download_image)
    store = platform.store
    return {
        "modelDownload": {
            "enabled": True,
            "image": {"repository": repository, "tag": tag},
            "env": [{"name": name, "value": value} for name, value in _proxies(pod).items()],
        },
        "s3modelpath": _prefix(pod),
        "pvcStorage": _volume_size(pod),
        "s3": {
            "endpointUrl": store.endpoint_url,
            "bucket": store.bucket,
            "region": store.region,
            "addressingStyle": "virtual" if store.addressing_style == "virtual" else "path",
            "existingSecret": settings.store_secret,
        },
        "modelDir": model.repo,
        "modelRevision": model.revision or "",
        "volume": {
            "mountPath": platform.models_dir,
            "existingClaim": settings.claim,
            "storageClassName": settings.storage_class,
            "accessMode": settings.access_mode,
            "keep": settings.keep_model,
        },
    }


def _proxies(pod: Pod) -> dict[str, str]:
    return {name: value for name, value in pod.container.env.items() if name.lower() in _PROXIES}


def _user(settings: Kubernetes) -> dict[str, Any]:
    user = settings.run_as_user
    return {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        # The group too, or the volume would not be writable.
        **({"runAsUser": user, "fsGroup": user} if user else {}),
    }


def _exposed(pod: Pod) -> dict[str, Any]:
    expose = pod.settings.expose
    if expose is None:
        return {}
    host = f"{pod.release}.{expose.domain}" if expose.domain else ""
    if expose.kind == "route":
        timeout = f"{expose.timeout_s}s"
        return {"route": {"enabled": True, "host": host, "timeout": timeout, "tlsSecret": expose.tls_secret}}
    return {
        "ingress": {
            "enabled": True,
            "className": expose.ingress_class,
            "host": host,
            "tlsSecret": expose.tls_secret,
            "timeoutSeconds": expose.timeout_s,
        }
    }
