"""Which container image is brought where: what the plan tells the rules of images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.container import podman_program
from berth.references import file_stem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.config import Platform


@dataclass(frozen=True)
class ImageRequest:
    """What is staged and where to: plain values, so that Snakemake can hand them to its job.

    `digest` is the recipe's, "" where it has none. `shared` says that jobs run on several nodes, which share
    `images_dir`. `scratch_dir` is on a local disk. `site` has the fields of config.Registry, None where the platform
    has none. `podman` is Podman with its global options, `modules` are those of the site that are loaded first.
    """

    reference: str
    digest: str
    recipe: str
    platform: str
    runtime: str
    shared: bool
    images_dir: str
    scratch_dir: str
    site: dict[str, Any] | None = None
    podman: tuple[str, ...] = ("podman",)
    modules: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        """The folder of a local disk in which this image is unpacked and its lock lies."""
        return work_folder(self.scratch_dir, self.reference, self.digest)


def request_of(image: Mapping[str, Any], recipe: str, platform: Platform) -> dict[str, Any]:
    """The fields of ImageRequest for an image as spec.Definition has it; empty for an environment."""
    if image["kind"] != "container":
        return {}
    return {
        "reference": image["reference"],
        "digest": image["digest"] or "",
        "recipe": recipe,
        "platform": platform.name,
        "runtime": platform.runtime,
        "shared": platform.queue is not None,
        "images_dir": platform.images_dir,
        "scratch_dir": platform.scratch_dir,
        "podman": list(podman_program(platform.container.storage)),
        "modules": list(platform.modules),
        "site": asdict(platform.registry) if platform.registry else None,
    }


def work_folder(scratch_dir: str | Path, reference: str, digest: str) -> Path:
    """The folder of a local disk in which an image is unpacked; its lock lies beside it."""
    return Path(scratch_dir).expanduser().absolute() / "berth" / "images" / file_stem(reference, digest)
