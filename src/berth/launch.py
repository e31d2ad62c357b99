"""One deployment on this node: what was staged for it, and how its server and its client start."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import _bench_worker
from berth.container import Container, Mount
from berth.decide import Site
from berth.errors import BerthError
from berth.fsio import write_text
from berth.holder import job_id
from berth.nodes import Node, Place, client_start, job_nodes
from berth.processes import TOKEN_VARIABLE
from berth.ready import Checks
from berth.recipes import load_recipe
from berth.resolve import Resolved, client_container, resolve
from berth.runtime import Command, command
from berth.serve import Launch
from berth.sockets import free_port

if TYPE_CHECKING:
    from berth.diagnose import KnownFailure
    from berth.recipe import Recipe
    from berth.sweep import SweepRequest

WORKER = Path(_bench_worker.__file__).resolve()


@dataclass(frozen=True)
class Deployed:
    """A deployment with its staged model, image and dataset, and the folders of one run on this node."""

    request: SweepRequest
    recipe: Recipe
    image: dict[str, Any]
    model_dir: Path
    dataset_path: Path
    scratch: Path
    logs: Path
    # Which node of a server over several this is; None in a sweep, which is none of them.
    place: Place | None = None

    @property
    def known_failures(self) -> tuple[KnownFailure, ...]:
        """The recipe's table of failures."""
        return self.recipe.failures

    @property
    def checks(self) -> Checks:
        """How the recipe's service tells that it is ready."""
        ready = self.recipe.ready
        return Checks(ready.health, ready.models, ready.completion, keyed=bool(self.recipe.server_key))

    @property
    def server_log(self) -> Path:
        """What the server prints, all servers of the run one after the other; on several nodes, on this one."""
        return self.logs / "server.log" if self.place is None else self.node_log(self.place.rank)

    def node_log(self, rank: int) -> Path:
        """What a server over several nodes prints on one of them."""
        return self.logs / f"server.node{rank}.log"

    @property
    def client_log(self) -> Path:
        """What the benchmark client prints."""
        return self.logs / "client.log"

    def job_nodes(self) -> tuple[Node, ...]:
        """The nodes of the server, and after them that of the client; none where this node alone has both."""
        deployment = self.request.deployment
        count = deployment["nodes"] + deployment["client_nodes"]
        return job_nodes(self.request.platform_settings, count) if count > 1 else ()

    @property
    def exchange(self) -> Path:
        """Where the client leaves its results: on a file system that both nodes have, where it has its own node."""
        return (self.logs / "client").absolute() if self.request.deployment["client_nodes"] else self.scratch

    def log_name(self, log: Path) -> str:
        """A log's path relative to the folder of results, as records hold it."""
        return log.relative_to(self.request.results).as_posix()

    def free_port(self) -> int:
        """A free port of the platform's range."""
        low, high = self.request.platform_settings["ports"]
        key = f"config/platforms/{self.request.platform}.yaml: server.ports"
        return free_port(self.host, low, high, key=key)

    @property
    def host(self) -> str:
        """The address that the server binds to."""
        return str(self.request.platform_settings["host"])

    def launch(self, port: int, key: str) -> Launch:
        """The server's start on a port; the files that the recipe declares are written."""
        resolved = self.resolved(port)
        for file in resolved.files:
            write_text(file.path, file.text, mode=0o600)
        return self.launch_of(resolved.container, port, key)

    def launch_of(self, container: Container, port: int, key: str) -> Launch:
        """The start of one container of the server; the port is where it listens."""
        started = self._command(container, {self.recipe.server_key: key} if self.recipe.server_key else {})
        return Launch(
            argv=started.argv,
            env=started.env,
            secret_env=started.secret_env,
            cwd=self.scratch,
            host=self.host,
            port=port,
            served_model=self.request.repo,
            stop=started.stop,
        )

    def client(self, key: str, token: str, node: Node | None) -> tuple[Command, Command]:
        """How the image's Python and its `vllm` start as the benchmark client; arguments are added at the end.

        It runs on `node` where it has one of its own.
        """
        resolved = self.resolved(0)
        self.exchange.mkdir(parents=True, exist_ok=True)
        paths = (WORKER, self.dataset_path, self.model_dir)
        mounts = (*(Mount(str(path), str(path), read_only=True) for path in paths),)
        mounts = (*mounts, *(Mount(str(path), str(path)) for path in dict.fromkeys((self.scratch, self.exchange))))
        python = client_container(
            self.recipe,
            resolved.container,
            version=self.request.deployment["version"],
            name=f"{resolved.container.name}-client",
            mounts=mounts,
        )
        program = self.recipe.client(self.request.deployment["version"]).command[0]
        secrets = {self.recipe.client_key: key} if self.recipe.client_key else {}
        both = []
        for container in (python, replace(python, entrypoint=program)):
            started = self._command(container, secrets)
            if node:
                start = client_start(self.request.platform_settings, node, str(self.scratch))
                started = replace(started, argv=(*start, *started.argv))
            both.append(replace(started, env={**started.env, TOKEN_VARIABLE: token, "PYTHONPATH": ""}))
        return both[0], both[1]

    def _command(self, container: Container, secrets: dict[str, str]) -> Command:
        return command(
            container,
            self.request.platform_settings["runtime"],
            self.image,
            secrets,
            scratch=self.scratch,
            grace_s=self.request.settings["stop_grace_s"],
        )

    def resolved(self, port: int) -> Resolved:
        """The server's container on this node."""
        request = self.request
        place = self.place or Place(rank=0, head_address="", node_address="", node_interface="", cluster_port=0)
        deployment = request.deployment
        settings = request.platform_settings
        cache = self.scratch / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        return resolve(
            self.recipe,
            accelerator=settings["accelerator"]["kind"],
            version=deployment["version"],
            platform_name=request.platform,
            model_path=self.model_dir,
            served_name=request.repo,
            host=self.host,
            port=port,
            cache_dir=cache,
            files_dir=self.scratch / "files",
            name=_container_name(request, self.place),
            device=settings["accelerator"]["name"],
            site=Site(**request.site),
            deployment_args=deployment["args"],
            deployment_env=deployment["env"],
            deployment_reason=deployment["reason"],
            nodes=deployment["nodes"],
            tensor_parallel=deployment["tensor_parallel"],
            pipeline_parallel=deployment["pipeline_parallel"],
            node_rank=place.rank,
            head_address=place.head_address,
            node_address=place.node_address,
            node_interface=place.node_interface,
            cluster_port=str(place.cluster_port),
        )


def prepare(request: SweepRequest) -> Deployed:
    """The deployment on this node, after a look at everything that was staged for it.

    Raises:
        BerthError: a receipt does not belong to the definition of the run, or what it names is not there.
    """
    model = _receipt(request.model_receipt)
    image = _receipt(request.image_receipt)
    dataset = _receipt(request.dataset_receipt)
    _same_model(request, model)
    wanted = request.definition["image"]["digest"]
    if wanted and image["digest"] != wanted:
        raise BerthError(
            f"{request.image_receipt}: the staged image has digest {image['digest']}, but the run is defined with "
            f"{wanted}. Delete this receipt, so that the image is staged again."
        )
    model_dir = Path(model["dest"]).absolute()
    dataset_path = (Path(request.dataset_receipt).parent / dataset["path"]).absolute()
    for path, receipt in ((model_dir, request.model_receipt), (dataset_path, request.dataset_receipt)):
        if not path.exists():
            raise BerthError(f"{path} is not there, although {receipt} says so. Delete the receipt, and run again.")
    scratch = Path(request.platform_settings["scratch_dir"]).expanduser().absolute() / "berth" / request.id.key
    scratch.mkdir(parents=True, exist_ok=True)
    logs = Path(request.results) / "logs" / "server" / request.id.key
    logs.mkdir(parents=True, exist_ok=True)
    return Deployed(request, load_recipe(Path(request.recipe_file)), image, model_dir, dataset_path, scratch, logs)


def _receipt(path: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: no readable receipt ({error}). Delete it, so that it is made again.") from None
    return value


def _same_model(request: SweepRequest, receipt: dict[str, Any]) -> None:
    wanted, source = request.definition["model"], receipt["source"]
    if "generated" in wanted:
        shape = source.get("shape", {})
        same = all(shape.get(key) == value for key, value in wanted["generated"].items())
    else:
        same = source.get("revision") == wanted["revision"]
    if not same or source["repo"] != wanted["repo"]:
        told = source.get("revision") or source.get("shape")
        raise BerthError(
            f"{request.model_receipt}: the staged model is {source['repo']} at {told}, but the run is defined with "
            f"{wanted}. Delete this receipt, so that the model is staged again."
        )


def _container_name(request: SweepRequest, place: Place | None) -> str:
    job = job_id() or str(os.getpid())
    node = f"-node{place.rank}" if place else ""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"berth-{request.experiment}-run{request.run}-{job}{node}")
