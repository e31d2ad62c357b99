"""How a push or a stage moves its bytes: sizes, numbers and limits, with values that suit the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.engine import EngineName

MIB = 1024 * 1024
# Large enough that a request costs nothing, small enough that little is lost with a connection.
_PART_BYTES = 32 * MIB


def default_connections() -> int:
    """Four for each core that this process may use: 8 on a small machine, 32 on a large one."""
    return min(32, max(8, 4 * len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Tuning:
    """Memory: half a MiB for each connection besides the program, whatever the size of files and parts.

    Args:
        part_bytes: of a request; files with more than 9,000 such parts get larger ones, because S3 takes 10,000.
        connections: at the same time, over all files.
        max_bandwidth_bytes_s: of all together; None is no limit.
        engine: "wire" (see wire.py), "boto3", or "auto": the first, and the second where that does not work.
        durable: whether a staged file waits for the disk before it gets its name.
        abandoned_after_s: age at which an upload that nobody goes on with is given up.
    """

    part_bytes: int = _PART_BYTES
    connections: int = field(default_factory=default_connections)
    max_bandwidth_bytes_s: int | None = None
    engine: EngineName = "auto"
    durable: bool = True
    abandoned_after_s: float = 24 * 3600


def tuning_of(store: Mapping[str, Any]) -> Tuning:
    """What a platform's `store` asks for; `store` has fields of config.Store, those that are not set may lack."""
    asked: dict[str, Any] = {name: store[name] for name in ("connections", "engine") if store.get(name)}
    asked["durable"] = store.get("durable", True)
    if store.get("part_mib"):
        asked["part_bytes"] = store["part_mib"] * MIB
    if store.get("max_bandwidth_mib_s"):
        asked["max_bandwidth_bytes_s"] = int(store["max_bandwidth_mib_s"] * MIB)
    return Tuning(**asked)
