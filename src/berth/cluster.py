"""A Ray cluster under a server: its containers on each node, and who has joined it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.recipe import fill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.container import Container
    from berth.recipe import MultiNode

# What the recipe's `check` prints for each living node of the cluster.
NODE_LINE = "node "


@dataclass(frozen=True)
class RayContainers:
    """What runs on the first node, on every other node, and what is asked inside the first for who has joined."""

    head: Container
    worker: Container
    check: Container


class ClusterIncomplete(BerthError):  # noqa: N818  # What happened.
    """A cluster that not all nodes have joined in time: how many of how many, and which are missing."""

    def __init__(self, joined: Sequence[str], nodes: Mapping[str, str], waited_s: float) -> None:
        missing = [f"{name} ({address})" for name, address in nodes.items() if address not in joined]
        self.cause = (
            f"{len(nodes) - len(missing)} of {len(nodes)} nodes joined the Ray cluster within {waited_s:.0f} s. "
            f"Missing: {', '.join(missing)}."
        )
        self.remedy = (
            "Read the log of each missing node (server.nodeN.log). If it says nothing, see whether the nodes reach "
            "each other at these addresses on every port; server.interface in the platform's file chooses the network."
        )
        super().__init__(f"{self.cause}\nWhat to do: {self.remedy}")


def ray_containers(way: MultiNode, server: Container, values: Mapping[str, str], where: str) -> RayContainers:
    """The containers of a cluster for a server's: the same image, environment and mounts, with the recipe's commands.

    `values` has head_address, node_address and cluster_port; `where` names the recipe in an error.
    """

    def running(words: Sequence[str]) -> Container:
        program, *args = (fill(word, values, where) for word in words)
        return replace(server, entrypoint=program, args=tuple(args))

    return RayContainers(running(way.head), running(way.worker), running(way.check))


def inside_argv(container: Container, runtime: str, podman: Sequence[str]) -> list[str]:
    """The command of a container inside the one of the same name that keeps the cluster; none where it is a host's own.

    `podman` is Podman with its global options.

    Apptainer's containers and plain processes share the host, so that one beside the cluster is in it.
    """
    return [*podman, "exec", container.name, container.entrypoint, *container.args] if runtime == "podman" else []


def joined_of(printed: str) -> list[str]:
    """Addresses of the living nodes, from what the recipe's check prints."""
    return sorted(set(re.findall(rf"^{NODE_LINE}(\S+)$", printed, re.MULTILINE)))
