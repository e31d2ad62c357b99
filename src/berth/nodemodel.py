"""The model on the node's own disk: copied once per node, verified, held while it is served, and removed by need.

Two jobs on one node wait for each other and share the copy. Nodes copy at the same time, each its own.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import eviction, filelocks, staging
from berth.disk import full_disk_error, human_bytes, is_disk_full
from berth.errors import BerthError
from berth.manifest import read_manifest
from berth.meanwhile import every
from berth.treecopy import copy_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from berth.launch import Deployed

logger = logging.getLogger(__name__)

# The events of a server's timeline; they come before its start, so that their times are negative.
ASKED, READY = "node_model_asked", "node_model_ready"
_LOOK_S = 5.0


@dataclass(frozen=True)
class Copied:
    """A copy on this node: where it is, what this call brought, and when it began and ended (time.monotonic())."""

    path: Path
    source: str
    copied_bytes: int
    began: float
    ended: float

    @property
    def events(self) -> tuple[tuple[str, float], ...]:
        """What happened when, on time.monotonic()."""
        return ((ASKED, self.began), (READY, self.ended))

    def as_custody(self, manifest_sha256: str | None) -> dict[str, Any]:
        """The model's part of a record's `custody`."""
        return {
            "manifest_sha256": manifest_sha256,
            "copy": "node",
            "source": self.source,
            "copied_bytes": self.copied_bytes,
            "copied_s": round(self.ended - self.began, 3),
        }


@contextlib.contextmanager
def with_node_model(deployed: Deployed, moving: Callable[[int], None] | None = None) -> Iterator[Deployed]:
    """The deployment as it is served from this node's own disk, where the platform asks for that; else as it is.

    The copy cannot be evicted while the block lasts. `moving` is called from another thread every few seconds while
    bytes arrive, with how many there are.

    Raises:
        BerthError: no room, a damaged source, or the store's errors, with a remedy.
    """
    settings = deployed.request.platform_settings.get("node_models")
    if not settings:
        yield deployed
        return
    source = deployed.model_dir
    with on_node(source, deployed.request.repo, settings, moving) as copied:
        model = copied.as_custody(deployed.custody["model"]["manifest_sha256"])
        yield replace(deployed, model_dir=copied.path, custody={**deployed.custody, "model": model}, copied=copied)


def with_copies(deployed: Deployed, copies: Sequence[dict[str, Any]]) -> Deployed:
    """A deployment over several nodes whose agents told of their copies (Copied.as_custody), as records hold it."""
    if not copies:
        return deployed
    totals = {
        "copied_bytes": sum(each["copied_bytes"] for each in copies),
        "copied_s": max(each["copied_s"] for each in copies),
    }
    return replace(deployed, custody={**deployed.custody, "model": {**copies[0], **totals}})


@contextlib.contextmanager
def on_node(
    model_dir: Path, repo: str, settings: dict[str, Any], moving: Callable[[int], None] | None = None
) -> Iterator[Copied]:
    """A whole copy of a staged model on this node, held for the block.

    `settings` has dir, source, evict, and the platform's store; errors as of with_node_model().
    """
    settings = {**settings, "repo": repo}
    folder = Path(settings["dir"])
    dest = folder / repo
    began = time.monotonic()
    with filelocks.shared(eviction.use_lock(dest), f"use of {dest}"):
        try:
            copied_bytes = _bring(model_dir, dest, settings, moving)
            eviction.touch_served(dest)
        except OSError as error:
            if is_disk_full(error):
                raise full_disk_error(folder, f"the copy {dest}") from error
            raise BerthError(
                f"{error.filename or dest}: {error.strerror or error}. The model is copied there on "
                f"{socket.gethostname()} (paths.node_models)."
            ) from error
        ended = time.monotonic()
        told = f"{human_bytes(copied_bytes)} from the {settings['source']}" if copied_bytes else "it was there"
        logger.info("the model is on this node: %s (%s, %.1f s)", dest, told, ended - began)
        try:
            yield Copied(dest, settings["source"], copied_bytes, began, ended)
        finally:
            with contextlib.suppress(OSError):
                eviction.touch_served(dest)


def _bring(model_dir: Path, dest: Path, settings: dict[str, Any], moving: Callable[[int], None] | None) -> int:
    """The bytes that were copied, 0 where a whole copy is there."""
    manifest_path = staging.staged_manifest(model_dir)
    manifest, manifest_bytes = read_manifest(manifest_path), manifest_path.read_bytes()
    if staging.is_staged(dest, manifest, manifest_bytes, verify_checksums=False):
        return 0
    folder = Path(settings["dir"])
    partial = dest.with_name(f"{dest.name}.partial")
    # One copy at a time on a node: two would each find the room that is there for one.
    with filelocks.exclusive(folder / ".berth-copy.lock", f"copying of a model into {folder}"):
        if staging.is_staged(dest, manifest, manifest_bytes, verify_checksums=False):
            return 0
        needed = manifest.total_bytes - _there(partial)
        eviction.make_room(folder, max(needed, 0), keep=dest, evict=settings["evict"])
        with _watched(partial, manifest.total_bytes, moving):
            if settings["source"] == "shared":
                return copy_model(model_dir, dest, manifest, manifest_bytes)
            return _from_store(model_dir, dest, settings)


def _from_store(model_dir: Path, dest: Path, settings: dict[str, Any]) -> int:
    # Most sweeps do without boto3, which takes long to load.
    from berth.stages import model_prefix, opened  # noqa: PLC0415
    from berth.store import stage_model  # noqa: PLC0415

    store = settings["store"]
    with opened(store, "") as place:
        receipt = stage_model(
            bucket=place.bucket,
            prefix=model_prefix(store, settings["repo"]),
            dest=dest,
            receipt_path=dest.with_name(f".{dest.name}.receipt.json"),
            manifest_path=staging.staged_manifest(model_dir),
            endpoint_url=place.endpoint_url,
            region=place.region,
            addressing_style=place.addressing_style,
        )
    return int(receipt["moved"]["bytes"])


def _there(folder: Path) -> int:
    """The bytes of the files in a folder, 0 where there is none."""
    found = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        # Files get their names while this looks.
        with contextlib.suppress(OSError):
            found += path.stat().st_size if path.is_file() else 0
    return found


@contextlib.contextmanager
def _watched(partial: Path, total_bytes: int, moving: Callable[[int], None] | None) -> Iterator[None]:
    """Tell while bytes arrive."""
    before = _there(partial)

    def look() -> None:
        nonlocal before
        now = _there(partial)
        if now != before:
            rate = human_bytes(int(abs(now - before) / _LOOK_S))
            logger.info("copied %s of %s to this node, %s/s", human_bytes(now), human_bytes(total_bytes), rate)
            if moving:
                moving(now)
        before = now

    with every(_LOOK_S, look, name="node copy"):
        yield
