"""Messages between a sweep and its agents on the nodes, as lines of text through a launcher such as srun."""

from __future__ import annotations

import json
from typing import Any

_MARK = "BERTH"
# srun passes a task's output on in pieces of 1024 bytes, between which lines of other tasks may come.
_PIECE = 600


def encode(rank: int, message: dict[str, Any]) -> str:
    """The lines of one message of a node."""
    text = json.dumps(message)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return "".join(f"{_MARK} {rank} {len(pieces) - number} {piece}\n" for number, piece in enumerate(pieces, start=1))


class Decoder:
    """Puts the lines of all nodes together again; lines that are no message are passed over."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}

    def feed(self, line: str) -> tuple[int, dict[str, Any]] | None:
        """(rank, message) when this line completes one."""
        words = line.rstrip("\n").split(" ", 3)
        if len(words) != 4 or words[0] != _MARK or not (words[1] + words[2]).isdigit():
            return None
        rank, left = int(words[1]), int(words[2])
        self._open[rank] = self._open.get(rank, "") + words[3]
        if left:
            return None
        try:
            message = json.loads(self._open.pop(rank))
        except ValueError:
            return None
        return (rank, message) if isinstance(message, dict) else None
