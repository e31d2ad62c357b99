"""What people are to reach under one address: a served deployment, or several replicas or platforms together."""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from berth import services
from berth._schema import nearest
from berth.errors import BerthError
from berth.recipes import load_recipe

if TYPE_CHECKING:
    from berth.config import Config, Platform
    from berth.recipe import Recipe
    from berth.services import Service

# LiteLLM's own, on this machine's loopback: NGINX is before it.
ROUTER_PORT = 4000


@dataclass(frozen=True)
class Member:
    """One served deployment: its state, and what its recipe says of its server.

    `key_variable` is the environment variable of its API key, "" where it asks for none.
    """

    service: Service
    platform: Platform
    health_path: str
    key_variable: str

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.service.deployment


@dataclass(frozen=True)
class Target:
    """Served deployments that are reached together, seen from the platform at hand. All paths are absolute.

    `router` is the recipe of LiteLLM, which can stand before members that NGINX alone cannot stand before.
    """

    platform: Platform
    members: tuple[Member, ...]
    router: Recipe
    root: Path
    results: Path

    @property
    def name(self) -> str:
        """The name of its files: the deployment's, or those of several with + between them."""
        return "+".join(member.name for member in self.members)

    @property
    def slug(self) -> str:
        """The name where only letters, digits and underscores are allowed."""
        return "berth_" + re.sub(r"[^A-Za-z0-9]", "_", self.name)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.results / "access" / self.platform.name / self.name

    @property
    def run_dir(self) -> Path:
        """Where its NGINX keeps what lives as long as it: pid, logs, temporary files. A local disk, one per user."""
        scratch = Path(self.platform.scratch_dir).expanduser()
        scratch = scratch if scratch.is_absolute() else self.root / scratch
        return scratch / f"berth-nginx-{getpass.getuser()}" / self.name

    @property
    def first(self) -> Member:
        """The member that stands for all where they do not differ."""
        return self.members[0]

    @property
    def models(self) -> tuple[str, ...]:
        """The names that clients ask for, each once."""
        return tuple(dict.fromkeys(member.service.served_model for member in self.members))

    @cached_property
    def needs_router(self) -> str:
        """Why NGINX alone cannot stand before all members, "" where it can.

        It passes requests on as they are, to any member.
        """
        if len(self.members) == 1:
            return ""
        if len(self.models) > 1:
            return "they serve different models, and NGINX does not look into requests"
        if len({member.key_variable and services.key_in(Path(member.service.key_file)) for member in self.members}) > 1:
            return "they have different API keys, and NGINX passes a client's key on as it is"
        return ""

    @property
    def key_variable(self) -> str:
        """The environment variable of the key that clients send, "" where none is asked for."""
        return self.router.server_key if self.needs_router else self.first.key_variable

    @property
    def key_file(self) -> str:
        """The 0600 file with that key."""
        return self.router_key_file if self.needs_router else self.first.service.key_file

    @property
    def router_key_file(self) -> str:
        """The 0600 file with the key of LiteLLM, a key of its own."""
        return str(services.key_path(self.platform.name, self.name))

    @property
    def health_path(self) -> str:
        """Where whatever stands behind NGINX says that it is well."""
        return self.router.ready.health if self.needs_router else self.first.health_path


def target_of(config: Config, root: Path, wanted: str) -> Target:
    """The deployments that are named with commas in between, of any platform; each must have been served.

    Raises:
        BerthError: a name is missing, unknown or named twice, or was never served.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    results = root / config.results
    if not names:
        known = [service.deployment for service in services.read_all(results, config.platform)]
        raise BerthError(
            "deployment: access to which one? Name it: --config deployment=NAME, several as NAME,NAME. "
            f"Served on {config.platform}: {', '.join(known) or 'none'}."
        )
    if len(set(names)) != len(names):
        raise BerthError(f"deployment: {wanted}: a name stands twice. Name each once.")
    members = tuple(_member(config, root, results, name) for name in names)
    router = load_recipe(root / config.config_dir / "recipes" / "litellm.yaml")
    return Target(config.platforms[config.platform], members, router, root, results)


def _member(config: Config, root: Path, results: Path, name: str) -> Member:
    if name not in config.deployments:
        known = sorted(config.deployments)
        raise BerthError(
            f'deployment: there is no deployment "{name}" in config/config.yaml.{nearest(name, known)} '
            f"Known: {', '.join(known)}."
        )
    deployment = config.deployments[name]
    service = services.read(results, deployment.platform, name)
    if service is None:
        raise BerthError(
            f"{services.path_of(results, deployment.platform, name)}: {name} was never served. Serve it first: "
            f"snakemake --profile profiles/{deployment.platform} serve --config deployment={name}"
        )
    recipe = load_recipe(root / config.config_dir / "recipes" / f"{deployment.recipe}.yaml")
    return Member(service, config.platforms[deployment.platform], recipe.ready.health, recipe.server_key)
