"""`doctor`: looks at the platform before anything is queued, and says for each thing what was found and what to do."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth._doctor_folders import Store, folder_checks, room_checks
from berth._doctor_kubernetes import kubernetes_checks
from berth._doctor_node import certificate_checks, installed, port_check, proxy_checks, version_checks
from berth._doctor_runtime import apptainer_checks, device_checks, podman_checks, skopeo_check
from berth._doctor_scheduler import flux_checks, slurm_checks, submitted_with
from berth._doctor_services import hub_check, registry_checks, store_checks
from berth.checkup import fail, ok
from berth.config import Flux, Slurm
from berth.container import podman_program, without_login_session
from berth.errors import BerthError
from berth.fsio import write_text
from berth.image import default_cache_dir
from berth.kubernetes import Expose, Kubernetes, api_key_secret, release_name
from berth.modules import with_modules
from berth.resources import sweep_resources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from berth.checkup import Result
    from berth.config import Config
    from berth.rendering import Rendering

_PLUGINS = {"slurm": "snakemake-executor-plugin-slurm", "flux": "snakemake-executor-plugin-cluster-generic"}
# What a job asks for when nothing else is said, in minutes; only whether it would be taken matters.
_MINUTES = 60


@dataclass(frozen=True)
class Patient:
    """What is looked at: plain values, so that Snakemake can hand them to its job.

    `store` has the fields of config.Store and `queue` those of config.Slurm or config.Flux, None without a scheduler.
    `jobs` are the resources of a sweep by deployment. `models` has bytes by repository, `downloads` bytes by the name
    of a model of the hub; `images` are references of container images,
    `registry` the host of the site's own, "" for none. `kubernetes` has the fields of
    kubernetes.Kubernetes, None elsewhere, and `secrets` the names of those that the deployments need there.
    """

    platform: str
    scheduler: str
    runtime: str
    accelerator: str
    nodes: int
    host: str
    ports: tuple[int, int]
    models_dir: str
    images_dir: str
    scratch_dir: str
    results: str
    store: dict[str, Any]
    queue: dict[str, Any] | None
    jobs: dict[str, dict[str, Any]]
    models: dict[str, int]
    downloads: dict[str, int]
    hub_models: list[str]
    gated: list[str]
    images: list[str]
    modules: list[str]
    storage: str
    ca_bundle: str = ""
    node_models_dir: str = ""
    registry: str = ""
    kubernetes: dict[str, Any] | None = None
    secrets: list[str] = field(default_factory=list)
    status_command: str | None = None
    first_check_s: int | None = None


def patient_of(
    config: Config,
    renderings: Mapping[str, Rendering],
    *,
    status_command: str | None = None,
    first_check_s: int | None = None,
) -> dict[str, Any]:
    """The fields of Patient for the platform at hand and the deployments that the selected experiments use there."""
    platform = config.platforms[config.platform]
    models = {each.model.name: each.model for each in renderings.values()}
    hub = [model for model in models.values() if model.source == "hub"]
    containers = [each.recipe.image(each.deployment.version, platform.accelerator.kind) for each in renderings.values()]
    minutes = min(_MINUTES, (platform.queue.max_minutes if platform.queue else None) or _MINUTES)
    jobs = {name: sweep_resources(each.deployment, platform, minutes) for name, each in renderings.items()}
    return {
        "platform": platform.name,
        "scheduler": platform.scheduler,
        "runtime": platform.runtime,
        "accelerator": platform.accelerator.kind,
        "nodes": max((each.deployment.nodes for each in renderings.values()), default=1),
        "host": platform.host,
        "ports": list(platform.ports),
        "models_dir": platform.models_dir,
        "images_dir": platform.images_dir,
        "scratch_dir": platform.scratch_dir,
        "node_models_dir": platform.node_models_dir,
        "results": config.results,
        "store": asdict(platform.store),
        "queue": asdict(platform.queue) if platform.queue else None,
        "jobs": jobs,
        "models": {model.repo: model.weights_bytes for model in models.values()},
        "downloads": {model.name: model.weights_bytes for model in hub},
        "hub_models": [model.repo for model in hub],
        "gated": [model.repo for model in hub if model.gated],
        "images": [image.reference for image in containers if image.kind == "container"],
        "registry": platform.registry.host if platform.registry else "",
        "modules": list(platform.modules),
        "storage": platform.container.storage,
        "ca_bundle": platform.network.ca_bundle if platform.network else "",
        "kubernetes": asdict(platform.kubernetes) if platform.kubernetes else None,
        "secrets": _secrets(platform.kubernetes, renderings) if platform.kubernetes else [],
        "status_command": status_command,
        "first_check_s": first_check_s,
    }


def _secrets(settings: Kubernetes, renderings: Mapping[str, Rendering]) -> list[str]:
    with_key = [each for each in renderings.values() if each.recipe.server_key]
    return [settings.store_secret, *(api_key_secret(release_name(each.deployment.name)) for each in with_key)]


def examine(patient: Patient, environ: Mapping[str, str]) -> Iterator[Result]:
    """Every check, one after the other; `environ` is asked for proxies. Nothing is queued, staged or left behind."""
    yield from version_checks()
    yield from _scheduler(patient)
    yield from _runtime(patient)
    yield from _folders(patient)
    yield from proxy_checks(environ, patient.store.get("endpoint_url", ""))
    yield from certificate_checks(patient.ca_bundle, patient.platform)
    yield from store_checks(patient.store)
    yield from registry_checks(patient.images, patient.registry)
    models_dir = Path(patient.models_dir).expanduser()
    staged = all((models_dir / repo).exists() for repo in patient.hub_models)
    yield hub_check(patient.hub_models, patient.gated, staged=staged)
    if patient.scheduler == "kubernetes":
        return  # The port is a pod's own.
    yield port_check(patient.host, (patient.ports[0], patient.ports[1]), patient.platform)


def _scheduler(patient: Patient) -> Iterator[Result]:
    plugin = _PLUGINS.get(patient.scheduler)
    if plugin is None:
        if patient.kubernetes is not None:
            expose = patient.kubernetes["expose"]
            settings = Kubernetes(**{**patient.kubernetes, "expose": Expose(**expose) if expose else None})
            yield from kubernetes_checks(settings, patient.secrets)
        return
    yield submitted_with(plugin, [plugin] if installed(plugin) else [])
    # How staging asks for jobs is not asked about.
    queue = {**(patient.queue or {}), "staging": None}
    if patient.scheduler == "slurm":
        yield from slurm_checks(Slurm(**queue), patient.jobs, patient.status_command, patient.first_check_s)
    else:
        yield from flux_checks(Flux(**queue), patient.nodes)


def _runtime(patient: Patient) -> Iterator[Result]:
    where = f"config/platforms/{patient.platform}.yaml: modules"
    try:
        environ = without_login_session(with_modules(patient.modules, os.environ, where=where))
    except BerthError as error:
        yield fail(f"modules: {error}", "where only compute nodes have them, run doctor in a job")
        return
    if patient.modules:
        yield ok(f"modules: {', '.join(patient.modules)} can be loaded here")
    if patient.runtime == "podman":
        yield from podman_checks(podman_program(patient.storage), environ)
    elif patient.runtime == "apptainer":
        yield from apptainer_checks(environ)
    if patient.images:
        yield skopeo_check(environ)
    if patient.runtime in ("podman", "apptainer"):
        yield from device_checks(patient.runtime, patient.accelerator, local=patient.scheduler == "local")


def _folders(patient: Patient) -> Iterator[Result]:
    models_dir, results = Path(patient.models_dir).expanduser(), Path(patient.results)
    images_dir = Path(patient.images_dir).expanduser() if patient.images_dir else default_cache_dir()
    several = patient.scheduler in _PLUGINS
    shared = {"paths.models": models_dir, "paths.images": images_dir, "results": results}
    if patient.scheduler == "kubernetes":
        # Its paths are inside pods.
        shared = {"results": results}
    own = {"paths.scratch": Path(patient.scratch_dir).expanduser()}
    own |= {"paths.node_models": Path(patient.node_models_dir)} if patient.node_models_dir else {}
    own = {} if patient.scheduler == "kubernetes" else own
    yield from folder_checks(shared, own, several_nodes=several)
    downloads = {name: (f"{name}/manifest.json", size) for name, size in patient.downloads.items()}
    stores = [Store("results", results / "models", downloads)]
    if patient.scheduler != "kubernetes":
        stores.append(Store("paths.models", models_dir, {repo: (repo, size) for repo, size in patient.models.items()}))
    yield from room_checks(stores)


def report(results: Iterable[Result]) -> str:
    """The results, one per line, and a line that counts them."""
    found = list(results)
    counts = ", ".join(
        f"{sum(result.status == status for result in found)} {status}" for status in ("ok", "WARN", "FAIL")
    )
    return "".join(f"{result.line}\n" for result in found) + f"{counts}\n"


def doctor(patient: dict[str, Any], report_path: Path) -> str:
    """The report on a platform, which is also written to a file; `patient` has the fields of Patient.

    Raises:
        BerthError: something is in the way of a sweep; the report is written all the same.
    """
    found = list(examine(Patient(**patient), os.environ))
    text = report(found)
    write_text(report_path, text)
    print(text, end="", flush=True)
    failed = sum(result.status == "FAIL" for result in found)
    if failed:
        raise BerthError(f"{failed} check(s) of platform {patient['platform']} failed; {report_path} has the report.")
    return text
