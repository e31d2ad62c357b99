"""A recipe: one containerised service described once for every site. berth.recipes reads it, berth.resolve uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Template
from typing import TYPE_CHECKING, Any, Literal

from berth._schema import nearest
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.diagnose import KnownFailure
    from berth.flags import Flag, Span

AcceleratorKind = Literal["cuda", "rocm", "cpu"]

# What every deployment gives; ${file_NAME} and the recipe's inputs come on top.
STANDARD_VALUES = frozenset(
    {
        "cluster_port",
        "head_address",
        "host",
        "model",
        "node_address",
        "node_interface",
        "node_rank",
        "nodes",
        "pipeline_parallel",
        "port",
        "served_name",
        "tensor_parallel",
    }
)


@dataclass(frozen=True)
class Setting:
    """A value and why it is so. None removes what an earlier layer set."""

    value: Any
    reason: str
    omit_when: str | None = None


@dataclass(frozen=True)
class Layer:
    """Settings of one origin, such as "version 0.9.1"."""

    args: dict[str, Setting] = field(default_factory=dict)
    env: dict[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """A container image by reference and, where known, digest; or an environment that a lock pins.

    Of an environment, `package` is the one that the lock is named after and `size_bytes` what it takes when installed.
    """

    kind: Literal["container", "environment"]
    reference: str = ""
    digest: str = ""
    lock: str = ""
    package: str = ""
    size_bytes: int = 0


@dataclass(frozen=True)
class ServiceVersion:
    """The images of one version, by kind of accelerator, and what it deviates in."""

    images: dict[AcceleratorKind, Image]
    layer: Layer
    accelerators: dict[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectations:
    """What a service expects of the place where it runs; paths are those inside the image."""

    user: Literal["root", "any"]
    network: Literal["host"]
    ipc: Literal["host", "private"]
    accelerator: bool
    workdir: str
    cache_dir: str
    cache_env: dict[str, str]
    cache_kept: tuple[str, ...] = ()
    models_dir: str = ""
    shm_gib: int | None = None


@dataclass(frozen=True)
class Ready:
    """HTTP paths that tell whether the service answers."""

    health: str
    models: str
    completion: str
    metrics: str = ""


@dataclass(frozen=True)
class PrefixCache:
    """How a service's cache of prompts is kept from going from point to point, in mode clean.

    `flag` switches it; false is off. `reset` is the HTTP path of a POST that empties it, which the service has where
    the variable `reset_env` is 1; "" where there is none.
    """

    flag: str
    reset: str = ""
    reset_env: str = ""


@dataclass(frozen=True)
class Client:
    """How the benchmark client of the image is started, in the versions of `span`."""

    span: Span
    python: str
    command: tuple[str, ...]
    backend_flag: str
    needs_devices: tuple[str, ...] = ()
    reason: str = ""
    # What makes it send the lines of a JSONL file as they are; empty where the version cannot.
    jsonl_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drain:
    """The flag that gives requests in flight time after TERM, in whole seconds, in the versions of `span`."""

    span: Span
    flag: str
    reason: str


@dataclass(frozen=True)
class MultiNode:
    """How one server spans several nodes, in the versions of `span`. The three commands are those of a Ray cluster."""

    span: Span
    kind: Literal["ray", "native"]
    layer: Layer
    worker_layer: Layer
    head: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    check: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file that is written before the start: its absolute path inside the image, and its content as a YAML object."""

    target: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One service."""

    name: str
    file: str
    description: str
    entrypoint: str
    arguments: tuple[str, ...]
    expects: Expectations
    layer: Layer
    versions: dict[str, ServiceVersion]
    flags: tuple[Flag, ...]
    ready: Ready
    accelerators: dict[str, Layer]
    modes: dict[str, Layer]
    devices: dict[str, Layer]
    flag_notes: dict[str, str]
    inputs: dict[str, str]
    files: dict[str, File]
    clients: tuple[Client, ...]
    multi_nodes: tuple[MultiNode, ...]
    failures: tuple[KnownFailure, ...]
    server_key: str = ""
    client_key: str = ""
    further_secrets: dict[str, str] = field(default_factory=dict)
    drains: tuple[Drain, ...] = ()
    prefix_cache: PrefixCache | None = None

    def version(self, name: str) -> ServiceVersion:
        """One version.

        Raises:
            BerthError: the recipe does not have it.
        """
        if name not in self.versions:
            known = list(self.versions)
            raise BerthError(
                f'{self.file}: there is no version "{name}".{nearest(name, known)} Known: {", ".join(known)}. '
                "Add it under `versions`, or use one of these."
            )
        return self.versions[name]

    def image(self, version: str, accelerator: AcceleratorKind) -> Image:
        """The image of a version for a kind of accelerator.

        Raises:
            BerthError: the recipe has no such version, or no image of it for this accelerator.
        """
        images = self.version(version).images
        if accelerator not in images:
            raise BerthError(
                f'{self.file}: versions.{version}.images: there is none for "{accelerator}". '
                f"It has: {', '.join(images)}. Add the image, or use a version that has one."
            )
        return images[accelerator]

    def client(self, version: str) -> Client:
        """How the benchmark client of a version is started.

        Raises:
            BerthError: the recipe has no client for it.
        """
        for client in self.clients:
            if client.span.has(version):
                return client
        raise BerthError(f"{self.file}: client: there is none for version {version}. Add one under `client`.")

    def drain(self, version: str) -> Drain | None:
        """The flag by which a version is told how long requests in flight may take; None where it needs none."""
        return next((drain for drain in self.drains if drain.span.has(version)), None)

    def check_inputs(self, given: Mapping[str, str], where: str) -> None:
        """Do nothing if exactly the recipe's inputs are given; `where` is the key that holds them.

        Raises:
            BerthError: one is missing, or one is given that the recipe does not have.
        """
        for name in given:
            if name not in self.inputs:
                hint = nearest(name, list(self.inputs))
                known = ", ".join(self.inputs) or "none"
                raise BerthError(
                    f'{where}: recipe {self.name} has no input "{name}".{hint} It has: {known}. Correct or remove it.'
                )
        for name in self.inputs:
            if name not in given:
                raise BerthError(f'{where}: the input "{name}" is missing: {self.inputs[name]}')

    def multi_node(self, version: str) -> MultiNode:
        """How one server of a version spans several nodes.

        Raises:
            BerthError: the recipe says that it cannot.
        """
        for way in self.multi_nodes:
            if way.span.has(version):
                return way
        raise BerthError(f"{self.file}: version {version} cannot span several nodes. Use one node.")


def fill(text: str, values: Mapping[str, str], where: str) -> str:
    """A text with every ${name} replaced; $$ stands for one dollar sign.

    Raises:
        BerthError: a name without a value.
    """
    try:
        return Template(text).substitute(values)
    except KeyError as error:
        name = str(error.args[0])
        raise BerthError(
            f"{where}: ${{{name}}} in {text!r} has no value.{nearest(name, sorted(values))} "
            f"Known here: {', '.join(sorted(values))}."
        ) from None
    except ValueError:
        raise BerthError(f"{where}: {text!r} has a lone dollar sign. Write ${{name}}, or $$ for the sign.") from None
