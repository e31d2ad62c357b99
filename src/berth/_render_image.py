"""The steps of stage.sh that bring the image: as mirror_image, stage_image and the loading on each node do it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from berth import _render_parts as parts
from berth.container import render_shell
from berth.references import Reference, local_name
from berth.registry import Access, on_this_machine, option_words, site_access
from berth.shelltext import comment, quote, variable
from berth.sif import apptainer_options

if TYPE_CHECKING:
    from pathlib import Path

    from berth.rendering import Rendering

_CERTS, _IMAGE = variable("CERTS"), variable("IMAGE")
_PARTIAL = "Under another name first: what breaks off leaves no image that looks whole."


def image_steps(rendering: Rendering) -> list[parts.Step]:
    """The steps, in their order."""
    container, runtime, path = rendering.server.container, rendering.platform.runtime, rendering.image_path
    if container.kind == "environment":
        version = rendering.deployment.version
        receipt = rendering.results / "images" / rendering.platform.name / f"{rendering.recipe.name}-{version}.json"
        body = comment(f"Built from src/berth/locks/{container.image}, every package at one version.")
        return [("image", f"the environment into {path}", body + parts.by_workflow(rendering, receipt))]
    steps = _Steps(rendering)
    told = [steps.mirror()] if rendering.platform.registry else []
    if runtime == "kubernetes":
        # Its nodes pull by themselves.
        return told
    if runtime == "apptainer":
        return [*told, steps.sif(path)]
    if rendering.platform.queue is None:
        return [*told, steps.pull()]
    return [*told, steps.archive(path), steps.load(path)]


class _Steps:
    """What one image needs, by the platform's registry and runtime."""

    def __init__(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self._podman = parts.podman(rendering)
        self._digest = rendering.server.container.digest
        self._source = Reference.parse(rendering.server.container.image)
        self._source_access = Access("", tls_verify=not on_this_machine(self._source.host))
        site = rendering.platform.registry
        self._place = self._source.moved_to(site.host, site.prefix) if site else self._source
        self._access = site_access(asdict(site), rendering.platform.name) if site else self._source_access

    def mirror(self) -> parts.Step:
        source = f"docker://{self._source.at(self._digest)}"
        argv = ["skopeo", "copy", "--preserve-digests", *option_words(self._source_access, "--src-")]
        argv += [*option_words(self._access, "--dest-", _CERTS), source, f"docker://{self._place}"]
        return ("mirror", f"where there is internet: the image into {self._place}", self._certs() + _one(argv))

    def sif(self, path: Path) -> parts.Step:
        partial = _partial(path)
        argv = ["apptainer", "build", "--force", *apptainer_options(self._access)]
        argv += [str(partial), f"docker://{self._place.at(self._digest)}"]
        trusted = f"export SSL_CERT_FILE={quote(self._access.ca_file)}\n" if self._access.ca_file else ""
        body = parts.apptainer_folders(self._rendering) + _folder(path) + comment(_PARTIAL) + trusted
        body += _one(argv) + _one(["mv", str(partial), str(path)])
        return ("image", f"once per cluster: {path}", body)

    def archive(self, path: Path) -> parts.Step:
        partial = _partial(path)
        argv = ["skopeo", "copy", "--preserve-digests", *option_words(self._access, "--src-", _CERTS)]
        argv += [f"docker://{self._place.at(self._digest)}", f"dir:{partial}"]
        body = _folder(path) + comment(_PARTIAL) + _one(["rm", "-rf", str(partial), str(path)])
        body += self._certs() + _one(argv) + _one(["mv", str(partial), str(path)])
        return ("image", f"once per cluster: {path}", body)

    def load(self, path: Path) -> parts.Step:
        body = parts.without_session() + self._bring([*self._podman, "pull", "--quiet", f"dir:{path}"])
        return ("load", "on each node of the job: from there into the storage of Podman", body)

    def pull(self) -> parts.Step:
        place = self._place.at(self._digest)
        argv = [*self._podman, "pull", "--quiet", *option_words(self._access, certs=_CERTS), place]
        body = parts.without_session() + self._certs() + self._bring(argv)
        return ("image", "into the storage of Podman", body)

    def _bring(self, pull: list[str]) -> str:
        """The pull, and the name by which the server's command finds the image."""
        name = local_name(self._source.name, self._digest) if self._digest else str(self._source)
        return f"IMAGE=$({_one(pull).rstrip()})\n" + _one([*self._podman, "tag", _IMAGE, name])

    def _certs(self) -> str:
        """The site's CA in a folder of its own, as skopeo and Podman want it."""
        if not self._access.ca_file:
            return ""
        copied = shlex.join(["cp", self._access.ca_file])
        return f'CERTS=$(mktemp -d)\n{copied} "${{CERTS}}/ca.crt"\n'


def _one(argv: list[str]) -> str:
    return render_shell(argv, quote) if len(argv) > 4 else " ".join(map(quote, argv)) + "\n"


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _folder(path: Path) -> str:
    return f"mkdir -p {quote(str(path.parent))}\n"
