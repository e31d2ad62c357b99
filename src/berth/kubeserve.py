"""A deployment that stays up on Kubernetes for people to use: installed by the chart, looked at, taken down.

The cluster starts its container again when it ends; the file of the service says how often and why.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import services
from berth.errors import BerthError
from berth.fsio import write_json
from berth.kubectl import Cluster, ClusterError
from berth.kubeplan import of_release, release_request
from berth.kuberelease import Release
from berth.kubernetes import release_name
from berth.kubeserver import ReleaseServer
from berth.kubestate import SERVER, PodSeen, pods_of
from berth.kubetrouble import how_it_ended
from berth.modules import with_modules
from berth.ready import Checks, NotReady, wait_until_ready
from berth.recipes import load_recipe
from berth.serve import ServerDied
from berth.signals import terminate_as_exception

if TYPE_CHECKING:
    from berth.diagnose import KnownFailure
    from berth.recipe import Recipe
    from berth.rendering import Rendering

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 10.0
_POLL_S = 0.5
# The kubelet asks every ten seconds.
_ROUTED_S = 60.0


@dataclass(frozen=True)
class ServeRequest:
    """What is kept up: plain values, so that Snakemake can hand them to its job. Times are in seconds.

    `chart` is of kubeplan.release_request, `until` is when the service ends (seconds since the epoch), None for never.
    """

    deployment: str
    platform: str
    results: str
    recipe_file: str
    served_model: str
    chart: dict[str, Any]
    stall_s: float
    until: float | None = None


def request_of(rendering: Rendering, stall_s: float, until: float | None = None) -> dict[str, Any]:
    """The fields of ServeRequest for a deployment as it would run.

    Raises:
        BerthError: such a deployment cannot be put on Kubernetes by Berth's own chart.
    """
    return {
        "deployment": rendering.deployment.name,
        "platform": rendering.platform.name,
        "results": str(rendering.results),
        "recipe_file": rendering.recipe.file,
        "served_model": rendering.model.repo,
        "chart": release_request(rendering),
        "stall_s": stall_s,
        "until": until,
    }


@dataclass(frozen=True)
class _Served:
    """A service that has a release; see kubeserver.Placed."""

    request: ServeRequest
    recipe: Recipe
    release: Release
    key: str = field(repr=False)
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> Path:
        return Path(self.request.results) / "logs" / "services" / self.request.platform / self.request.deployment

    @property
    def server_log(self) -> Path:
        return self.logs / "server.log"

    @property
    def download_log(self) -> Path:
        return self.logs / "download.log"

    @property
    def known_failures(self) -> tuple[KnownFailure, ...]:
        return tuple(self.recipe.failures)

    @property
    def schedule_s(self) -> float:
        return float(self.request.chart["schedule_s"])

    @property
    def stall_s(self) -> float:
        return self.request.stall_s

    @property
    def served_model(self) -> str:
        return self.request.served_model

    def values(self, store_secret: str) -> dict[str, Any]:
        return of_release(self.request.chart, self.release.name, self.release.token, store_secret)

    def install(self) -> dict[str, Any]:
        if not self.release.state_file.exists():
            self.release.note()
        return self.release.set_up(self.request.chart, self.key, self.values, self.logs / "values.yaml")

    def ran_from(self, digest: str) -> None:
        logger.info("the server runs from image %s", digest or "without a digest")

    def start_client(self, values: dict[str, Any]) -> bool:
        del values
        return False


def serve(request: ServeRequest) -> services.Service:
    """Install a deployment, or bring it up to date, and return when it answers: its file is written all the way.

    It stays when this process ends. Where it does not come up it stays too, for the cluster goes on trying; the
    file then says that it is down, and why.

    Raises:
        BerthError: it does not come up; cause and remedy.
    """
    with terminate_as_exception():
        served = _served(request, make_key=True)
        before = services.read(Path(request.results), request.platform, request.deployment)
        _write(served, before, "starting", [])
        server = ReleaseServer(served, served.release.token)
        try:
            server.start()
            ready = served.recipe.ready
            wait_until_ready(
                server,
                api_key=served.key,
                checks=Checks(ready.health, ready.models, ready.completion, keyed=bool(served.recipe.server_key)),
                stall_s=request.stall_s,
                request_timeout_s=_REQUEST_TIMEOUT_S,
                poll_s=_POLL_S,
            )
        except BerthError as error:
            kind = "crash" if isinstance(error, ServerDied) else "start"
            event = services.Event(
                time.time(),
                served.release.name,
                kind,
                str(getattr(error, "cause", error)),
                str(getattr(error, "remedy", "")) if isinstance(error, ServerDied | NotReady) else "",
            )
            _write(served, _look(served), "down", [event])
            raise
        finally:
            server.take_down(grace_s=0)
        return _routed(served)


def _routed(served: _Served) -> services.Service:
    """The service once its cluster has seen too that it answers: only then do requests come to its pod."""
    began = time.monotonic()
    while (found := _look(served)).state != "ready" and time.monotonic() - began < _ROUTED_S:
        time.sleep(_POLL_S)
    return found


def look(request: ServeRequest) -> services.Service:
    """Ask the cluster how a service is, and write it into its file: state, restarts since, and their causes.

    Raises:
        BerthError: the cluster does not answer.
    """
    return _look(_served(request, make_key=True))


def unserve(request: ServeRequest, *, grace_s: float | None = None) -> services.Service:
    """Take a service down: requests in flight end first. Nothing is left but a claim that is to stay, and its file.

    Raises:
        BerthError: something stays, or the cluster does not answer.
    """
    served = _served(request, make_key=False)
    before = services.read(Path(request.results), request.platform, request.deployment)
    values = request.chart["values"]
    served.release.take_down(grace_s=values["terminationGracePeriodSeconds"] if grace_s is None else grace_s)
    event = services.Event(time.time(), served.release.name, "unserve", "It was taken down.")
    return _write(served, before, "ended", [event])


def _served(request: ServeRequest, *, make_key: bool) -> _Served:
    recipe = load_recipe(Path(request.recipe_file))
    key = ""
    if recipe.server_key and make_key:
        key = services.key_in(services.key_file(request.platform, request.deployment, recipe.server_key))
    where = f"config/platforms/{request.platform}.yaml: modules"
    environ = with_modules(request.chart["modules"], os.environ, where=where)
    name = release_name(request.deployment)
    state = services.path_of(Path(request.results), request.platform, request.deployment).with_suffix(".release")
    cluster = Cluster(request.chart["context"], request.chart["namespace"], environ)
    return _Served(request, recipe, Release(cluster, name, name, state), key)


def _look(served: _Served) -> services.Service:
    request = served.request
    before = services.read(Path(request.results), request.platform, request.deployment)
    pods = [pod for pod in pods_of(served.release.objects("pods")) if not pod.leaving]
    ready = any(pod.container(SERVER).ready for pod in pods)
    counted, events = _restarts(served, pods)
    found = _write(served, before, "ready" if ready else "down", events, pods, restarts=counted)
    if pods:
        # Only now is it in the file, so that no restart is counted twice or not at all.
        _remember(served, pods)
    return found


def _counted(served: _Served) -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        value: dict[str, int] = json.loads(served.release.state_file.read_text()).get("counted", {})
        return value
    return {}


def _remember(served: _Served, pods: list[PodSeen]) -> None:
    state = json.loads(served.release.state_file.read_text())
    write_json(served.release.state_file, {**state, "counted": {p.uid: p.container(SERVER).restarts for p in pods}})


def _restarts(served: _Served, pods: list[PodSeen]) -> tuple[int, list[services.Event]]:
    """How many restarts there were since the last look, and the end of each pod's last container among them."""
    known, count, events = _counted(served), 0, []
    for pod in pods:
        seen = pod.container(SERVER)
        new = seen.restarts - known.get(pod.uid, 0)
        if known and pod.uid not in known:
            count += 1
            events.append(
                services.Event(time.time(), pod.name, "node", f"The cluster replaced the pod; now it is {pod.name}.")
            )
        if new > 0 and seen.last is not None:
            count += new
            trouble = how_it_ended(seen.last, pod.name, SERVER)
            kind = "memory" if seen.last.reason == "OOMKilled" else "crash"
            at = seen.last.finished or time.time()
            outage_s = max(0.0, pod.ready_since - at) if pod.ready_since else None
            events.append(services.Event(at, pod.name, kind, trouble.cause, trouble.remedy, outage_s))
    return count, events


def _write(
    served: _Served,
    before: services.Service | None,
    state: services.State,
    events: list[services.Event],
    pods: list[PodSeen] | None = None,
    *,
    restarts: int = 0,
) -> services.Service:
    request, release = served.request, served.release
    values = request.chart["values"]
    place = services.KubernetesPlace(
        context=release.cluster.context,
        namespace=release.cluster.namespace or _namespace(release.cluster),
        release=release.name,
        service=release.name,
        port=values["servicePort"],
        url=_url(release, values) if state == "ready" else "",
    )
    found = services.Service(
        deployment=request.deployment,
        platform=request.platform,
        scheduler="kubernetes",
        served_model=request.served_model,
        state=state,
        key_file=str(services.key_path(request.platform, request.deployment)),
        instances=tuple(_instance(pod, values["containerPort"]) for pod in pods or []),
        kubernetes=None if state == "ended" else place,
        until=request.until,
        restarts=(before.restarts if before else 0) + restarts,
        history=(*(before.history if before else ()), *events),
    )
    if before is not None and before.state == "ended" and state == "starting":
        found = replace(found, restarts=0)
    services.write(Path(request.results), found)
    return found


def _instance(pod: PodSeen, port: int) -> services.Instance:
    state: services.InstanceState = "ready" if pod.container(SERVER).ready else "starting"
    if not pod.node:
        state = "queued"
    return services.Instance(pod.name, pod.uid, state, pod.node, pod.address, port, pod.ready_since or 0.0)


def _namespace(cluster: Cluster) -> str:
    argv = cluster.kubectl("config", "view", "--minify", "--output=jsonpath={..namespace}")
    try:
        return cluster.run(argv).decode().strip() or "default"
    except ClusterError:
        return "default"


def _url(release: Release, values: dict[str, Any]) -> str:
    """The address from outside; of a Route OpenShift may have chosen the host."""
    if "ingress" in values:
        return f"https://{values['ingress']['host']}"
    if "route" not in values:
        return ""
    if values["route"]["host"]:
        return f"https://{values['route']['host']}"
    with contextlib.suppress(ClusterError):
        for each in release.cluster.get("routes.route.openshift.io", release.name):
            return f"https://{each['spec']['host']}"
    return ""
