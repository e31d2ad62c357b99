"""Container images onto a cluster: once, by digest, verified; and from there into what a node starts them from.

Apptainer runs a SIF on the shared file system. Podman runs from its storage on each node's disk: on a cluster every
node loads it from one folder on the shared file system, on a single machine it is pulled.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import filelocks, podman, registry
from berth.disk import human_bytes
from berth.errors import BerthError
from berth.fsio import write_json
from berth.image_archive import make_archive, whole_archive
from berth.image_request import work_folder
from berth.references import Reference, archive_name, sif_name
from berth.sif import build_sif, receipt_beside, whole_sif

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.image_request import ImageRequest
    from berth.registry import Access, Found

logger = logging.getLogger(__name__)

SCHEMA = 1

_PODMAN = ("podman",)


def stage_container(request: ImageRequest, receipt_path: Path, mirrored: Path | None = None) -> dict[str, Any]:
    """Bring an image onto the platform, or find it there, and write its receipt.

    Of two processes that want one image, one works and the other waits and finds it done. `mirrored` is the receipt
    of mirror_image; it is there where the platform has a registry of its own.

    Returns:
        The receipt: schema, kind ("container"), runtime, reference, digest (of the manifest for this machine),
        index_digest (of the list that it stands in, or ""), pulled_from, path (of the SIF, "" for Podman), archive (of
        the folder that nodes load, "" for none), sha256 (of the SIF, None for Podman), size_bytes (of the SIF, of the
        archive's blobs, or unpacked in Podman's storage), platform.

    Raises:
        BerthError: the digest changed; no room; a program is missing; or what the registry answered.
    """
    started = time.monotonic()
    stage = _Stage.of(request, mirrored)
    if request.runtime == "apptainer":
        receipt = stage.sif(Path(request.images_dir) / sif_name(request.reference, request.digest))
    elif request.shared:
        receipt = stage.archive(Path(request.images_dir) / archive_name(request.reference, request.digest))
    else:
        receipt = stage.pulled()
    write_json(receipt_path, receipt)
    logger.info("%s (%s) is staged, %.1f s", request.reference, receipt["digest"], time.monotonic() - started)
    return receipt


def ensure_loaded(
    receipt: Mapping[str, Any],
    *,
    receipt_path: str,
    scratch_dir: str | Path,
    env: Mapping[str, str] | None = None,
    program: Sequence[str] = _PODMAN,
) -> None:
    """Return when this node can start containers of a staged image; call it on every node of a job.

    A SIF is only looked at. Podman gets the image from the shared file system, once per node: of two jobs on a node
    one loads and the other waits. It then has it by its digest under the recipe's name and under the one it was pulled
    from. `env` is the environment in which Podman runs, None is this process's own without its login session;
    `program` is Podman with its global options. An environment needs nothing.

    Raises:
        BerthError: what the receipt names is gone or damaged, no room, or Podman is not on this node.
    """
    if receipt.get("kind") != "container":
        return
    node = os.uname().nodename
    again = f"Delete {receipt_path}, and run again, so that the image is staged again."
    if receipt["runtime"] == "apptainer":
        sif = Path(receipt["path"])
        if not sif.is_file() or sif.stat().st_size != receipt["size_bytes"]:
            raise BerthError(f"{sif} on {node} is not the image that was staged there. {again}")
        return
    storage = podman.Storage.at(work_folder(scratch_dir, receipt["reference"], receipt["digest"]), env, program)
    if storage.has(receipt):
        return
    name = receipt["pulled_from"]
    if not receipt["archive"]:
        raise BerthError(f"{name} is no longer in Podman's storage on {node}. {again}")
    with storage.locked(f"loading of {name}") as lock_fd:
        if storage.has(receipt):
            return
        archive, started = Path(receipt["archive"]), time.monotonic()
        damaged = BerthError(f"{archive} on {node} is not whole. {again}")
        if whole_archive(archive, checksums=False) is None:
            raise damaged
        try:
            storage.bring(f"dir:{archive}", receipt, registry.Access(key=receipt_path), lock_fd)
        except BerthError:
            # Read again only when something is wrong: an image is large, and Podman compares its digests anyway.
            if whole_archive(archive, checksums=True) is None:
                raise damaged from None
            raise
        logger.info("%s is loaded on %s, %.1f s", name, node, time.monotonic() - started)


def load_first(
    receipt: Mapping[str, Any], receipt_path: str, scratch_dir: str | Path, program: Sequence[str]
) -> tuple[str, ...]:
    """What goes before a command on another node so that the node has the image; nothing where it needs none.

    Berth and `receipt_path` are on a file system that both nodes have.
    """
    if receipt.get("runtime") != "podman":
        return ()
    words = [sys.executable, "-m", "berth.container_image", str(Path(receipt_path).absolute()), str(scratch_dir)]
    return ("sh", "-c", f'{shlex.join([*words, *program])} && exec "$@"', "load")


@dataclass(frozen=True)
class _Stage:
    """One staging: where the image is pulled from, and the digest that it must have ("" where none is known)."""

    request: ImageRequest
    place: Reference
    access: Access
    digest: str
    mirrored: bool

    @classmethod
    def of(cls, request: ImageRequest, mirrored: Path | None) -> _Stage:
        source = Reference.parse(request.reference)
        digest, place = request.digest, source
        if request.site is not None:
            place = source.moved_to(request.site["host"], request.site["prefix"])
        if mirrored is not None:
            digest = json.loads(mirrored.read_text())["digest"]
        access = registry.access_to(place.host, request.site, request.platform, request.recipe)
        return cls(request, place, access, digest, mirrored is not None)

    def sif(self, sif: Path) -> dict[str, Any]:
        """The receipt of the SIF, which is built unless it is there."""
        with filelocks.exclusive(sif.with_name(f".{sif.name}.lock"), f"building of {sif}") as lock_fd:
            kept = whole_sif(sif)
            if kept is not None and self._keeps(kept, sif):
                return {**kept, "path": str(sif)}
            found = self._found()
            logger.info("Building %s from %s (%s)", sif, self._source(found), human_bytes(found.size_bytes))
            built = build_sif(sif, self._source(found), found, self.access, work=self.request.work, lock_fd=lock_fd)
            receipt = self._receipt(found) | {"path": str(sif)} | built
            write_json(receipt_beside(sif), receipt)
            return receipt

    def archive(self, folder: Path) -> dict[str, Any]:
        """The receipt of the folder that nodes load into Podman, which is copied unless it is there."""
        with filelocks.exclusive(folder.with_name(f".{folder.name}.lock"), f"copying of {folder}"):
            kept = whole_archive(folder, checksums=True)
            if kept is not None and self._keeps(kept, folder):
                return {**kept, "archive": str(folder)}
            found = self._found()
            logger.info("Copying %s (%s) to %s", self._source(found), human_bytes(found.size_bytes), folder)
            receipt = self._receipt(found) | {"archive": str(folder)}
            make_archive(folder, self._source(found), found, self.access, receipt)
            return receipt

    def pulled(self) -> dict[str, Any]:
        """The receipt of an image in the storage of this node, where it is pulled unless it is there."""
        storage = podman.Storage.at(self.request.work, None, self.request.podman)
        with storage.locked(f"pulling of {self.request.reference}") as lock_fd:
            if self.digest:
                kept = self._receipt(registry.Found(self.digest, "", 0, ""))
                if storage.has(kept):
                    _, platform, size_bytes = podman.look(storage.program, kept["pulled_from"], storage.env)
                    return kept | {"platform": platform, "size_bytes": size_bytes}
            found = self._found()
            receipt = self._receipt(found)
            logger.info("Pulling %s (%s)", receipt["pulled_from"], human_bytes(found.size_bytes))
            storage.bring(receipt["pulled_from"], receipt, self.access, lock_fd)
            _, _, size_bytes = podman.look(storage.program, receipt["pulled_from"], storage.env)
            return receipt | {"size_bytes": size_bytes}

    def _found(self) -> Found:
        if self.mirrored:
            return registry.find(self.place, self.access, self.digest)
        return registry.find_pinned(self.place, self.access, self.digest)

    def _source(self, found: Found) -> str:
        return self.place.at(found.digest)

    def _receipt(self, found: Found) -> dict[str, Any]:
        index = found.index_digest or (self.request.digest if self.request.digest != found.digest else "")
        return {
            "schema": SCHEMA,
            "kind": "container",
            "runtime": self.request.runtime,
            "reference": self.request.reference,
            "digest": found.digest,
            "index_digest": index,
            "pulled_from": self._source(found),
            "path": "",
            "archive": "",
            "sha256": None,
            "size_bytes": found.size_bytes,
            "platform": found.platform,
        }

    def _keeps(self, kept: Mapping[str, Any], place: Path) -> bool:
        """Whether what is staged is the image that is wanted.

        Raises:
            BerthError: it is another image of this name, or the digest changed since.
        """
        if kept["reference"] != self.request.reference:
            raise BerthError(
                f"{place} is {kept['reference']}, and {self.request.reference} would have the same name there. Set "
                "another paths.images in the platform file, or write a digest into the recipe."
            )
        known = (kept["digest"], kept["index_digest"])
        now = self.digest or self._digest_now()
        if now and now not in known:
            raise BerthError(
                f"{self.access.key}: {self.place} is {now} now, and {place} was staged from {kept['digest']}: the "
                "digest changed. To go on with the image that is staged, write its digest into the recipe; to change "
                f"to the new one, write `digest: {now}` there (its points are another spec)."
            )
        logger.info("%s is there already", place)
        return True

    def _digest_now(self) -> str:
        """What the tag of an image without a digest means now; "" where the registry does not answer."""
        try:
            return registry.find(self.place, self.access).digest
        except (registry.RegistryDown, registry.ImageMissing) as error:
            logger.warning("taking the image that is staged: %s", error)
            return ""


def main(arguments: list[str]) -> int:
    """`python -m berth.container_image RECEIPT SCRATCH [PODMAN ...]`: ensure_loaded() on each node that srun reaches.

    PODMAN is Podman with its global options; its environment is this process's.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    receipt_path, scratch_dir, *program = arguments
    try:
        receipt = json.loads(Path(receipt_path).read_text())
        ensure_loaded(receipt, receipt_path=receipt_path, scratch_dir=scratch_dir, program=program or _PODMAN)
    except (BerthError, OSError, ValueError) as error:
        print(f"ERROR: {os.uname().nodename}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
