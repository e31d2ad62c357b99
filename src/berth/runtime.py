"""A container as a command of this node: argv, environment, secrets apart, and what stops it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from berth.container import (
    INSTANCE_LABEL,
    Container,
    Runtime,
    apptainer_argv,
    apptainer_env,
    apptainer_places,
    podman_argv,
    podman_program,
    podman_remove,
    podman_stop,
    process_argv,
    process_env,
    without_login_session,
)
from berth.modules import with_modules
from berth.processes import TOKEN_KEEPERS, TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Command:
    """`env` and `secret_env` together are the whole environment of `argv`; `stop` are the commands that end it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, str]
    stop: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Host:
    """The container runtime of this node, as the platform sets it.

    `environ` is what its commands run in: modules loaded, nothing of a login session. `podman` is Podman with its
    global options, () under another runtime.
    """

    runtime: Runtime
    environ: Mapping[str, str]
    options: tuple[str, ...] = ()
    podman: tuple[str, ...] = ()

    @classmethod
    def here(cls, settings: Mapping[str, Any], platform: str, environ: Mapping[str, str] | None = None) -> Host:
        """From `platform_settings` of a sweep's request; `environ` is this process's where None.

        Raises:
            BerthError: a module of the platform cannot be loaded here.
        """
        runtime = settings["runtime"]
        given = os.environ if environ is None else environ
        where = f"config/platforms/{platform}.yaml: modules"
        return cls(
            runtime=runtime,
            environ=without_login_session(with_modules(settings["modules"], given, where=where)),
            options=tuple(settings["options"]),
            podman=podman_program(settings["storage"]) if runtime == "podman" else (),
        )


def command(
    container: Container,
    host: Host,
    image: Mapping[str, Any],
    secrets: Mapping[str, str],
    *,
    scratch: Path,
    grace_s: float,
    token: str,
    role: Literal["server", "client"] = "server",
) -> Command:
    """How a container is started on this node for the server with this token.

    `image` is the receipt of its staged image. `secrets` has the value of each of the container's secret names.
    `scratch` is on the node's disk; Apptainer's own folders are made there. A client reads commands from its standard
    input, takes the place of an earlier one of its name, and is ended at once.
    """
    instance = {TOKEN_VARIABLE: token}
    if host.runtime == "process":
        env = process_env(container, image["path"], host.environ)
        argv = process_argv(container, image["path"])
        return Command(tuple(argv), {**env, **TOKEN_KEEPERS, **instance}, dict(secrets))
    # By name, as secrets are, so that the command is the same for every sweep. Processes inside are found by it.
    marked = replace(
        container, env={**container.env, **TOKEN_KEEPERS}, secret_env=(*container.secret_env, TOKEN_VARIABLE)
    )
    if host.runtime == "podman":
        # No user of the node has another container of this label and name: both hold the token.
        held = [f"--label={INSTANCE_LABEL}={token}", *(["--replace", "--interactive"] if role == "client" else [])]
        # By the digest that was staged, and never from a registry while a server is waited for.
        staged = replace(marked, digest=image["digest"] or marked.digest)
        argv = podman_argv(staged, program=host.podman, options=["--pull=never", *held, *host.options])
        stop = (
            podman_stop(host.podman, container.name, grace_s)
            if role == "server"
            else (podman_remove(host.podman, container.name),)
        )
        return Command(tuple(argv), {**host.environ, **instance}, dict(secrets), stop)
    places = apptainer_places(scratch)
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    inside = apptainer_env(marked, instance)
    hidden = {name: value for name, value in apptainer_env(container, secrets).items() if name not in inside}
    argv = apptainer_argv(marked, image["path"], options=host.options)
    return Command(tuple(argv), {**host.environ, **places, **inside, **instance}, hidden)
