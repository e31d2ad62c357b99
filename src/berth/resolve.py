"""The container that follows from a recipe, a deployment and a place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from berth.container import Container, Mount
from berth.decide import Decision, Explanation, Site, decide
from berth.flags import known_flag, spell
from berth.network import client_env, exempt
from berth.recipe import AcceleratorKind, Recipe, fill

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class WrittenFile:
    """A file that must be written, mode 0600, before the container starts."""

    path: Path
    text: str


@dataclass(frozen=True)
class Resolved:
    """A container, where each of its settings comes from, and the files that it needs."""

    container: Container
    decision: Decision
    files: tuple[WrittenFile, ...]

    @property
    def explanations(self) -> tuple[Explanation, ...]:
        """Where every setting comes from."""
        return self.decision.explanations


def resolve(
    recipe: Recipe,
    *,
    accelerator: AcceleratorKind,
    version: str,
    platform_name: str,
    model_path: Path,
    served_name: str,
    host: str,
    port: int,
    cache_dir: Path,
    files_dir: Path,
    name: str | None = None,
    device: str = "",
    mode: str | None = None,
    site: Site | None = None,
    deployment_args: Mapping[str, Any] | None = None,
    deployment_env: Mapping[str, str | None] | None = None,
    deployment_reason: str = "",
    inputs: Mapping[str, str] | None = None,
    nodes: int = 1,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    node_rank: int = 0,
    rank_word: str = "",
    head_address: str = "",
    node_address: str = "",
    node_interface: str = "",
    cluster_port: str = "",
    device_flags: tuple[str, ...] = (),
) -> Resolved:
    """The container of one node of a deployment.

    `model_path` is the model's folder on the host, `cache_dir` a writable folder on the host for everything that the
    service caches, `files_dir` a folder of the run for files that the recipe declares. An environment sees the host's
    own paths; a container sees them mounted where the recipe says. Nothing is written here. `rank_word` stands for the
    node's number in the command, where it is known only when the command runs.

    Raises:
        BerthError: as decide(), and for an input of the recipe that is missing or unknown.
    """
    decision = decide(
        recipe,
        accelerator=accelerator,
        version=version,
        platform_name=platform_name,
        device=device,
        mode=mode,
        site=site,
        deployment_args=deployment_args,
        deployment_env=deployment_env,
        deployment_reason=deployment_reason,
        nodes=nodes,
    )
    site = site or Site()
    recipe.check_inputs(inputs or {}, f"{recipe.file}: inputs")
    image = recipe.image(version, accelerator)
    inside = image.kind == "container"
    expects = recipe.expects
    values = {
        "model": served_name if inside else str(model_path),
        "served_name": served_name,
        "host": host,
        "port": str(port),
        "nodes": str(nodes),
        "tensor_parallel": str(tensor_parallel),
        "pipeline_parallel": str(pipeline_parallel),
        **(inputs or {}),
    }
    if nodes > 1:
        values |= {
            "node_rank": rank_word or str(node_rank),
            "head_address": head_address,
            "node_address": node_address,
            "node_interface": node_interface,
            "cluster_port": cluster_port,
        }
    files = {key: (files_dir / f"{key}.yaml", file) for key, file in recipe.files.items()}
    values |= {f"file_{key}": file.target if inside else str(path) for key, (path, file) in files.items()}

    mounts = [Mount(str(cache_dir), expects.cache_dir)]
    if expects.models_dir:
        mounts.insert(0, Mount(str(model_path), f"{expects.models_dir}/{served_name}", read_only=True))
    mounts += [Mount(str(path), file.target, read_only=True) for path, file in files.values()]
    if node_rank > 0:
        extra = recipe.multi_node(version).worker_layer.args
        told = [
            (Explanation("arg", key, item.value, f"node {node_rank}", item.reason), item) for key, item in extra.items()
        ]
        kept = [pair for pair in decision.settings if pair[0].name not in extra or pair[0].part == "env"]
        decision = replace(
            decision, settings=tuple(sorted([*kept, *told], key=lambda pair: (pair[0].part, pair[0].name)))
        )
    container = Container(
        name=name or f"berth-{recipe.name}",
        kind=image.kind,
        image=image.reference or image.lock,
        digest=image.digest,
        entrypoint=recipe.entrypoint,
        args=(
            *(fill(part, values, f"{recipe.file}: arguments") for part in recipe.arguments),
            *_flags(recipe, decision, values),
        ),
        env={
            **_site_env(site, decision, host, head_address, node_address),
            **_env(recipe, decision, values),
            **_cache_env(recipe, cache_dir, inside=inside),
        },
        expects=expects,
        accelerator=accelerator if expects.accelerator and inside and accelerator != "cpu" else "none",
        secret_env=tuple(filter(None, (recipe.server_key, *recipe.further_secrets))),
        mounts=(*mounts, *site.mounts) if inside else (),
        device_flags=device_flags,
    )
    written = tuple(
        WrittenFile(path, yaml.safe_dump(_filled(file.content, values, recipe.file), sort_keys=False))
        for path, file in files.values()
    )
    return Resolved(container, decision, written)


def client_container(
    recipe: Recipe, server: Container, *, version: str, name: str, mounts: tuple[Mount, ...] = ()
) -> Container:
    """The benchmark client in the server's image: its Python without arguments, offline, with the key by name.

    The caller adds the arguments. `mounts` are the dataset and whatever the client writes.

    Raises:
        BerthError: the recipe has no client for this version.
    """
    client = recipe.client(version)
    # What a node of several says of itself is not true of the client's.
    own = {name for way in recipe.multi_nodes if way.span.has(version) for name in way.layer.env}
    return replace(
        server,
        name=name,
        entrypoint=client.python,
        args=(),
        env=client_env({name: value for name, value in server.env.items() if name not in own}),
        accelerator=server.accelerator if server.accelerator in client.needs_devices else "none",
        secret_env=(recipe.client_key,) if recipe.client_key else (),
        mounts=(*server.mounts, *mounts) if server.kind == "container" else (),
    )


def _flags(recipe: Recipe, decision: Decision, values: Mapping[str, str]) -> list[str]:
    argv: list[str] = []
    for told, setting in decision.settings:
        if told.part != "arg" or told.value is None:
            continue
        where = f"{recipe.file}: {told.source}"
        flag = known_flag(recipe.flags, told.name, decision.version, notes=recipe.flag_notes, where=where)
        # Only a recipe's own text is a template: a user's JSON may hold dollar signs.
        literal = told.source == "deployment" or told.source.startswith("platform ")
        value = told.value if literal else _filled(told.value, values, where)
        if setting.omit_when is None or value != setting.omit_when:
            argv += spell(flag, value, where)
    return argv


def _site_env(site: Site, decision: Decision, *hosts: str) -> dict[str, str]:
    """What the site sets everywhere, without what a layer removed; no proxy stands before the server's own hosts."""
    removed = {told.name for told in decision.explanations if told.part == "env" and told.value is None}
    return {name: value for name, value in exempt(site.common_env, *hosts).items() if name not in removed}


def _env(recipe: Recipe, decision: Decision, values: Mapping[str, str]) -> dict[str, str]:
    env = {}
    for told, _ in decision.settings:
        if told.part == "env" and told.value is not None:
            literal = told.source == "deployment" or told.source.startswith("platform ")
            env[told.name] = told.value if literal else fill(told.value, values, f"{recipe.file}: {told.source}")
    return env


def _cache_env(recipe: Recipe, cache_dir: Path, *, inside: bool) -> dict[str, str]:
    root = PurePosixPath(recipe.expects.cache_dir) if inside else cache_dir
    places = {name: str(root / folder) for name, folder in sorted(recipe.expects.cache_env.items())}
    # A process would write into the home of whoever started it.
    return places if inside else {"HOME": str(cache_dir), **places}


def _filled(value: Any, values: Mapping[str, str], where: str) -> Any:
    if isinstance(value, str):
        return fill(value, values, where)
    if isinstance(value, dict):
        return {key: _filled(item, values, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values, where) for item in value]
    return value
