"""What Kubernetes says of pods, jobs, claims and events, read out of the JSON of `kubectl get`. Pure functions.

Sources: the API's reference (core/v1 PodStatus, ContainerState, Event; batch/v1 JobStatus), and answers of a real
cluster of 1.20, which lie in tests/kubernetes/captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SERVER, WAIT, DOWNLOAD = "vllm", "wait-for-model", "download"


@dataclass(frozen=True)
class Ended:
    """How a container ended; `code` is above 128 for a signal, `finished` is in seconds since the epoch."""

    reason: str
    code: int | None
    message: str
    container_id: str
    finished: float | None = None


@dataclass(frozen=True)
class ContainerSeen:
    """A container of a pod. `image_digest` is "sha256:..." of what runs, "" before it is known."""

    name: str
    state: Literal["waiting", "running", "terminated", "absent"]
    reason: str = ""
    message: str = ""
    container_id: str = ""
    image_digest: str = ""
    restarts: int = 0
    started: bool = False
    ready: bool = False
    ended: Ended | None = None
    last: Ended | None = None


@dataclass(frozen=True)
class PodSeen:
    """A pod. `unscheduled` is the scheduler's reason where it has no node yet, "" otherwise.

    `ready_since` is in seconds since the epoch, None while it is not ready.
    """

    name: str
    uid: str
    phase: str
    node: str
    address: str
    unscheduled: str
    leaving: bool
    reason: str
    message: str
    ready_since: float | None
    containers: tuple[ContainerSeen, ...]
    inits: tuple[ContainerSeen, ...]

    def container(self, name: str) -> ContainerSeen:
        """One of its containers, also of those that run first; "absent" where nothing is said of it yet."""
        for each in (*self.containers, *self.inits):
            if each.name == name:
                return each
        return ContainerSeen(name, "absent")

    @property
    def identity(self) -> tuple[str, str, int]:
        """What changes when the server in it is another one."""
        server = self.container(SERVER)
        return (self.uid, server.container_id, server.restarts)


def pods_of(objects: Iterable[Mapping[str, Any]], component: str = "server") -> list[PodSeen]:
    """The pods of a part of the chart by name; those that are leaving only where there are no others."""
    found = [
        pod_seen(each)
        for each in objects
        if each["kind"] == "Pod" and each["metadata"].get("labels", {}).get("app.kubernetes.io/component") == component
    ]
    staying = [pod for pod in found if not pod.leaving]
    return sorted(staying or found, key=lambda pod: pod.name)


def pod_seen(pod: Mapping[str, Any]) -> PodSeen:
    """A pod of the API."""
    status = pod.get("status", {})
    scheduled, ready = _condition(status, "PodScheduled"), _condition(status, "Ready")
    unscheduled = scheduled.get("message", "") if scheduled.get("status") == "False" else ""
    return PodSeen(
        name=pod["metadata"]["name"],
        uid=pod["metadata"]["uid"],
        phase=status.get("phase", ""),
        node=pod["spec"].get("nodeName", ""),
        address=status.get("podIP", ""),
        unscheduled=unscheduled,
        leaving="deletionTimestamp" in pod["metadata"],
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        ready_since=_seconds(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        containers=tuple(_container(each) for each in status.get("containerStatuses", [])),
        inits=tuple(_container(each) for each in status.get("initContainerStatuses", [])),
    )


def _container(status: Mapping[str, Any]) -> ContainerSeen:
    state = status.get("state", {})
    kind = next((name for name in ("running", "terminated", "waiting") if name in state), "waiting")
    told = state.get(kind) or {}
    return ContainerSeen(
        name=status["name"],
        state=kind,  # type: ignore[arg-type]  # One of the three.
        reason=told.get("reason", ""),
        message=told.get("message", ""),
        container_id=status.get("containerID", ""),
        image_digest=_digest(status.get("imageID", "")),
        restarts=status.get("restartCount", 0),
        started=bool(status.get("started")),
        ready=bool(status.get("ready")),
        ended=_ended(state.get("terminated")),
        last=_ended((status.get("lastState") or {}).get("terminated")),
    )


def _digest(image_id: str) -> str:
    """Of REGISTRY/NAME@sha256:..., with docker-pullable:// before it or not; "" of an image without a registry."""
    _, at, digest = image_id.rpartition("@")
    return digest if at else ""


def _ended(told: Mapping[str, Any] | None) -> Ended | None:
    if not told:
        return None
    finished = _seconds(told.get("finishedAt"))
    return Ended(
        told.get("reason", ""), told.get("exitCode"), told.get("message", ""), told.get("containerID", ""), finished
    )


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _condition(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Sequence[Mapping[str, Any]] = [each for each in status.get("conditions", []) if each["type"] == name]
    return found[0] if found else {}


def job_state(objects: Iterable[Mapping[str, Any]]) -> Literal["none", "running", "complete", "failed"]:
    """How far the download of a release is."""
    jobs = [each for each in objects if each["kind"] == "Job"]
    if not jobs:
        return "none"
    if any(_condition(job.get("status", {}), "Failed").get("status") == "True" for job in jobs):
        return "failed"
    done = all(_condition(job.get("status", {}), "Complete").get("status") == "True" for job in jobs)
    return "complete" if done else "running"


def unbound_claims(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of volume claims that have no volume."""
    claims = (each for each in objects if each["kind"] == "PersistentVolumeClaim")
    return [each["metadata"]["name"] for each in claims if each.get("status", {}).get("phase") != "Bound"]


def last_warning(events: Iterable[Mapping[str, Any]], *reasons: str) -> str:
    """The message of the last event that warns, of some reasons where they are given; "" where there is none."""
    found = [
        each.get("message", "")
        for each in events
        if each.get("type") == "Warning" and (not reasons or each.get("reason") in reasons)
    ]
    return found[-1] if found else ""


def last_event(events: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Reason and message of the last event; ("", "") where there is none."""
    found = [(each.get("reason", ""), each.get("message", "")) for each in events]
    return found[-1] if found else ("", "")
