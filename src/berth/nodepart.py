"""What one node of a server over several runs: the containers of the rendered node.sh, as commands of this node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from berth.cluster import inside_argv, ray_containers
from berth.fsio import write_text

if TYPE_CHECKING:
    from berth.container import Container
    from berth.launch import Deployed
    from berth.serve import Launch


@dataclass(frozen=True)
class Part:
    """The commands of one node. With Ray every node runs `cluster`, and the first asks `check` and runs `server` in it.

    Without Ray every node runs `server`.
    """

    server: Launch | None
    cluster: Launch | None = None
    check: Launch | None = None


def part_of(deployed: Deployed, port: int, key: str, token: str) -> Part:
    """The part of the node at `deployed.place`; the files that the recipe declares are written."""
    place = deployed.place
    if place is None:
        raise AssertionError("a part belongs to a node")
    deployment = deployed.request.deployment
    way = deployed.recipe.multi_node(deployment["version"]) if deployment["nodes"] > 1 else None
    if way is None or way.kind == "native":
        return Part(deployed.launch(port, key, token))
    resolved = deployed.resolved(port, token)
    for file in resolved.files:
        write_text(file.path, file.text, mode=0o600)
    values = {
        "head_address": place.head_address,
        "node_address": place.node_address,
        "cluster_port": str(place.cluster_port),
    }
    containers = ray_containers(way, resolved.container, values, deployed.recipe.file)
    if place.rank > 0:
        return Part(None, deployed.launch_of(containers.worker, place.cluster_port, key, token))
    return Part(
        _inside(deployed, resolved.container, port, key, token),
        deployed.launch_of(containers.head, place.cluster_port, key, token),
        _inside(deployed, containers.check, port, key, token),
    )


def _inside(deployed: Deployed, container: Container, port: int, key: str, token: str) -> Launch:
    launch = deployed.launch_of(container, port, key, token)
    argv = inside_argv(container, deployed.on.runtime, deployed.on.podman)
    return replace(launch, argv=tuple(argv), stop=()) if argv else launch
