"""A server in a release, as a sweep sees it: one life of one container, watched, and told apart from the next."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from berth.activity import ActivityMeter
from berth.diagnose import Diagnosis, diagnose
from berth.kubectl import ClusterError
from berth.kubeforward import Forward
from berth.kubelogs import LogFollower, append_log
from berth.kubemeter import PodMeter
from berth.kubestate import SERVER, PodSeen, pods_of
from berth.kubetrouble import pod_trouble
from berth.kubewait import StartWait
from berth.serve import Launch, ServerDied, held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from berth.diagnose import KnownFailure
    from berth.kubelaunch import Released
    from berth.kuberelease import Release
    from berth.serve import Meter

logger = logging.getLogger(__name__)

_WATCH_S = 2.0
# How long the cluster may be out of reach before nobody can say that the server was the same all the time.
_AWAY_S = 120.0
_LOG_END_S = 5.0


class Placed(Protocol):
    """A deployment that has a release: for a sweep, or for a service."""

    @property
    def release(self) -> Release:
        """Its release."""

    @property
    def logs(self) -> Path:
        """The folder of its logs."""

    @property
    def server_log(self) -> Path:
        """What the server prints."""

    @property
    def download_log(self) -> Path:
        """What the Job prints that brings the model."""

    @property
    def key(self) -> str:
        """The server's API key."""

    @property
    def known_failures(self) -> tuple[KnownFailure, ...]:
        """The tables of failures that its log may tell."""

    @property
    def seen(self) -> dict[str, str]:
        """Containers of the server that have ended or served, with the uid of their pod."""

    @property
    def schedule_s(self) -> float:
        """How long a pod may wait for a node or a volume."""

    @property
    def stall_s(self) -> float:
        """How long nothing may move while it starts."""

    @property
    def served_model(self) -> str:
        """The name that the server answers to."""

    def install(self) -> dict[str, Any]:
        """Put the release there; its values."""

    def values(self, store_secret: str) -> dict[str, Any]:
        """The values of the release."""

    def ran_from(self, digest: str) -> None:
        """Note which image the server runs from, or raise BerthError where it is the wrong one."""

    def start_client(self, values: dict[str, Any]) -> bool:
        """Have the client beside the server; False where there is none."""


class ReleaseServer:
    """The server of a release. start() and take_down() are for serve_release(), in the main thread."""

    def __init__(self, deployed: Placed, token: str) -> None:
        self._deployed = deployed
        self._release = deployed.release
        self._token = token
        self._launch: Launch | None = None
        self._pod: PodSeen | None = None
        self._latest: PodSeen | None = None
        self._answered = time.monotonic()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="pods", daemon=True)
        self._follower: LogFollower | None = None
        self._forward = Forward(
            self._release.cluster, 0, log_path=deployed.logs.absolute() / "forward.log", token=token
        )
        self.log_path = deployed.server_log
        self.log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.started = time.monotonic()
        self.events: list[tuple[str, float]] = []

    # What readiness and measurement see.

    @property
    def launch(self) -> Launch:
        """How its container was started."""
        if self._launch is None:
            raise AssertionError("a server that has not been started")
        return self._launch

    @property
    def pod(self) -> PodSeen:
        """Its pod, as it was when it started."""
        if self._pod is None:
            raise AssertionError("a server that has not been started")
        return self._pod

    @property
    def places(self) -> list[dict[str, str]]:
        """Name of its node, and address of its pod."""
        return [{"name": self.pod.node, "address": self.pod.address}]

    @property
    def copies(self) -> list[dict[str, Any]]:
        """None: its Job brings the model onto a volume."""
        return []

    @property
    def base_url(self) -> str:
        """Its address on this machine, through a forward that is made anew where it broke."""
        return f"http://127.0.0.1:{self._forward.port()}"

    @property
    def client_url(self) -> str:
        """Its address in the cluster: that of its pod, so that nothing stands between client and server."""
        host = f"[{self.pod.address}]" if ":" in self.pod.address else self.pod.address
        return f"http://{host}:{self.launch.port}"

    def drain(self, limit_s: float) -> bool:
        """False, at once: its pods answer what they have begun when the release is removed, in the chart's time."""
        del limit_s
        return False

    def alive(self) -> bool:
        """Whether its container is the one that was started and runs, as was seen last."""
        latest = self._latest
        same = latest is None or (latest.identity == self.pod.identity and latest.container(SERVER).state == "running")
        return same and time.monotonic() - self._answered < _AWAY_S

    def check(self) -> None:
        """Return when its container is the one that was started, and runs now.

        Raises:
            ServerDied: it is not, or the cluster has not answered for two minutes.
        """
        while not self._look():
            if not self.alive():
                break
            time.sleep(_WATCH_S)
        if not self.alive():
            raise self.died()

    def died(self, cause: str | None = None) -> ServerDied:
        """The error that tells why it ended; `cause` says what was seen when it still runs."""
        self._look()
        latest = self._latest
        if self.alive():
            found = self._diagnosis(None)
        elif (
            latest is not None and latest.identity == self.pod.identity and latest.container(SERVER).state == "running"
        ):
            found = Diagnosis(
                f"The cluster has not answered for {_AWAY_S:.0f} s, so that nobody can say whether the server went on.",
                "See `kubectl get pods`, and whether the way to the cluster is stable.",
                "",
                "",
            )
        else:
            return self._ended(latest, cause)
        return ServerDied(replace(found, cause=f"{cause} {found.cause}") if cause else found, self.log_path)

    def _ended(self, latest: PodSeen | None, cause: str | None) -> ServerDied:
        code = self._last_log(latest)
        found = self._diagnosis(code)
        trouble = pod_trouble(latest) if latest is not None else None
        if latest is None or latest.uid != self.pod.uid:
            found = replace(found, cause=f"Pod {self.pod.name} was deleted or replaced by the cluster. {found.cause}")
        elif trouble is not None and trouble.crashed:
            oom = "OOMKilled" in trouble.cause
            found = replace(
                found,
                cause=trouble.cause if oom else f"{trouble.cause} {found.cause}",
                remedy=trouble.remedy if oom else found.remedy,
            )
        if cause:
            found = replace(found, cause=f"{cause} {found.cause}")
        return ServerDied(found, self.log_path, code, replaced=True)

    def _last_log(self, latest: PodSeen | None) -> int | None:
        """The exit code of our container; its log is in the file to its end, where the cluster still has it."""
        if self._follower is not None:
            self._follower.finish(_LOG_END_S)
        ours = self.pod.container(SERVER).container_id
        seen = latest.container(SERVER) if latest is not None and latest.uid == self.pod.uid else None
        ended = (
            [each for each in (seen.ended, seen.last) if each is not None and each.container_id == ours] if seen else []
        )
        size = self.log_path.stat().st_size if self.log_path.exists() else 0
        if ended and size == self.log_start:
            append_log(self._release.cluster, self.pod.name, SERVER, self.log_path, "--previous")
        return ended[0].code if ended else None

    def _diagnosis(self, code: int | None) -> Diagnosis:
        return diagnose(
            self.log_path,
            known_failures=self._deployed.known_failures,
            returncode=code,
            secrets=(self._deployed.key,),
            start=self.log_start,
        )

    def pin(self) -> None:
        """Nothing: who it is was noted when it started."""

    def listening(self) -> frozenset[str]:
        """Its own socket, once the kubelet had an answer from it."""
        latest = self._latest
        return frozenset({"own"} if latest is not None and latest.container(SERVER).started else ())

    def own_sockets(self) -> frozenset[str]:
        """The same: a pod's port is nobody else's."""
        return self.listening()

    def meter(self, own_paths: Sequence[str]) -> Meter:
        """Tells whether it gets on, by its log and by what its processes compute and read."""
        return PodMeter(
            self._release.cluster,
            self.pod.name,
            ActivityMeter(list, self.log_path, log_start=self.log_start, own_paths=own_paths),
        )

    # From the release to the end of this life.

    def start(self) -> None:
        """Have the release, and its container; return when that runs and the client's pod beside it.

        Raises:
            NotStarted, ClientPodFailed, BerthError: it does not come up.
        """
        deployed, release = self._deployed, self._release
        again = bool(deployed.seen)
        values = deployed.install() if not again else deployed.values("")
        if not again:
            self.events.append(("installed", time.monotonic() - self.started))
        wait = StartWait(
            release,
            self.log_path,
            deployed.download_log,
            stall_s=deployed.stall_s,
            schedule_s=deployed.schedule_s,
            secrets=(deployed.key,),
            known=frozenset(deployed.seen),
            not_pod=self._make_room() if again else "",
        )
        self._pod = self._latest = wait.run()
        self.events += wait.events
        self._answered = time.monotonic()
        seen = self._pod.container(SERVER)
        deployed.seen[seen.container_id] = self._pod.uid
        self._launch = Launch(
            argv=tuple(values["image"]["command"]),
            env={},
            cwd=Path.cwd(),
            host=self._pod.address,
            port=values["containerPort"],
            served_model=deployed.served_model,
            secret_env={"key": deployed.key},
        )
        self._follower = LogFollower(release.cluster, self._pod.name, SERVER, self.log_path)
        self._follower.start()
        self._watcher.start()
        deployed.ran_from(seen.image_digest)
        self._forward = Forward(
            release.cluster,
            self._launch.port,
            log_path=deployed.logs.absolute() / "forward.log",
            token=self._token,
        )
        self._forward.to(f"pod/{self._pod.name}")
        if deployed.start_client(values):
            self.events.append(("client_pod_ready", time.monotonic() - self.started))

    def _make_room(self) -> str:
        """Delete the pod whose container served last where that still runs, as with a dead engine; its uid."""
        deployed = self._deployed
        pods = pods_of(self._release.objects("pods"))
        old = [pod for pod in pods if pod.container(SERVER).container_id in deployed.seen]
        running = [pod for pod in old if pod.container(SERVER).state == "running"]
        if not running:
            return ""
        self._release.cluster.run(self._release.cluster.kubectl("delete", "pod", running[0].name, "--wait=false"))
        return running[0].uid

    def _watch(self) -> None:
        while not self._over.wait(_WATCH_S):
            self._look()

    def _look(self) -> bool:
        """Ask the cluster for the pod; False where it does not answer."""
        try:
            objects = self._release.objects("pods")
        except ClusterError as error:
            logger.info("the cluster does not answer: %s", error)
            return False
        pods = pods_of(objects)
        same = [pod for pod in pods if pod.uid == self.pod.uid and not pod.leaving]
        self._latest = (same or pods or [_gone(self.pod)])[0]
        self._answered = time.monotonic()
        return True

    def take_down(self, *, grace_s: float) -> None:
        """Leave it: what watches it ends, and the release stays for the next server of the sweep."""
        del grace_s
        self._over.set()
        if self._follower is not None:
            self._follower.stop()
        self._forward.close()
        if self._watcher.is_alive():
            self._watcher.join(_WATCH_S)


def _gone(pod: PodSeen) -> PodSeen:
    return replace(pod, uid="", containers=(), inits=())


@contextlib.contextmanager
def serve_release(deployed: Released, token: str) -> Iterator[ReleaseServer]:
    """A server whose container runs, with the client's pod beside it. Use it as serve.serve().

    Raises:
        NotStarted, ClientPodFailed, BerthError: it does not come up.
    """
    server = ReleaseServer(deployed, token)
    with held(lambda: server, grace_s=0):
        server.start()
        yield server
