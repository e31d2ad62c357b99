"""A container as a command of this node: argv, environment, secrets apart, and what stops it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.container import (
    Container,
    Runtime,
    apptainer_argv,
    apptainer_env,
    apptainer_places,
    podman_argv,
    process_argv,
    process_env,
    stop_argvs,
    without_login_session,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Command:
    """`env` and `secret_env` together are the whole environment of `argv`; `stop` are the commands that end it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, str]
    stop: tuple[tuple[str, ...], ...] = ()


def command(
    container: Container,
    runtime: Runtime,
    image: Mapping[str, Any],
    secrets: Mapping[str, str],
    *,
    scratch: Path,
    grace_s: float,
) -> Command:
    """How a container is started on this node.

    `image` is the receipt of its staged image, whose `path` is the environment or the SIF. `secrets` has the value of
    each of the container's secret names. `scratch` is on the node's disk; Apptainer's own folders are made there.
    """
    if runtime == "process":
        env = process_env(container, image["path"], os.environ)
        return Command(tuple(process_argv(container, image["path"])), env, dict(secrets))
    outside = without_login_session(os.environ)
    if runtime == "podman":
        stop = stop_argvs(container, runtime, grace_s=grace_s)
        return Command(tuple(podman_argv(container)), outside, dict(secrets), stop)
    places = apptainer_places(scratch)
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    inside = apptainer_env(container, {})
    hidden = {name: value for name, value in apptainer_env(container, secrets).items() if name not in inside}
    return Command(tuple(apptainer_argv(container, image["path"])), {**outside, **places, **inside}, hidden)
