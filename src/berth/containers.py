"""Containers of Podman that belong to one server, found by the token in their label, and ended without exception.

Podman's containers are children of no process of the job: they outlive the command that started them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from berth.checkup import Answer, ask
from berth.container import INSTANCE_LABEL, podman_stop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

_PATIENCE_S = 60.0


def find_containers(podman: Sequence[str], token: str, environ: Mapping[str, str]) -> list[str]:
    """The names of the containers of the server with this token, running or not; none where `podman` is ().

    Those of its nodes, with the token TOKEN.RANK, are among them. Where Podman does not answer there are none to be
    found either, and a warning says so.
    """
    if not podman:
        return []
    shown = f'--format={{{{.Names}}}} {{{{index .Labels "{INSTANCE_LABEL}"}}}}'
    listing = ("ps", "--all", f"--filter=label={INSTANCE_LABEL}", shown)
    answer = ask(*podman, *listing, environ=environ, timeout_s=_PATIENCE_S)
    if not answer.good:
        logger.warning("Podman does not say which containers a sweep has left on this node: %s", answer.complaint)
        return []
    pairs = (line.split() for line in answer.out.splitlines())
    return [pair[0] for pair in pairs if len(pair) == 2 and (pair[1] == token or pair[1].startswith(f"{token}."))]


def end_containers(podman: Sequence[str], token: str, environ: Mapping[str, str], *, grace_s: float) -> list[str]:
    """End the containers of a server: ask, kill after `grace_s` seconds, remove. Returns their names."""
    names = find_containers(podman, token, environ)
    for name in names:
        for argv in podman_stop(podman, name, grace_s):
            tell_failed_stop(argv, ask(*argv, environ=environ, timeout_s=grace_s + _PATIENCE_S))
    return names


def tell_failed_stop(argv: Sequence[str], answer: Answer) -> None:
    """Log that a command which should end a container failed, unless it failed because there is none any more."""
    gone = "no such container" in answer.complaint or "can only kill running containers" in answer.complaint
    if not answer.good and not gone:
        logger.warning("%s: %s", " ".join(argv[:4]), answer.complaint)
