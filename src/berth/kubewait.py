"""Waiting for a release's server to run: from Helm's answer to the start of its container, with what keeps it."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from berth.diagnose import read_log, redact
from berth.kubelogs import LogFollower, append_log
from berth.kubestate import (
    DOWNLOAD,
    SERVER,
    WAIT,
    PodSeen,
    job_state,
    last_event,
    last_warning,
    pods_of,
    unbound_claims,
)
from berth.kubetrouble import Trouble, pod_trouble
from berth.ready import NotReady
from berth.signals import raise_if_asked

if TYPE_CHECKING:
    from pathlib import Path

    from berth.kuberelease import Release

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_SAY_EVERY_S = 30.0
_EVENTS_AFTER_S = 20.0
# A registry that is busy answers another time; a volume may be made when the pod is already there.
_PATIENCE_S = 120.0
KINDS = "pods,jobs.batch,persistentvolumeclaims"


class NotStarted(NotReady):
    """The container of the server does not start: cause and remedy."""


@dataclass
class StartWait:
    """One wait. `known` are containers whose end is an old story; `events` are what was seen, in seconds."""

    release: Release
    server_log: Path
    download_log: Path
    stall_s: float
    schedule_s: float
    secrets: tuple[str, ...]
    known: frozenset[str] = frozenset()
    # A pod that is to go, and is not waited for.
    not_pod: str = ""
    events: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = self._moved = self._said = self._asked = time.monotonic()
        self._last = ""
        self._trouble_since: tuple[str, float] | None = None
        self._follower: LogFollower | None = None
        self._followed = ""
        self._log_start = _size(self.download_log)
        self._log_size = self._log_start

    def run(self) -> PodSeen:
        """The pod whose container runs now.

        Raises:
            NotStarted: it cannot, or does not get on.
            ClusterError: the cluster does not answer.
        """
        try:
            while True:
                objects = self.release.objects(KINDS)
                pods = [pod for pod in pods_of(objects) if pod.uid != self.not_pod and not pod.leaving]
                self._follow_download(objects)
                self._note(pods, objects)
                # On a volume that has the model already the server need not wait; its files are still to be verified.
                if pods and pods[0].container(SERVER).state == "running" and job_state(objects) != "running":
                    self._happened("container_started")
                    return pods[0]
                self._judge(pods, objects)
                time.sleep(_POLL_S)
        finally:
            if self._follower is not None:
                self._follower.finish(_POLL_S * 5)
                self._follower.stop()

    def _happened(self, event: str) -> None:
        if event not in [name for name, _ in self.events]:
            elapsed_s = time.monotonic() - self._began
            self.events.append((event, elapsed_s))
            logger.info("server: %s after %.1f s", event, elapsed_s)

    def _note(self, pods: list[PodSeen], objects: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        # What a pod's status says changes with every step, and else only by counters of repeated failures.
        shown = json.dumps(
            [[pod.phase, pod.node, [each.state for each in (*pod.inits, *pod.containers)]] for pod in pods]
        )
        shown += job_state(objects)
        size = _size(self.download_log)
        if shown != self._last or size != self._log_size:
            self._last, self._log_size, self._moved = shown, size, now
        if pods and pods[0].node:
            self._happened("scheduled")
        if pods and any(each.container_id for each in (*pods[0].inits, *pods[0].containers)):
            self._happened("image_pulled")
        waited = pods[0].container(WAIT).ended if pods else None
        if waited is not None and waited.code == 0:
            self._happened("model_downloaded")

    def _follow_download(self, objects: list[dict[str, Any]]) -> None:
        for pod in pods_of(objects, "download"):
            seen = pod.container(DOWNLOAD)
            if seen.state != "waiting" and seen.container_id not in ("", self._followed):
                if self._follower is not None:
                    self._follower.stop()
                self._followed = seen.container_id
                self._follower = LogFollower(self.release.cluster, pod.name, DOWNLOAD, self.download_log)
                self._follower.start()

    def _judge(self, pods: list[PodSeen], objects: list[dict[str, Any]]) -> None:
        """Return while waiting makes sense."""
        raise_if_asked()
        self._judge_download(objects)
        now = time.monotonic()
        trouble = self._trouble(pods, objects)
        if trouble is None:
            self._trouble_since = None
        else:
            self._judge_trouble(trouble, pods, now)
        if now - self._said > _SAY_EVERY_S:
            self._said = now
            logger.info(
                "waiting for release %s, %.0f s: %s", self.release.name, now - self._began, self._seen(pods, trouble)
            )
        if trouble is None and now - self._moved > self.stall_s:
            if pods and now - self._asked > _EVENTS_AFTER_S:
                self._asked = now
                # The kubelet gives up a download of an image that stands still.
                if last_event(self.release.cluster.events_of(pods[0].name))[0] == "Pulling":
                    self._moved = now
                    return
            up = pods and pods[0].container(SERVER).state == "running"
            waited = "The model was not verified" if up else "The server's container did not start"
            raise NotStarted(
                f"{waited}, and nothing has moved for {self.stall_s:g} s. {self._seen(pods, None)}",
                "See `kubectl describe pod`. If the cluster is only slow, raise sweep.stall_s in config/config.yaml.",
            )

    def _judge_trouble(self, trouble: Trouble, pods: list[PodSeen], now: float) -> None:
        if self._trouble_since is None or self._trouble_since[0] != trouble.remedy:
            self._trouble_since = (trouble.remedy, now)
            logger.info("%s", trouble.cause)
        without_place = not pods or not pods[0].node
        if trouble.final or now - self._trouble_since[1] > (self.schedule_s if without_place else _PATIENCE_S):
            if trouble.crashed and pods:
                append_log(self.release.cluster, pods[0].name, SERVER, self.server_log)
            raise NotStarted(redact(trouble.cause, self.secrets), trouble.remedy)

    def _judge_download(self, objects: list[dict[str, Any]]) -> None:
        failed = job_state(objects) == "failed"
        for pod in pods_of(objects, "download"):
            seen = pod.container(DOWNLOAD)
            ended = seen.ended or seen.last
            if ended is None or ended.code == 0:
                continue
            if self._follower is not None:
                self._follower.finish(_POLL_S * 5)
                self._follower.stop()
                self._follower, self._followed = None, ""
            said = self._last_error()
            # Its own "error:" is of what another attempt does not change; anything else Kubernetes tries again.
            if said or failed:
                raise NotStarted(
                    f"The model was not brought onto the volume: {said or ended.reason or 'the Job failed'}",
                    "Correct that, and start again. What is on the volume already stays where the claim does. "
                    f"Log: {self.download_log}",
                )

    def _last_error(self) -> str:
        lines = read_log(self.download_log, start=self._log_start).splitlines()
        found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return found[-1] if found else ""

    def _trouble(self, pods: list[PodSeen], objects: list[dict[str, Any]]) -> Trouble | None:
        if not pods:
            return self._without_pods()
        unbound = unbound_claims(objects)
        says = ""
        if unbound and not pods[0].node:
            says = (
                last_warning(self.release.cluster.events_of(unbound[0]))
                or last_event(self.release.cluster.events_of(unbound[0]))[1]
            )
        return pod_trouble(pods[0], unbound=unbound, claim_says=says, known=self.known)

    def _without_pods(self) -> Trouble | None:
        # A quota or a policy refuses pods, and only the ReplicaSet's events say so.
        if time.monotonic() - self._began < _EVENTS_AFTER_S:
            return None
        for each in self.release.objects("replicasets.apps"):
            said = last_warning(self.release.cluster.events_of(each["metadata"]["name"]), "FailedCreate")
            if said:
                return Trouble(
                    f"The cluster makes no pod for release {self.release.name}: {said}",
                    "A quota, a limit or a policy of the namespace is in the way: make the deployment smaller, or ask.",
                    final=True,
                )
        return None

    def _seen(self, pods: list[PodSeen], trouble: Trouble | None) -> str:
        if trouble is not None:
            return trouble.cause
        if not pods:
            return "There is no pod yet."
        steps = [f"{each.name} {each.state} {each.reason}".strip() for each in (*pods[0].inits, *pods[0].containers)]
        return f"Pod {pods[0].name}: {', '.join(steps) or pods[0].phase}."


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
