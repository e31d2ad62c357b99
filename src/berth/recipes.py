"""Recipes read from their YAML files and checked: schema, patterns, templates and secrets."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, cast

from berth._schema import check, load_yaml
from berth.diagnose import KnownFailure
from berth.errors import BerthError
from berth.flags import Flag, Span
from berth.recipe import (
    STANDARD_VALUES,
    AcceleratorKind,
    Client,
    Drain,
    Expectations,
    File,
    Image,
    Layer,
    MultiNode,
    PrefixCache,
    Ready,
    Recipe,
    ServiceVersion,
    Setting,
    fill,
)

if TYPE_CHECKING:
    from pathlib import Path


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; its name is the file's.

    Raises:
        BerthError: names file, key, value, what is allowed and what to do.
    """
    # A plan asks for the same recipe once per deployment, and reading one takes longer than all else in a plan.
    try:
        state = path.stat()
    except OSError:
        return _read(path, 0, 0)
    return _read(path, state.st_mtime_ns, state.st_size)


@functools.cache
def _read(path: Path, _mtime_ns: int, _size: int) -> Recipe:
    raw = load_yaml(path)
    file = str(path)
    check(raw, "recipe", file)
    secrets = raw.get("secrets", {})
    recipe = Recipe(
        name=path.stem,
        file=file,
        description=raw["description"],
        entrypoint=raw["entrypoint"],
        arguments=tuple(raw["arguments"]),
        expects=_expectations(raw["expects"]),
        layer=_layer(raw),
        versions={name: _version(value) for name, value in raw["versions"].items()},
        flags=tuple(Flag(name, group["kind"], _span(group)) for group in raw["flags"] for name in group["names"]),
        ready=Ready(**raw["ready"]),
        accelerators={name: _layer(value) for name, value in raw.get("accelerators", {}).items()},
        modes={name: _layer(value) for name, value in raw.get("modes", {}).items()},
        devices={name: _layer(value) for name, value in raw.get("devices", {}).items()},
        flag_notes=dict(raw.get("flag_notes", {})),
        inputs=dict(raw.get("inputs", {})),
        files={name: File(**value) for name, value in raw.get("files", {}).items()},
        clients=tuple(_client(value) for value in raw.get("client", ())),
        multi_nodes=tuple(_multi_node(value) for value in raw.get("multi_node", ())),
        failures=tuple(KnownFailure(**value) for value in raw.get("failures", ())),
        server_key=secrets.get("server_key", ""),
        client_key=secrets.get("client_key", ""),
        further_secrets=dict(secrets.get("further", {})),
        prefix_cache=PrefixCache(**raw["prefix_cache"]) if "prefix_cache" in raw else None,
        drains=tuple(Drain(_span(value), value["flag"], value["reason"]) for value in raw.get("drain", ())),
    )
    _check_patterns(recipe)
    _check_templates(recipe, raw)
    _check_secrets(recipe)
    return recipe


def _span(raw: dict[str, Any]) -> Span:
    return Span(raw.get("since", ""), raw.get("until", ""))


def _layer(raw: dict[str, Any]) -> Layer:
    return Layer(*({name: Setting(**value) for name, value in raw.get(part, {}).items()} for part in ("args", "env")))


def _version(raw: dict[str, Any]) -> ServiceVersion:
    images = {cast("AcceleratorKind", kind): Image(**image) for kind, image in raw["images"].items()}
    accelerators = {name: _layer(value) for name, value in raw.get("accelerators", {}).items()}
    return ServiceVersion(images, _layer(raw), accelerators)


def _expectations(raw: dict[str, Any]) -> Expectations:
    rest = {key: value for key, value in raw.items() if key != "cache"}
    cache = raw["cache"]
    return Expectations(cache_dir=cache["dir"], cache_env=cache["env"], cache_kept=tuple(cache.get("kept", ())), **rest)


def _client(raw: dict[str, Any]) -> Client:
    devices = tuple(raw.get("needs_devices", ()))
    return Client(
        _span(raw),
        raw["python"],
        tuple(raw["command"]),
        raw["backend_flag"],
        devices,
        raw.get("reason", ""),
        tuple(raw.get("jsonl_args", ())),
    )


def _multi_node(raw: dict[str, Any]) -> MultiNode:
    commands = {part: tuple(raw.get(part, ())) for part in ("head", "worker", "check")}
    worker = _layer({"args": raw.get("worker_args", {})})
    return MultiNode(_span(raw), raw["kind"], _layer(raw), worker, **commands)


def _check_patterns(recipe: Recipe) -> None:
    for number, failure in enumerate(recipe.failures):
        try:
            re.compile(failure.pattern)
        except re.error as error:
            raise BerthError(
                f"{recipe.file}: failures.{number}.pattern: {failure.pattern!r} is no regular expression: {error}."
            ) from None


def _check_templates(recipe: Recipe, raw: dict[str, Any]) -> None:
    known = STANDARD_VALUES | set(recipe.inputs) | {f"file_{name}" for name in recipe.files}
    values = dict.fromkeys(known, "")
    for key in ("arguments", "args", "env", "versions", "accelerators", "modes", "devices", "files", "multi_node"):
        for text in _texts(raw.get(key)):
            fill(text, values, f"{recipe.file}: {key}")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        # A reason is prose for people.
        return [text for key, item in value.items() if key != "reason" for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def _check_secrets(recipe: Recipe) -> None:
    secret = {recipe.server_key, recipe.client_key, *recipe.further_secrets} - {""}
    layers = [recipe.layer, *recipe.accelerators.values(), *recipe.modes.values(), *recipe.devices.values()]
    for version in recipe.versions.values():
        layers += [version.layer, *version.accelerators.values()]
    for layer in [*layers, *(way.layer for way in recipe.multi_nodes)]:
        for name in sorted(secret & set(layer.env)):
            raise BerthError(
                f"{recipe.file}: env.{name}: a secret has no value in a recipe. Remove it; Berth passes it by name."
            )
