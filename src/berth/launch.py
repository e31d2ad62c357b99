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
from berth.container_image import ensure_loaded
from berth.decide import Site
from berth.errors import BerthError
from berth.fsio import write_text
from berth.holder import job_id
from berth.image_history import require_same_image
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
        """What the server prints, all servers of the run one after the other."""
        return self.logs / "server.log"

    @property
    def client_log(self) -> Path:
        """What the benchmark client prints."""
        return self.logs / "client.log"

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
        resolved = self._resolved(port)
        for file in resolved.files:
            write_text(file.path, file.text, mode=0o600)
        started = self._command(resolved.container, {self.recipe.server_key: key} if self.recipe.server_key else {})
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

    def client(self, port: int, key: str, token: str) -> tuple[Command, Command]:
        """How the image's Python and its `vllm` start as the benchmark client; arguments are added at the end."""
        resolved = self._resolved(port)
        paths = (WORKER, self.dataset_path, self.model_dir)
        mounts = (*(Mount(str(path), str(path), read_only=True) for path in paths),)
        mounts = (*mounts, Mount(str(self.scratch), str(self.scratch)))
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

    def _resolved(self, port: int) -> Resolved:
        request = self.request
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
            name=_container_name(request),
            device=settings["accelerator"]["name"],
            site=Site(**request.site),
            deployment_args=deployment["args"],
            deployment_env=deployment["env"],
            deployment_reason=deployment["reason"],
            nodes=deployment["nodes"],
            tensor_parallel=deployment["tensor_parallel"],
            pipeline_parallel=deployment["pipeline_parallel"],
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
    if wanted and wanted not in (image["digest"], image.get("index_digest")):
        raise BerthError(
            f"{request.image_receipt}: the staged image has digest {image['digest']}, but the run is defined with "
            f"{wanted}. Delete this receipt, so that the image is staged again."
        )
    require_same_image(Path(request.results), request.id, image["digest"])
    model_dir = Path(model["dest"]).absolute()
    dataset_path = (Path(request.dataset_receipt).parent / dataset["path"]).absolute()
    for path, receipt in ((model_dir, request.model_receipt), (dataset_path, request.dataset_receipt)):
        if not path.exists():
            raise BerthError(f"{path} is not there, although {receipt} says so. Delete the receipt, and run again.")
    scratch_dir = request.platform_settings["scratch_dir"]
    ensure_loaded(image, receipt_path=request.image_receipt, scratch_dir=scratch_dir)
    scratch = Path(scratch_dir).expanduser().absolute() / "berth" / request.id.key
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


def _container_name(request: SweepRequest) -> str:
    job = job_id() or str(os.getpid())
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"berth-{request.experiment}-run{request.run}-{job}")
