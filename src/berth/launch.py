"""One deployment on this node: what was staged for it, and how its server and its client start."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from berth import _bench_worker, _client_watch
from berth._client_launch import LocalFiles
from berth.bench import settings_of
from berth.config import Network
from berth.container import Container, Mount
from berth.container_image import ensure_loaded, load_first
from berth.decide import Site
from berth.errors import BerthError
from berth.fsio import write_text
from berth.gpus import Share, share_of, shares_node
from berth.holder import job_id
from berth.image_history import require_same_image
from berth.network import at_site, check_certificates, client_env
from berth.nodecheck import check_node
from berth.nodes import Node, Place, client_start, job_nodes, scheduler_environment
from berth.processes import mark_of
from berth.provenance import custody_of, same_source
from berth.ready import Checks
from berth.recipes import load_recipe
from berth.resolve import Resolved, client_container, resolve
from berth.runtime import Command, Host, command
from berth.runtimefailures import runtime_failures
from berth.serve import Launch
from berth.sockets import free_port
from berth.startcache import StartCache
from berth.trial import SCRIPT, try_container

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth._client_launch import ResultFiles
    from berth.bench import BenchSettings
    from berth.clienttool import ClientTool
    from berth.diagnose import KnownFailure
    from berth.nodemodel import Copied
    from berth.recipe import Recipe
    from berth.sweep import SweepRequest

# What a client is told beyond its server's environment: the server is never behind a proxy.
CLIENT_ENV = {"no_proxy": "*", "NO_PROXY": "*", "PYTHONUNBUFFERED": "1"}

WORKER = Path(_bench_worker.__file__).resolve()
# What the worker finds beside itself.
WATCH = Path(_client_watch.__file__).resolve()


@dataclass(frozen=True)
class Deployed:
    """A deployment with its staged model, image and dataset, and the folders of one run on this node."""

    request: SweepRequest
    on: Host
    recipe: Recipe
    image: dict[str, Any]
    model_dir: Path
    dataset_path: Path
    scratch: Path
    logs: Path
    # Which node of a server over several this is; None in a sweep, which is none of them.
    place: Place | None = None
    # The digests of what is served and asked, as records hold them.
    custody: Mapping[str, Any] = field(default_factory=dict)
    # What copied the model to this node's own disk, where the platform asks for that.
    copied: Copied | None = None

    @property
    def known_failures(self) -> tuple[KnownFailure, ...]:
        """The tables of failures of the container runtime and of the recipe."""
        return (*runtime_failures(self.on.runtime), *self.recipe.failures)

    @property
    def checks(self) -> Checks:
        """How the recipe's service tells that it is ready."""
        ready = self.recipe.ready
        return Checks(ready.health, ready.models, ready.completion, keyed=bool(self.recipe.server_key))

    @property
    def cache(self) -> Path:
        """Where the server caches; a folder of its run."""
        return self.scratch / "cache"

    @property
    def start_cache(self) -> StartCache:
        """What servers of this image leave to later ones on this node."""
        service = f"{self.recipe.name}-{self.request.deployment['version']}"
        scratch_dir = Path(self.request.platform_settings["scratch_dir"]).expanduser().absolute()
        return StartCache.of(scratch_dir, service, self.image["digest"], self.recipe.expects.cache_kept)

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
        return job_nodes(self.request.platform_settings, count) if self.spread else ()

    @property
    def spread(self) -> bool:
        """Whether the job has more than one node, so that agents start the server."""
        return bool(self.request.deployment["nodes"] + self.request.deployment["client_nodes"] > 1)

    @property
    def worker(self) -> Path:
        """The warm worker, where the client runs."""
        return WORKER

    @property
    def files(self) -> ResultFiles:
        """The client's results, where it runs."""
        return LocalFiles()

    def new_key(self) -> str:
        """An API key for the next server. Nobody else knows it, and it dies with that server."""
        return secrets.token_urlsafe(32)

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

    def check_node(self, token: str) -> None:
        """Return when this node can run the server: nothing is missing, and its container starts and reads the model.

        Raises:
            BerthError: cause and remedy; nothing was started that still runs.
        """
        resolved = self.resolved(self.request.platform_settings["ports"][0], token)
        container = resolved.container
        check_node(self.on, container, self.model_dir, platform=self.request.platform)
        # The trial runs the Python that the recipe names for its client; a service without one is tried by its start.
        if self.on.runtime == "process" or not self.recipe.clients:
            return
        self._write_files(resolved)
        model = next((mount.target for mount in container.mounts if mount.source == str(self.model_dir)), "/")
        tried = replace(
            container,
            name=f"{container.name}-trial",
            entrypoint=self.recipe.client(self.request.deployment["version"]).python,
            args=("-c", SCRIPT, model, container.expects.cache_dir),
        )
        launch = self._launch(self._command(tried, self._server_secrets(""), token), 0)
        try_container(
            launch, log_path=self.logs / "container.log", token=token, known_failures=runtime_failures(self.on.runtime)
        )

    def launch(self, port: int, key: str, token: str) -> Launch:
        """The server's start on a port; the files that the recipe declares are written."""
        resolved = self.resolved(port, token)
        self._write_files(resolved)
        return self.launch_of(resolved.container, port, key, token)

    def launch_of(self, container: Container, port: int, key: str, token: str) -> Launch:
        """The start of one container of the server; the port is where it listens."""
        return self._launch(self._command(container, self._server_secrets(key), token), port)

    def _write_files(self, resolved: Resolved) -> None:
        for file in resolved.files:
            write_text(file.path, file.text, mode=0o600)

    def _server_secrets(self, key: str) -> dict[str, str]:
        return ({self.recipe.server_key: key} if self.recipe.server_key else {}) | further_secrets(
            self.recipe, os.environ
        )

    def _launch(self, started: Command, port: int) -> Launch:
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

    def client(self, key: str, token: str, node: Node | None = None) -> tuple[Command, Command]:
        """How the image's Python and its `vllm` start as the benchmark client; arguments are added at the end.

        It runs on `node` where it has one of its own.
        """
        resolved = self.resolved(0, token)
        self.exchange.mkdir(parents=True, exist_ok=True)
        paths = (WORKER, WATCH, self.dataset_path, self.model_dir)
        mounts = (*(Mount(str(path), str(path), read_only=True) for path in paths),)
        mounts = (*mounts, *(Mount(str(path), str(path)) for path in dict.fromkeys((self.scratch, self.exchange))))
        python = client_container(
            self.recipe,
            resolved.container,
            version=self.request.deployment["version"],
            name=f"{resolved.container.name}-client",
            mounts=mounts,
        )
        python = replace(python, env={**python.env, **CLIENT_ENV})
        program = replace(python, entrypoint=self.recipe.client(self.request.deployment["version"]).command[0])
        hidden = {self.recipe.client_key: key} if self.recipe.client_key else {}
        started = [self._command(each, hidden, token, role="client") for each in (python, program)]
        first, second = [self._on_node(each, node) for each in started] if node else started
        return first, second

    def settings(self, base_url: str, served_model: str = "") -> BenchSettings:
        """What the benchmark asks of the server at an address."""
        request = self.request
        return settings_of(
            request.benchmark,
            base_url=base_url,
            served_model=served_model or request.repo,
            tokenizer=self.model_dir,
            dataset_path=self.dataset_path,
            client=self.recipe.client(request.deployment["version"]),
            dataset=request.definition["benchmark"]["dataset"],
        )

    def tool(self, tool: ClientTool, key_variable: str, key: str, token: str, node: Node | None = None) -> Command:
        """How another benchmark client starts in its own image; arguments are added at the end.

        Its key is in `key_variable`. It runs on `node` where it has one of its own.
        """
        receipt = self.request.tools[tool.name]["receipt"]
        image = read_receipt(receipt)
        server = self.resolved(0, token).container
        inside = server.kind == "container"
        env = {name: value for name, value in {**client_env(server.env), **CLIENT_ENV, **tool.env}.items() if value}
        paths = (self.model_dir, self.exchange, self.scratch)
        mounts = tuple(Mount(str(path), str(path), read_only=path == self.model_dir) for path in dict.fromkeys(paths))
        container = replace(
            server,
            name=f"{server.name}-{tool.name}",
            image=image["reference"],
            digest=image["digest"] if inside else "",
            entrypoint=tool.program,
            args=(),
            # It writes its caches at home, and its image's home may be another user's.
            env={**env, "HOME": str(self.scratch)} if inside else env,
            expects=replace(server.expects, workdir="/"),
            accelerator="none",
            secret_env=(key_variable,),
            mounts=mounts if inside else (),
            device_flags=(),
        )
        started = self._command(container, {key_variable: key}, token, role="client", image=image)
        return self._on_node(started, node, image, receipt) if node else started

    def _on_node(
        self, started: Command, node: Node, image: Mapping[str, Any] | None = None, receipt: str = ""
    ) -> Command:
        names = [*started.env, *started.secret_env]
        start = client_start(self.request.platform_settings, node, str(self.scratch), names)
        settings = self.request.platform_settings
        load = load_first(
            image or self.image, receipt or self.request.image_receipt, settings["scratch_dir"], self.on.podman
        )
        return replace(
            started,
            argv=(*start, *load, *started.argv),
            env={**scheduler_environment(os.environ), **started.env},
            stop=tuple((*start, *each) for each in started.stop),
        )

    def _command(
        self,
        container: Container,
        hidden: dict[str, str],
        token: str,
        role: Literal["server", "client"] = "server",
        image: Mapping[str, Any] | None = None,
    ) -> Command:
        return command(
            container,
            self.on,
            image or self.image,
            hidden,
            scratch=self.scratch,
            grace_s=self.request.settings["stop_grace_s"],
            token=token,
            role=role,
        )

    def resolved(self, port: int, token: str) -> Resolved:
        """The server's container on this node."""
        request = self.request
        place = self.place or Place(rank=0, head_address="", node_address="", node_interface="", cluster_port=0)
        deployment = request.deployment
        settings = request.platform_settings
        accelerator = settings["accelerator"]
        site = at_site(Site(**request.site), Network(**settings["network"]))
        ranks = deployment["tensor_parallel"] * deployment["pipeline_parallel"]
        share = Share()
        if shares_node(ranks, deployment["nodes"], accelerator["per_node"]):
            share = share_of(settings["runtime"], accelerator["kind"], os.environ)
        self.cache.mkdir(parents=True, exist_ok=True)
        return resolve(
            self.recipe,
            accelerator=accelerator["kind"],
            version=deployment["version"],
            platform_name=request.platform,
            model_path=self.model_dir,
            served_name=request.repo,
            host=self.host,
            port=port,
            cache_dir=self.cache,
            files_dir=self.scratch / "files",
            name=_container_name(request, token),
            device=accelerator["name"],
            site=replace(site, common_env={**site.common_env, **share.env}),
            device_flags=share.podman_flags,
            mode=request.benchmark["mode"],
            deployment_args=deployment["args"],
            deployment_env=deployment["env"],
            deployment_reason=deployment["reason"],
            inputs=deployment["inputs"],
            nodes=deployment["nodes"],
            tensor_parallel=deployment["tensor_parallel"],
            pipeline_parallel=deployment["pipeline_parallel"],
            node_rank=place.rank,
            head_address=place.head_address,
            node_address=place.node_address,
            node_interface=place.node_interface,
            cluster_port=str(place.cluster_port),
        )


def prepare(request: SweepRequest, host: Host | None = None) -> Deployed:
    """The deployment on this node, after a look at everything that was staged for it; `host` is asked for where None.

    Raises:
        BerthError: a receipt does not belong to the definition of the run, or what it names is not there.
    """
    model = read_receipt(request.model_receipt)
    image = read_receipt(request.image_receipt)
    require_same_model(request, model)
    wanted = request.definition["image"]["digest"]
    if wanted and wanted not in (image["digest"], image.get("index_digest")):
        raise BerthError(
            f"{request.image_receipt}: the staged image has digest {image['digest']}, but the run is defined with "
            f"{wanted}. Delete this receipt, so that the image is staged again."
        )
    network = Network(**request.platform_settings["network"])
    check_certificates(network.ca_bundle, f"config/platforms/{request.platform}.yaml")
    require_same_image(Path(request.results), request.id, image["digest"])
    model_dir = Path(model["dest"]).absolute()
    _require_there(model_dir, request.model_receipt)
    dataset: dict[str, Any] = {}
    dataset_path = Path()
    if request.dataset_receipt:
        dataset = read_receipt(request.dataset_receipt)
        dataset_path = Path(request.dataset_receipt).parent / dataset["path"]
        _require_there(dataset_path, request.dataset_receipt)
    scratch_dir = Path(request.platform_settings["scratch_dir"]).expanduser().absolute()
    scratch = scratch_dir / "berth" / request.id.key
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BerthError(
            f"config/platforms/{request.platform}.yaml: paths.scratch: {scratch} cannot be made on "
            f"{socket.gethostname()}: {error.strerror}. On a disk that users share, put "
            "$USER into the path, so that it is a folder of your own."
        ) from None
    host = host or Host.here(request.platform_settings, request.platform)
    ensure_loaded(
        image,
        receipt_path=request.image_receipt,
        scratch_dir=scratch_dir,
        env=host.environ,
        program=host.podman,
    )
    for tool in () if request.deployment["client_nodes"] else request.tools.values():
        ensure_loaded(
            read_receipt(tool["receipt"]),
            receipt_path=tool["receipt"],
            scratch_dir=scratch_dir,
            env=host.environ,
            program=host.podman,
        )
    logs = Path(request.logs) if request.logs else Path(request.results) / "logs" / "server" / request.id.key
    logs.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(Path(request.recipe_file))
    custody = custody_of(request.model_receipt, model, dataset, model_dir)
    deployed = Deployed(
        request, host, recipe, image, model_dir, dataset_path.absolute(), scratch, logs, custody=custody
    )
    deployed.start_cache.seed(deployed.cache)
    return deployed


def _require_there(path: Path, receipt: str) -> None:
    if not path.exists():
        raise BerthError(f"{path} is not there, although {receipt} says so. Delete the receipt, and run again.")


def further_secrets(recipe: Recipe, environ: Mapping[str, str]) -> dict[str, str]:
    """The values of a recipe's other secrets, which its users export.

    Raises:
        BerthError: one is not set.
    """
    for name, what in recipe.further_secrets.items():
        if not environ.get(name):
            raise BerthError(f"{recipe.file}: secrets.further: the variable {name} is not set. Export it: {what}")
    return {name: environ[name] for name in recipe.further_secrets}


def read_receipt(path: str) -> dict[str, Any]:
    """What a receipt says.

    Raises:
        BerthError: it is not there, or damaged.
    """
    try:
        value: dict[str, Any] = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: no readable receipt ({error}). Delete it, so that it is made again.") from None
    return value


def require_same_model(request: SweepRequest, receipt: dict[str, Any]) -> None:
    """Return when a staged model is the one that the run is defined with.

    Raises:
        BerthError: it is another one.
    """
    wanted, source = request.definition["model"], receipt["source"]
    if not same_source(wanted, source):
        told = source.get("revision") or source.get("shape")
        raise BerthError(
            f"{request.model_receipt}: the staged model is {source['repo']} at {told}, but the run is defined with "
            f"{wanted}. Delete this receipt, so that the model is staged again."
        )


def _container_name(request: SweepRequest, token: str) -> str:
    # The job for people, and of the token what makes the name unlike that of any other sweep on the node.
    job = job_id() or str(os.getpid())
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"berth-{request.experiment}-run{request.run}-{job}-{mark_of(token)}")
