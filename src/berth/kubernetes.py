"""How a deployment is put on Kubernetes: the section `kubernetes` of a platform file, and the names that follow."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from berth.errors import BerthError

CHART = Path(__file__).resolve().parents[2] / "workflow" / "charts" / "vllm"
# Helm takes no longer name for a release.
_LONGEST = 53


@dataclass(frozen=True)
class Expose:
    """The way in from outside: a Route of OpenShift or an Ingress, with TLS."""

    kind: Literal["route", "ingress"]
    domain: str = ""
    tls_secret: str = ""
    ingress_class: str = ""
    timeout_s: int = 3600


@dataclass(frozen=True)
class Kubernetes:
    """What the chart is told beyond the recipe. Empty texts leave the choice to the cluster.

    `chart` is "" for Berth's own, else a path or an address of vLLM's upstream chart.
    """

    namespace: str = ""
    context: str = ""
    chart: str = ""
    chart_version: str = ""
    cpus: int = 8
    memory_gib: int = 64
    shm_gib: int = 16
    cache_gib: int | None = None
    gpu_models: tuple[str, ...] = ()
    gpu_model_label: str = ""
    runtime_class: str = ""
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    storage_class: str = ""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] = "ReadWriteOnce"
    claim: str = ""
    keep_model: bool = False
    store_secret: str = "berth-s3"  # noqa: S105  # The name of one.
    pull_secrets: tuple[str, ...] = ()
    download_image: str = ""
    ca_config_map: str = ""
    openshift_ca: bool = False
    run_as_user: int | None = None
    max_unavailable: int = 1
    schedule_s: float = 600.0
    drain_s: int = 300
    client_cpus: int = 2
    client_memory_gib: int = 8
    expose: Expose | None = None

    @property
    def own_chart(self) -> bool:
        """Whether it is Berth's own chart, with all of its values."""
        return not self.chart


def settings_of(platform: dict[str, Any], file: str) -> Kubernetes | None:
    """The settings of a platform file whose schema was checked; None where it is no cluster of Kubernetes.

    Raises:
        BerthError: keys of the file do not go together.
    """
    both = (platform["scheduler"] == "kubernetes", platform["runtime"] == "kubernetes")
    if not any(both):
        return None
    if not all(both):
        raise BerthError(f"{file}: runtime: scheduler and runtime are kubernetes both, or neither. Correct one.")
    if platform["store"]["kind"] != "s3":
        raise BerthError(f"{file}: store.kind: a pod cannot reach an embedded store. Use s3 and its endpoint_url.")
    value: dict[str, Any] = dict(platform.get("kubernetes", {}))
    for key in ("gpu_models", "tolerations", "pull_secrets"):
        value[key] = tuple(value.get(key, ()))
    value["expose"] = Expose(**value["expose"]) if "expose" in value else None
    settings = Kubernetes(**value)
    _check_together(settings, platform, file)
    return settings


def _check_together(settings: Kubernetes, platform: dict[str, Any], file: str) -> None:
    expose = settings.expose
    if expose and expose.kind == "ingress" and not expose.domain:
        raise BerthError(f"{file}: kubernetes.expose.domain: an Ingress needs it: its host is NAME.DOMAIN. Add it.")
    if settings.own_chart:
        models, scratch = (PurePosixPath(platform["paths"][key]) for key in ("models", "scratch"))
        if not (models.is_absolute() and scratch.is_absolute()):
            raise BerthError(f"{file}: paths: models and scratch are folders inside a pod. Give absolute paths.")
        if models.is_relative_to(scratch) or scratch.is_relative_to(models):
            raise BerthError(
                f"{file}: paths: {models} and {scratch} are two volumes of a pod, of which the first is read only. "
                "Give two folders, neither inside the other."
            )
        return
    if platform["accelerator"]["kind"] == "rocm":
        raise BerthError(
            f"{file}: kubernetes.chart: the upstream chart asks for nvidia.com/gpu alone. Leave chart out with rocm."
        )
    if platform["accelerator"]["kind"] == "cuda" and not settings.gpu_models:
        raise BerthError(
            f"{file}: kubernetes.gpu_models: the upstream chart needs them. Give what "
            "`kubectl get nodes --label-columns nvidia.com/gpu.product` shows."
        )


def release_name(deployment: str) -> str:
    """The name of a deployment's release: the deployment's own where Kubernetes allows it.

    Else capitals, dots and underscores are changed, and digits at the end keep two changed names apart.
    """
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", deployment) and len(deployment) <= _LONGEST:
        return deployment
    plain = re.sub(r"[^a-z0-9]+", "-", deployment.lower()).strip("-")
    digits = hashlib.sha256(deployment.encode()).hexdigest()[:6]
    return f"{plain[: _LONGEST - 7].rstrip('-')}-{digits}".lstrip("-")


def api_key_secret(release: str) -> str:
    """The name of the secret with the key that the server of a release asks for."""
    return f"{release}-api-key"


def chart_digest(settings: Kubernetes) -> str:
    """The SHA-256 of Berth's own chart, names and contents; "" of another chart, which is elsewhere."""
    if not settings.own_chart:
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(path.relative_to(CHART).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
