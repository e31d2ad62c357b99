"""The files of `render`: what would run, readable, and fit to be run by hand."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from berth._render_client import client_scripts
from berth._render_nodes import node_scripts
from berth._render_server import server_script
from berth._render_settings import settings_page
from berth._render_stage import stage_script
from berth.fsio import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from berth.rendering import Rendering

SCHEMA = 1

logger = logging.getLogger(__name__)


def warnings_of(rendering: Rendering) -> tuple[str, ...]:
    """What a person must know before running any of it."""
    if not rendering.unpinned:
        return ()
    model = rendering.model
    told = (
        f"{model.name} has no revision, so that nothing can be measured with it and its spec has no id yet. Put in "
        f"the commit that `git ls-remote https://huggingface.co/{model.repo} HEAD` prints."
    )
    return (told,)


def render_files(rendering: Rendering) -> dict[str, str]:
    """The files of one deployment by name; the same configuration gives the same bytes.

    server.sh starts the server (node.sh beside it, where it spans several nodes), client.sh measures one point,
    stage.sh brings model and image there, files/ holds what the recipe declares, settings.md says where each setting
    comes from, and values.json has the spec in full. Secrets are names of variables everywhere.

    Raises:
        BerthError: the deployment's image does not suit the platform's runtime.
    """
    texts = {"server.sh": server_script(rendering)} if rendering.deployment.nodes == 1 else node_scripts(rendering)
    texts |= client_scripts(rendering)
    texts["stage.sh"] = stage_script(rendering)
    texts["settings.md"] = settings_page(rendering, warnings_of(rendering))
    texts["values.json"] = json.dumps(_values(rendering), indent=2, ensure_ascii=False) + "\n"
    texts |= {file.path.relative_to(rendering.folder).as_posix(): file.text for file in rendering.server.files}
    return texts


def _values(rendering: Rendering) -> dict[str, object]:
    deployment = rendering.deployment
    return {
        "schema": SCHEMA,
        "deployment": deployment.name,
        "platform": rendering.platform.name,
        "host": rendering.platform.host,
        "port": rendering.port,
        "secrets": list(rendering.server.container.secret_env),
        "warnings": list(warnings_of(rendering)),
        "experiments": {
            use.experiment.name: {
                "runs": use.experiment.runs[deployment.name],
                "concurrency": list(use.benchmark["concurrency"]),
                # The id of a definition without a commit is not the one that its points will have.
                "spec": None if rendering.unpinned else use.definition.id,
                "definition": use.definition.full,
            }
            for use in rendering.uses
        },
    }


def write_rendered(folder: Path, texts: dict[str, str], warnings: tuple[str, ...]) -> None:
    """Write the files of one deployment: scripts executable, files of a recipe for their owner alone."""
    for name, text in texts.items():
        mode = 0o755 if name.endswith(".sh") else 0o600 if name.startswith("files/") else 0o644
        write_text(folder / name, text, mode=mode)
    for warning in warnings:
        logger.warning("%s: %s", folder.name, warning)
    logger.info("rendered %s: %s", folder, ", ".join(sorted(texts)))


def not_rendered(rendering: Rendering) -> str | None:
    """Why a deployment has no scripts; None where it has."""
    if "kubernetes" in (rendering.platform.scheduler, rendering.platform.runtime):
        return (
            f"{rendering.deployment.name} is not rendered: {rendering.platform.name} runs on Kubernetes, where a "
            "service is Helm values and no script, and those come from another command."
        )
    return None


def tell_rendered(folders: list[str], left_out: list[str]) -> None:
    """Say where to read, and what was left out."""
    for why in left_out:
        logger.warning("%s", why)
    for folder in folders:
        logger.info("%s: settings.md says what it is, server.sh and client.sh run it", folder)
    if not folders and not left_out:
        logger.warning("nothing to render: no selected experiment uses a deployment on this platform")
