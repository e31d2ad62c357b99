"""A site on the real cluster: its namespace, its volumes, and a workspace whose platform it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from container_runs import ON_A_CPU
from workspace import Workspace, run_log

from berth.kubectl import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from store_server import PodStore

BRIDGE = "berthk8s"
LEVELS = (1, 2)
VOLUMES = 6


def bridge_address() -> str:
    """The address of this machine towards its pods."""
    said = subprocess.run(["ip", "-json", "address", "show", BRIDGE], capture_output=True, text=True, check=True).stdout
    return str(json.loads(said)[0]["addr_info"][0]["local"])


class OnCluster(Workspace):
    """A workspace whose Snakemake runs with the profile of Goodall."""

    def command(self, *arguments: str) -> list[str]:
        """The real command line of a user."""
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        return [snakemake, "--profile", "profiles/goodall", "--cores", "1", *arguments]


@dataclass(frozen=True)
class Site:
    """The namespace with everything in it."""

    folder: Path
    cluster: Cluster
    reference: str
    digest: str
    standin: str
    store: PodStore

    def environ(self) -> dict[str, str]:
        """What a user exports."""
        return {**self.store.environ, "AWS_EC2_METADATA_DISABLED": "true", "BERTH_KEYS": str(self.folder / "keys")}

    def workspace(
        self,
        name: str,
        *,
        deployment: dict[str, Any] | None = None,
        platform: dict[str, Any] | None = None,
        image: str = "",
        prompts: int = 16,
        levels: tuple[int, ...] = LEVELS,
    ) -> OnCluster:
        """A checkout with one experiment of two points on this site."""
        work = OnCluster.create(self.folder / name)
        assert isinstance(work, OnCluster)
        recipe = yaml.safe_load((work.path / "config/recipes/vllm.yaml").read_text())
        recipe["versions"]["0.32.0"]["images"]["cuda"] = {"kind": "container", "reference": image or self.reference}
        (work.path / "config/recipes/vllm.yaml").write_text(yaml.safe_dump(recipe))
        kubernetes = {
            "namespace": self.cluster.namespace,
            "cpus": 1,
            "memory_gib": 4,
            "shm_gib": 1,
            "client_cpus": 1,
            "client_memory_gib": 2,
            "gpu_models": ["NVIDIA-H100-NVL"],
            "run_as_user": 1000,
            "schedule_s": 240,
            "keep_model": True,
            **(platform or {}),
        }
        settings = {
            "label": "Goodall",
            "accelerator": {"kind": "cuda", "name": "H100 NVL", "per_node": 8, "memory_gib": 94},
            "nodes": 1,
            "scheduler": "kubernetes",
            "runtime": "kubernetes",
            "paths": {"models": "/data", "scratch": "/cache"},
            "store": {
                "kind": "s3",
                "endpoint_url": self.store.endpoint_url,
                "bucket": "models",
                "addressing_style": "path",
            },
            "server": {"host": "0.0.0.0", "ports": [8000, 8099]},  # Of a pod.
            "recipes": {"vllm": ON_A_CPU},
            "kubernetes": kubernetes,
        }
        (work.path / "config/platforms/goodall.yaml").write_text(yaml.safe_dump(settings))

        def change(config: dict[str, Any]) -> None:
            tiny = {"model": "tiny-llama", "recipe": "vllm", "platform": "goodall", "version": "0.32.0"}
            config["deployments"] = {"tiny": {**tiny, **(deployment or {})}}
            config["benchmarks"] = {"demo": {**config["benchmarks"]["demo"], "num_prompts": prompts}}
            config["benchmarks"]["demo"]["concurrency"] = list(levels)
            config["benchmarks"]["demo"]["warm_up_prompts"] = 4
            experiment = {"title": "Try", "deployments": ["tiny"], "benchmark": "demo", "runs": 1}
            config["experiments"] = {"try": experiment}
            config["sweep"] = {"stop_grace_s": 5, "stall_s": 180, "point_stall_s": 60}

        work.configure(change)
        return work

    def left(self) -> list[str]:
        """Everything of Berth in the namespace that is there now, claims that are to stay apart."""
        found = self.cluster.get("pods,deployments.apps,jobs.batch,services,configmaps,secrets,persistentvolumeclaims")
        names = [f"{each['kind']}/{each['metadata']['name']}" for each in found]
        own = [name for name in names if re.search(r"/berth-|/tiny|/sh\.helm", name)]
        return sorted(name for name in own if not name.startswith("PersistentVolumeClaim/berth-model-"))

    def server_pod(self) -> dict[str, Any] | None:
        """The pod of a server, None where there is none."""
        found = self.cluster.get("pods", "--selector=app.kubernetes.io/component=server")
        return found[0] if found else None

    def kill_server(self) -> None:
        """Kill the first process of the server's container from outside, as the kernel does that is out of memory."""
        pod = self.server_pod()
        assert pod is not None
        container = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        pids = [int(place.parent.name) for place in Path("/proc").glob("[0-9]*/cgroup") if container in _text_of(place)]
        os.kill(min(pids), signal.SIGKILL)


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def until(condition: Callable[[], Any], told: Callable[[], str] = lambda: "", limit_s: float = 240.0) -> Any:
    """The first true value; the limit is a safeguard against a hanging test, not a measurement."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, told()
        time.sleep(0.3)
    return value


def told(work: OnCluster) -> str:
    """Everything that was printed, for a failing assertion."""
    logs = sorted((work.path / "results/logs").rglob("*.log"))
    return "\n".join([run_log(work)[-4000:], *(f"== {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)])


def record_of(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


@contextlib.contextmanager
def make_site(folder: Path, image: tuple[str, str], standin: str, store: PodStore) -> Iterator[Site]:
    """A namespace and a few volumes, gone when the block ends."""
    name = f"berth-{uuid.uuid4().hex[:8]}"
    everywhere = Cluster()
    everywhere.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for number in range(VOLUMES):
        place = folder / f"volume{number}"
        place.mkdir(mode=0o777)
        place.chmod(0o777)
        everywhere.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"{name}-{number}", "labels": {"test": name}},
                "spec": {
                    "capacity": {"storage": "20Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": str(place)},
                },
            }
        )
    # Pods run as another user than this one.
    for parent in folder.parents:
        if str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    try:
        yield Site(folder, Cluster(namespace=name), *image, standin, store)
    finally:
        everywhere.run(everywhere.kubectl("delete", "namespace", name, "--wait=true"), timeout_s=120)
        everywhere.run(everywhere.kubectl("delete", "persistentvolumes", f"--selector=test={name}", "--wait=false"))
