"""The benchmark client of a release: a pod in the server's image that sleeps, and what is run and read in it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.kubectl import ClusterError
from berth.kubestate import pod_seen
from berth.kubetrouble import container_trouble

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.kubectl import Cluster

CONTAINER = "client"
# What the client is found by inside its pod, so that it can be ended from outside.
_RUN = 'echo $$ >"$0" && exec "$@"'
_END = '[ ! -s "$0" ] || { kill -KILL "$(cat "$0")" 2>/dev/null; rm -f "$0"; }'
_TAKE = (
    "import hashlib,os,sys;d=sys.stdin.buffer.read();p=sys.argv[1];os.makedirs(os.path.dirname(p),exist_ok=True);"
    "open(p,'wb').write(d);print(hashlib.sha256(d).hexdigest())"
)
_READ_TRIES = 3
_COPY_S = 300.0
_POLL_S = 0.5
_GONE_S = 30.0


class ClientPodFailed(BerthError):  # noqa: N818  # What happened.
    """The client's pod does not come up: cause and remedy."""

    kind = "client"

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}\nWhat to do: {remedy}")


def client_pod(
    name: str,
    values: Mapping[str, Any],
    client: Mapping[str, Any],
    *,
    claim: str,
    key_secret: str,
    labels: Mapping[str, str],
    release: str,
) -> dict[str, Any]:
    """The manifest. `values` are those of the release, `client` has `env`, `key_variable` and `server_variable`.

    It sees the server's volume read only, beside the server where such a volume is on one node at a time.
    """
    image, volume, cache = values["image"], values["extraInit"]["volume"], values["cache"]
    reference = (
        f"{image['repository']}@{image['digest']}" if image["digest"] else f"{image['repository']}:{image['tag']}"
    )
    beside = {
        "labelSelector": {
            "matchLabels": {"app.kubernetes.io/instance": release, "app.kubernetes.io/component": "server"}
        },
        "topologyKey": "kubernetes.io/hostname",
    }
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in client["env"].items()]
    if client["key_variable"] and key_secret:
        ref = {"name": key_secret, "key": client["server_variable"]}
        env.append({"name": client["key_variable"], "valueFrom": {"secretKeyRef": ref}})
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": values["podSecurityContext"],
            "imagePullSecrets": [{"name": each} for each in image["pullSecrets"]],
            "nodeSelector": values["nodeSelector"],
            "tolerations": values["tolerations"],
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside]}},
            "containers": [
                {
                    "name": CONTAINER,
                    "image": reference,
                    # It ends by itself when nobody has asked for it to be removed for a week.
                    "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 604800 & wait"],
                    "env": env,
                    "securityContext": security,
                    "resources": {
                        "requests": {"cpu": client["cpus"], "memory": f"{client['memory_gib']}Gi"},
                        "limits": {"memory": f"{client['memory_gib']}Gi"},
                    },
                    "volumeMounts": [
                        {"name": "model", "mountPath": volume["mountPath"], "readOnly": True},
                        {"name": "cache", "mountPath": cache["mountPath"]},
                    ],
                }
            ],
            "volumes": [
                {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
                {"name": "cache", "emptyDir": {}},
            ],
        },
    }


@dataclass(frozen=True)
class ClientPod:
    """A client's pod by its name; `folder` is one in it that it may write to."""

    cluster: Cluster
    name: str
    folder: Path

    @property
    def _pid_file(self) -> str:
        return str(self.folder / "client.pid")

    def exec_argv(self, *words: str) -> list[str]:
        """A command in the pod whose input, output and errors are those of kubectl."""
        return self.cluster.kubectl("exec", "-i", self.name, f"--container={CONTAINER}", "--", *words)

    def run_argv(self, program: str) -> list[str]:
        """What goes before the arguments of a program in the pod that stop_argv ends."""
        return self.exec_argv("/bin/sh", "-c", _RUN, self._pid_file, program)

    def stop_argv(self) -> list[str]:
        """What ends the program that run_argv started last, whatever became of its connection."""
        return self.exec_argv("/bin/sh", "-c", _END, self._pid_file)

    def wait_running(self, limit_s: float) -> str:
        """Return when it runs: the name of its node.

        Raises:
            ClientPodFailed: it cannot, or does not for `limit_s`.
        """
        end = time.monotonic() + limit_s
        while True:
            seen = [pod_seen(each) for each in self.cluster.get("pods", self.name)]
            if seen and seen[0].container(CONTAINER).state == "running":
                return seen[0].node
            trouble = container_trouble(seen[0].container(CONTAINER), self.name) if seen else None
            if trouble and trouble.final:
                raise ClientPodFailed(trouble.cause, trouble.remedy)
            if time.monotonic() > end:
                told = trouble.cause if trouble else (seen[0].unscheduled if seen else "the cluster does not know it")
                raise ClientPodFailed(
                    f"The client's pod {self.name} did not run within {limit_s:.0f} s: {told or 'no reason is given'}.",
                    "It needs room beside the server on its node: kubernetes.client_cpus and client_memory_gib.",
                )
            time.sleep(_POLL_S)

    def put(self, source: Path, target: Path, python: str) -> None:
        """Bring a file into the pod.

        Raises:
            ClusterError: it did not arrive whole.
        """
        data = source.read_bytes()
        argv = self.exec_argv(python, "-c", _TAKE, str(target))
        said = self.cluster.run(argv, given=data, timeout_s=_COPY_S).decode(errors="replace").split()
        if said[-1:] != [hashlib.sha256(data).hexdigest()]:
            raise ClusterError(f"copying {source} into pod {self.name}", f"its SHA-256 there is {said}")

    def prepare(self, folder: Path, pattern: str) -> None:
        """Have a folder for results, without earlier files of a name."""
        self._sh('mkdir -p "$1" && rm -f "$1"/$2', str(folder), pattern)

    def read(self, path: Path) -> bytes:
        """What is in a file of JSON.

        Raises:
            OSError: it is not there, or did not arrive whole.
        """
        for attempt in range(_READ_TRIES):
            try:
                data = self.cluster.run(self.exec_argv("cat", str(path)), timeout_s=_COPY_S)
                json.loads(data)
            except (ClusterError, ValueError) as error:
                if attempt == _READ_TRIES - 1:
                    raise OSError(str(error)) from None
            else:
                return data
        raise AssertionError

    def remove(self, path: Path) -> None:
        """Remove a file, if the pod is still there."""
        self._sh('rm -f "$1"', str(path))

    def _sh(self, script: str, *words: str) -> None:
        try:
            self.cluster.run(self.exec_argv("/bin/sh", "-c", script, "sh", *words), timeout_s=_GONE_S)
        except ClusterError as error:
            raise OSError(str(error)) from None
