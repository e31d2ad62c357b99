"""A deployment on Kubernetes for one sweep: what was staged for it, its release, and how its client starts."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.image_history import require_same_image
from berth.kubeclient import ClientPod, client_pod
from berth.kubectl import Cluster
from berth.kubeplan import for_measuring, of_release
from berth.kuberelease import Release, left_release
from berth.kubernetes import api_key_secret
from berth.launch import WATCH, WORKER, Deployed, read_receipt, require_same_model
from berth.processes import mark_of
from berth.recipes import load_recipe
from berth.runtime import Command
from berth.serve import held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.nodes import Node
    from berth.runtime import Host
    from berth.sweep import SweepRequest

logger = logging.getLogger(__name__)

# Helm takes names of 53 characters; a mark of the token and "berth-" go with it.
_LONGEST = 30
_STATE = "release.json"


@dataclass(frozen=True)
class Released(Deployed):
    """A deployment whose server and client are pods. Paths of model, dataset and results are those in the pods."""

    release: Release = field(kw_only=True)
    pod: ClientPod = field(kw_only=True)
    local_dataset: Path = field(kw_only=True)
    key: str = field(kw_only=True, repr=False)
    # Containers of the server that have ended or served, and the pod of the last one: what another server must not be.
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def chart(self) -> dict[str, Any]:
        """What kubeplan.release_request gave to the sweep."""
        return self.request.kubernetes

    @property
    def worker(self) -> Path:
        """The warm worker in the client's pod."""
        return self.pod.folder / WORKER.name

    @property
    def files(self) -> ClientPod:
        """The client's results in its pod."""
        return self.pod

    @property
    def exchange(self) -> Path:
        """Where the client leaves its results in its pod."""
        return self.pod.folder / "results"

    @property
    def download_log(self) -> Path:
        """What the Job prints that brings the model."""
        return self.logs / "download.log"

    def new_key(self) -> str:
        """The key of the release: a container that is started again is given the same."""
        return self.key

    def job_nodes(self) -> tuple[Node, ...]:
        """None: the cluster chooses."""
        return ()

    def client(self, key: str, token: str, node: Node | None = None) -> tuple[Command, Command]:
        """How the image's Python and its `vllm` start in the client's pod, which has the key by its environment."""
        del key, token, node
        environ = self.release.cluster.environment()
        stop = (tuple(self.pod.stop_argv()),)
        python, program = (
            Command(tuple(self.pod.run_argv(self.chart["client"][name])), environ, {}, stop)
            for name in ("python", "program")
        )
        return python, program

    def values(self, store_secret: str) -> dict[str, Any]:
        """The values of the release."""
        values = of_release(self.chart, self.release.name, self.release.token, store_secret)
        # What a tag of the site's registry stands for was found out when the image was mirrored.
        if self.image.get("digest"):
            values["image"] = {**values["image"], "digest": self.image["digest"]}
        return for_measuring(values, self.request.settings["stop_grace_s"])

    @property
    def claim(self) -> str:
        """The claim with the model."""
        return self.chart["claim"] or f"{self.release.name}-model"

    def install(self) -> dict[str, Any]:
        """Put secrets, claim and release there; the values.

        Raises:
            BerthError: the cluster refuses, or there are no credentials of the store.
        """
        self.release.note()
        return self.release.set_up(self.chart, self.key, self.values, self.logs / "values.yaml")

    @property
    def schedule_s(self) -> float:
        """How long a pod may wait for a node or a volume."""
        return float(self.chart["schedule_s"])

    @property
    def stall_s(self) -> float:
        """How long nothing may move while it starts."""
        return float(self.request.settings["stall_s"])

    @property
    def served_model(self) -> str:
        """The name that the server answers to."""
        return self.request.repo

    def start_client(self, values: dict[str, Any]) -> bool:
        """Have the client's pod beside the server, with worker and dataset in it.

        Raises:
            ClientPodFailed, ClusterError: it does not come up.
        """
        cluster, client = self.release.cluster, self.chart["client"]
        if not cluster.get("pods", self.pod.name):
            cluster.create(
                client_pod(
                    self.pod.name,
                    values,
                    client,
                    claim=self.claim,
                    key_secret=self.key_secret(),
                    labels={**self.release.labels, "app.kubernetes.io/component": "client"},
                    release=self.release.name,
                )
            )
        self.pod.wait_running(self.schedule_s)
        watch = self.worker.with_name(WATCH.name)
        for source, target in ((WORKER, self.worker), (WATCH, watch), (self.local_dataset, self.dataset_path)):
            self.pod.put(source, target, client["python"])
        return True

    def key_secret(self) -> str:
        """The name of the secret with the key, "" where the server asks for none."""
        return api_key_secret(self.release.name) if self.chart["server_key"] else ""

    def ran_from(self, digest: str) -> None:
        """Note which image the server runs from.

        Raises:
            BerthError: it is not the one that the run is defined with, or that its other points were measured with.
        """
        wanted = self.request.definition["image"]["digest"]
        known = {wanted, self.image.get("digest"), self.image.get("index_digest")} - {None, ""}
        if digest and known and digest not in known:
            raise BerthError(
                f"The pod runs from {digest}, but the run is defined with {' or '.join(sorted(known))}. Delete "
                f"{self.request.image_receipt}, and correct the recipe's `digest` if the image was meant to change."
            )
        require_same_image(Path(self.request.results), self.request.id, digest or None)
        # Records are made from it; only now is it known what a tag stood for.
        self.image["digest"] = digest or self.image.get("digest") or None


def prepare_release(request: SweepRequest, host: Host, token: str, folder: Path) -> Released:
    """The deployment, after a look at what was staged for it. Nothing is started; `folder` is the run's own.

    Raises:
        BerthError: a receipt does not belong to the definition of the run.
    """
    model = read_receipt(request.model_receipt)
    image = read_receipt(request.image_receipt)
    dataset = read_receipt(request.dataset_receipt)
    require_same_model(request, model)
    local = (Path(request.dataset_receipt).parent / dataset["path"]).absolute()
    if not local.exists():
        raise BerthError(f"{local} is not there, although {request.dataset_receipt} says so. Delete it, and run again.")
    chart = request.kubernetes
    cluster = Cluster(chart["context"], chart["namespace"], host.environ)
    name = release_of(request, token)
    values = chart["values"]
    inside = Path(values["cache"]["mountPath"]) / "berth"
    logs = Path(request.results) / "logs" / "server" / request.id.key
    logs.mkdir(parents=True, exist_ok=True)
    return Released(
        request,
        host,
        load_recipe(Path(request.recipe_file)),
        {**image, "digest": image["digest"] or None},
        Path(str(PurePosixPath(values["extraInit"]["volume"]["mountPath"]) / values["extraInit"]["modelDir"])),
        inside / local.name,
        logs.absolute(),
        logs,
        custody={
            "model": {"manifest_sha256": model["manifest"]["sha256"], "copy": "volume"},
            "dataset": {"sha256": dataset.get("sha256")},
        },
        release=Release(cluster, name, token, folder / _STATE),
        pod=ClientPod(cluster, f"{name}-client", inside),
        local_dataset=local,
        key=secrets.token_urlsafe(32),
    )


def release_of(request: SweepRequest, token: str) -> str:
    """The name of a sweep's release: of the run for people, of its token so that no other sweep has it."""
    told = f"{request.deployment['name']}-run{request.run}"
    plain = re.sub(r"[^a-z0-9]+", "-", told.lower()).strip("-")[-_LONGEST:].strip("-")
    return f"berth-{plain}-{mark_of(token)}"


@contextlib.contextmanager
def released(request: SweepRequest, host: Host, token: str, folder: Path) -> Iterator[Released]:
    """A deployment whose release is gone when the block ends, whatever ended it; what a dead sweep left goes first.

    Raises:
        BerthError: a receipt is wrong; something of the release, or of an earlier one, cannot be removed.
    """
    grace_s = request.settings["stop_grace_s"]
    chart = request.kubernetes
    left = left_release(folder / _STATE, Cluster(chart["context"], chart["namespace"], host.environ))
    if left is not None:
        logger.warning("removing what a dead sweep of this run had left: release %s", left.name)
        left.take_down(grace_s=grace_s)
    deployed = prepare_release(request, host, token, folder)
    with held(lambda: deployed.release, grace_s=grace_s):
        yield deployed
