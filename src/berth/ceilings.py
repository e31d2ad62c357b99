"""The measured ceilings of benchmark clients, and at which part of its own a point's client worked.

A client spends time on each request and on each token. Two measurements, of one token and of many per request, tell
both; a point's rates times these seconds are the part of the client's time that the point needs, 1 at its ceiling.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.reading import finite_number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Ceiling:
    """Seconds of a client per request and per generated token, and what it reached with one and with many tokens."""

    name: str
    version: str | None
    mode: str
    request_s: float
    token_s: float
    requests_per_s: float
    tokens_per_s: float
    measured: str

    def fraction(self, result: Mapping[str, Any]) -> float | None:
        """The part of its ceiling at which the client worked in a point; None where the point's rates are unknown."""
        requests, tokens = (finite_number(result.get(key)) for key in ("request_throughput", "output_throughput"))
        return None if requests is None or tokens is None else requests * self.request_s + tokens * self.token_s


def path_of(results: Path, platform: str) -> Path:
    """Where the ceilings of a platform's nodes are kept."""
    return results / "clients" / f"{platform}.json"


def fraction_of(
    results: Path, platform: str, node: str, client: Mapping[str, Any], result: Mapping[str, Any]
) -> float | None:
    """The part of its ceiling at which a client worked; None where none was measured for this client and version.

    It is the node's own ceiling, or the lowest of the platform's nodes where this one has none.
    """
    try:
        nodes = json.loads(path_of(results, platform).read_text())["nodes"]
        found = [nodes[node]] if node in nodes else list(nodes.values())
        known = [Ceiling(**each[client["name"]]) for each in found if client["name"] in each]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fractions = [
        each.fraction(result) for each in known if (each.version, each.mode) == (client["version"], client["mode"])
    ]
    return max((each for each in fractions if each is not None), default=None)
