"""Which node a server over several nodes died of. Pure: what was heard from the nodes in, the one to name out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class NodeState:
    """What a sweep has heard from the agent of one node; times are those of time.monotonic()."""

    name: str
    heard: float
    prepared: dict[str, Any] | None = None
    started: dict[str, Any] | None = None
    died: dict[str, Any] | None = None
    died_at: float = 0.0
    ended: bool = False
    gone: bool = False
    pong: int = -1
    listening: tuple[str, ...] = ()
    moved: set[str] = field(default_factory=set)


def blame(states: Sequence[NodeState], silent: Sequence[int]) -> int | None:
    """The rank of the node that died first, as far as that can be told; None where none did.

    `silent` are the ranks that do not answer. One that is lost without a word comes before all that still tell how
    they ended: they end because the lost one no longer talks to them. Then one whose process was ended by a signal,
    because that comes from outside; then whichever told first.
    """
    lost = [rank for rank, state in enumerate(states) if state.died is None and (state.gone or rank in silent)]
    if lost:
        return lost[0]
    told = [(not state.died["signalled"], state.died_at, rank) for rank, state in enumerate(states) if state.died]
    return min(told)[2] if told else None
