"""Which settings of a recipe hold for one deployment, and why.

Later layers win: recipe, version, accelerator, version on that accelerator, several nodes, mode, device, platform,
deployment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from berth._schema import nearest
from berth.errors import BerthError
from berth.flags import known_flag, spell
from berth.recipe import AcceleratorKind, Layer, Recipe, Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.container import Mount

MODES = ("paper", "clean")


@dataclass(frozen=True)
class Explanation:
    """One setting: `source` is the layer that decided it, `replaced` the layers whose value it replaced.

    `value` is None for a setting that was removed.
    """

    part: Literal["arg", "env"]
    name: str
    value: Any
    source: str
    reason: str
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """The settings that hold, before ports and paths are known: what a spec is made of."""

    version: str
    settings: tuple[tuple[Explanation, Setting], ...]

    @property
    def args(self) -> dict[str, Any]:
        """Flags with their values, ${...} unfilled, in the order of their names."""
        return self._part("arg")

    @property
    def env(self) -> dict[str, str]:
        """Environment, in the order of its names."""
        return self._part("env")

    @property
    def explanations(self) -> tuple[Explanation, ...]:
        """Where every setting comes from."""
        return tuple(explanation for explanation, _ in self.settings)

    def _part(self, part: str) -> dict[str, Any]:
        return {told.name: told.value for told, _ in self.settings if told.part == part and told.value is not None}


@dataclass(frozen=True)
class Site:
    """What a platform adds to every container: settings with one reason, environment such as proxies, and mounts."""

    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    reason: str = ""
    common_env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()


def decide(
    recipe: Recipe,
    *,
    accelerator: AcceleratorKind,
    version: str,
    platform_name: str,
    device: str = "",
    mode: str | None = None,
    site: Site | None = None,
    deployment_args: Mapping[str, Any] | None = None,
    deployment_env: Mapping[str, str | None] | None = None,
    deployment_reason: str = "",
    nodes: int = 1,
) -> Decision:
    """The settings of a deployment, each with its origin; null removes what an earlier layer set.

    `device` is the accelerator's name, such as MI300A. `mode` is "paper", "clean" or None.

    Raises:
        BerthError: no such version or mode, a flag that the version does not know, or a value that does not suit it.
    """
    if mode is not None and mode not in MODES:
        raise BerthError(f'mode: "{mode}" is not allowed.{nearest(mode, list(MODES))} Use one of: {", ".join(MODES)}.')
    site = site or Site()
    layers = [
        ("recipe", recipe.layer),
        (f"version {version}", recipe.version(version).layer),
        (f"accelerator {accelerator}", recipe.accelerators.get(accelerator, Layer())),
        (f"version {version} on {accelerator}", recipe.version(version).accelerators.get(accelerator, Layer())),
        (f"{nodes} nodes", recipe.multi_node(version).layer if nodes > 1 else Layer()),
        (f"mode {mode}", recipe.modes.get(mode or "", Layer())),
        (f"device {device}", recipe.devices.get(device, Layer())),
        (f"platform {platform_name}", _given(site.args, site.env, site.reason)),
        ("deployment", _given(deployment_args or {}, deployment_env or {}, deployment_reason)),
    ]
    settings = [*_stack(layers, "arg"), *_stack(layers, "env")]
    for told, _ in settings:
        where = f"{recipe.file}: {told.source}"
        if told.part == "env":
            _check_env(recipe, told, where)
        elif told.value is not None:
            spell(known_flag(recipe.flags, told.name, version, notes=recipe.flag_notes, where=where), told.value, where)
    return Decision(version, tuple(settings))


def _given(args: Mapping[str, Any], env: Mapping[str, str | None], reason: str) -> Layer:
    return Layer(*({name: Setting(value, reason) for name, value in part.items()} for part in (args, env)))


def _stack(layers: list[tuple[str, Layer]], part: Literal["arg", "env"]) -> list[tuple[Explanation, Setting]]:
    found: dict[str, tuple[Explanation, Setting]] = {}
    for source, layer in layers:
        for name, setting in (layer.args if part == "arg" else layer.env).items():
            before = found[name][0] if name in found else None
            replaced = (*before.replaced, before.source) if before else ()
            found[name] = (Explanation(part, name, setting.value, source, setting.reason, replaced), setting)
    return [found[name] for name in sorted(found)]


def _check_env(recipe: Recipe, told: Explanation, where: str) -> None:
    if told.name in {recipe.server_key, recipe.client_key, *recipe.further_secrets} - {""}:
        raise BerthError(
            f"{where}: env.{told.name}: this is a secret, and configuration is no place for its value. "
            "Remove it here; Berth passes it by name from the environment."
        )
    if told.value is not None and not isinstance(told.value, str):
        raise BerthError(f"{where}: env.{told.name}: {told.value!r} is not a text. Quote it.")
