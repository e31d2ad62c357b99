"""Where the server of a served deployment listens: no wider than those need who reach it."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from berth.nodes import Node, own_address

if TYPE_CHECKING:
    from berth.sweep import SweepRequest

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # A comparison.


def at_interface(request: SweepRequest) -> SweepRequest:
    """The request of a server that listens at `server.interface` alone, where `server.host` says every address.

    Without an interface it stays as it is: Berth does not know at which address of the node clients arrive. So does a
    server of several nodes, whose first node is chosen later.

    Raises:
        BerthError: this node has no such address.
    """
    settings = request.platform_settings
    if settings["host"] not in _EVERYWHERE or not settings["interface"] or request.deployment["nodes"] > 1:
        return request
    address, _ = own_address(Node(socket.gethostname(), ""), settings["interface"])
    return replace(request, platform_settings=settings | {"host": address})
