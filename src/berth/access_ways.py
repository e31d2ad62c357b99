"""The ways into a served deployment, as people and `access`'s own probe take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from berth import tunnel

if TYPE_CHECKING:
    from berth.access_target import Target


@dataclass(frozen=True)
class Way:
    """One way in. `base_url` ends in /v1; `ca_file` is "" where the system's CAs do. `whose` is a deployment or all."""

    kind: Literal["direct", "forward", "nginx", "route", "tunnel"]
    whose: str
    base_url: str
    ca_file: str = ""


def ways(target: Target) -> list[Way]:
    """Every way in that is configured or known now, the one for most people first."""
    found = []
    if nginx := target.platform.access.nginx:
        found.append(Way("nginx", target.name, nginx.base_url(target.name), nginx.ca_file))
    found += [
        Way("route", member.name, f"{place.url.rstrip('/')}/v1", _trusted(target, member.name))
        for member in target.members
        if (place := member.service.kubernetes) and place.url
    ]
    if has_tunnel(target) and any(tunnel.reached(member.service) for member in target.members):
        found.append(Way("tunnel", target.name, f"http://127.0.0.1:{local_port(target)}/v1"))
    found += [
        Way("direct", member.name, f"http://{tunnel.reached(member.service).replace(' ', ':')}/v1")
        for member in target.members
        if tunnel.reached(member.service)
    ]
    found += [
        Way("forward", member.name, f"http://127.0.0.1:{local_port(target)}/v1")
        for member in target.members
        if member.service.kubernetes
    ]
    return found


def has_tunnel(target: Target) -> bool:
    """Whether a tunnel leads to it: to one server, and not to a router, which is elsewhere."""
    on_nodes = any(member.service.kubernetes is None for member in target.members)
    return target.platform.access.login is not None and on_nodes and not target.needs_router


def local_port(target: Target) -> int:
    """The port of a person's own machine that tunnels and port-forwards use unless told otherwise."""
    return target.platform.ports[0]


def _trusted(target: Target, name: str) -> str:
    network = next(member.platform.network for member in target.members if member.name == name)
    return network.ca_bundle if network else ""
