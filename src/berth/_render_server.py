"""server.sh: the server of one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth import _render_parts as parts
from berth.shelltext import comment, quote, script

if TYPE_CHECKING:
    from berth.rendering import Rendering


def server_script(rendering: Rendering, head: str = "") -> str:
    """The script that starts the server in the foreground, and takes it down when it ends.

    `head` is its first comment where that of a deployment would not be true.
    """
    container = rendering.server.container
    return script(
        head or _head(rendering),
        parts.beginning(rendering),
        parts.secrets(rendering, container),
        parts.environment(rendering, container),
        parts.staged(rendering) + parts.devices_there(rendering, container),
        parts.job_devices(rendering, container),
        working_folder(rendering),
        parts.container_name(rendering) + parts.stop_trap(rendering, container),
        _start(rendering, parts.command(rendering, container)),
    )


def _head(rendering: Rendering) -> str:
    lines = [
        title(rendering),
        "",
        (
            "The command that a job of Berth starts on its node. Stage model and image before it (stage.sh). "
            "settings.md says where each setting comes from, and why."
        ),
    ]
    allocation = parts.allocation(rendering)
    if allocation:
        lines += ["", "Run it on a node of the cluster:", f"    {allocation}"]
    return comment(*lines, "", *ready_lines(rendering))


def title(rendering: Rendering) -> str:
    """One line that says what is served where."""
    deployment = rendering.deployment
    return (
        f"{deployment.name}: {rendering.recipe.name} {deployment.version} serves {rendering.model.repo} on "
        f"{rendering.platform.name}."
    )


def ready_lines(rendering: Rendering) -> list[str]:
    """How to see that it is ready."""
    ready = rendering.recipe.ready
    return [
        (
            f"It is ready when http://{rendering.near_host}:{rendering.port}{ready.health} answers 200 and a request "
            f"to {ready.completion} returns a token."
        ),
    ]


def working_folder(rendering: Rendering) -> str:
    """Makes the scratch folder and goes there."""
    cache = quote(str(rendering.scratch / "cache"))
    return f"mkdir -p {cache}\ncd {quote(str(rendering.scratch))}\n"


def _start(rendering: Rendering, command: str) -> str:
    # Bash acts on a signal only after the command in its foreground has ended, and at once while it waits.
    if rendering.platform.runtime == "podman":
        return command.rstrip("\n") + " &\nwait $!\n"
    return "exec " + command
