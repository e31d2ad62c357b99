"""The files of `render`: what would run, readable, and fit to be run by hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from berth import helm
from berth._render_client import client_scripts
from berth._render_kubernetes import VALUES, kubernetes_files
from berth._render_nodes import node_scripts
from berth._render_server import server_script
from berth._render_settings import settings_page
from berth._render_stage import stage_script
from berth.fsio import write_text
from berth.kubernetes import chart_digest, release_name

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    comes from, and values.json has the spec in full. Secrets are names of variables everywhere. For Kubernetes
    values.yaml, install.sh and uninstall.sh stand in the place of server.sh and client.sh.

    Raises:
        BerthError: the deployment's image does not suit the platform's runtime.
    """
    if rendering.platform.kubernetes:
        texts = kubernetes_files(rendering, warnings_of(rendering))
        # With its digest, because another chart makes other manifests of the same values.
        texts["values.json"] = _json(_values(rendering) | {"chart_sha256": chart_digest(rendering.platform.kubernetes)})
        return texts
    texts = {"server.sh": server_script(rendering)} if rendering.deployment.nodes == 1 else node_scripts(rendering)
    texts |= client_scripts(rendering)
    texts["stage.sh"] = stage_script(rendering)
    texts["settings.md"] = settings_page(rendering, warnings_of(rendering))
    texts["values.json"] = _json(_values(rendering))
    texts |= {file.path.relative_to(rendering.folder).as_posix(): file.text for file in rendering.server.files}
    return texts


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


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
                "request_rates" if use.by_rate else "concurrency": [float(r) if use.by_rate else r for r in use.levels],
                # The id of a definition without a commit is not the one that its points will have.
                "spec": None if rendering.unpinned else use.definition.id,
                "definition": use.definition.full,
            }
            for use in rendering.uses
        },
    }


def manifests_argv(rendering: Rendering) -> list[str]:
    """The command that prints the manifests of a deployment; empty where it has none or helm is not on PATH."""
    settings = rendering.platform.kubernetes
    if settings is None or not helm.is_installed():
        return []
    release = release_name(rendering.deployment.name)
    return helm.template_argv(settings, rendering.root, release, str(rendering.folder / VALUES))


def write_rendered(
    folder: Path, texts: dict[str, str], warnings: tuple[str, ...], manifests: Sequence[str] = ()
) -> None:
    """Write the files of one deployment: scripts executable, files of a recipe for their owner alone.

    `manifests` is the command that prints what Helm makes of its values.

    Raises:
        BerthError: Helm refuses the values.
    """
    for name, text in texts.items():
        mode = 0o755 if name.endswith(".sh") else 0o600 if name.startswith("files/") else 0o644
        write_text(folder / name, text, mode=mode)
    if manifests:
        write_text(folder / "manifests.yaml", helm.rendered(list(manifests)))
    elif VALUES in texts:
        logger.warning(
            "%s: no manifests.yaml, because helm is not on PATH (%s); the rest is whole", folder.name, helm.INSTALL
        )
    for warning in warnings:
        logger.warning("%s: %s", folder.name, warning)
    logger.info("rendered %s: %s", folder, ", ".join(sorted(texts)))


def tell_rendered(folders: list[str], left_out: list[str]) -> None:
    """Say where to read, and what was left out."""
    for why in left_out:
        logger.warning("%s", why)
    for folder in folders:
        run = "install.sh installs it" if (Path(folder) / VALUES).exists() else "server.sh and client.sh run it"
        logger.info("%s: settings.md says what it is, %s", folder, run)
    if not folders and not left_out:
        logger.warning("nothing to render: no selected experiment uses a deployment on this platform")
