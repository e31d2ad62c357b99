"""A whole model repository from a hub, at one commit, every file verified, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import RepoCard
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from yaml import YAMLError

from berth.disk import require_space
from berth.errors import BerthError
from berth.fsio import CHUNK_BYTES
from berth.hub import HubFile, HubRepo, download_files, hub_repo, list_files, resolve_commit
from berth.manifest import (
    HUB_CACHE,
    Manifest,
    build_manifest,
    list_tree,
    read_manifest,
    tree_problems,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
# A model may not be passed on without its terms, so patterns never leave these out.
_DOCUMENTS = ("LICENSE", "LICENCE", "README", "NOTICE", "COPYING", "USE_POLICY")
_HASH_WORKERS = 4
_NAMED_IN_ERROR = 10
# What the library writes beside the files: locks, metadata, the listing.
_BOOKKEEPING_BYTES = 1_000_000


def download_model(
    *,
    repo: str,
    revision: str,
    dest: Path,
    manifest_path: Path,
    allow_patterns: Sequence[str] = (),
    ignore_patterns: Sequence[str] = (),
    endpoint: str | None = None,
    token_env: str = "HF_TOKEN",  # noqa: S107 - the name of a variable
    max_workers: int = 8,
) -> Manifest:
    """Download the repository into `dest`, verify every file, and write the manifest to `manifest_path` last.

    `revision` is the full commit (40 hexadecimal digits). The patterns are those of huggingface_hub (`*.pth`); the
    licence and the README in the top folder come along whatever they say. Files that an earlier try finished are
    verified and kept. Where the manifest is there and the files match it, the hub is not asked at all. Where it is of
    another revision or other patterns, the files that it lists and this download has not are deleted.

    Raises:
        BerthError: says what is wrong and what to do; there is no manifest then.
    """
    hub = hub_repo(repo, revision, endpoint=endpoint, token_env=token_env)
    if not _COMMIT.fullmatch(revision):
        raise _not_a_commit(hub)
    patterns = {"allow_patterns": list(allow_patterns), "ignore_patterns": list(ignore_patterns)}
    source: dict[str, Any] = {"kind": "hub", "repo": repo, "revision": revision, "licence": None, **patterns}
    existing = _complete(dest, manifest_path, source)
    if existing is not None:
        logger.info("The %s in %s is complete.", hub.label, dest)
        return existing
    wanted = select_files(list_files(hub), allow_patterns, ignore_patterns)
    if not wanted:
        raise BerthError(f"{hub.label}: no file is left after allow_patterns and ignore_patterns: {patterns}.")
    _remove_former_files(dest, wanted, manifest_path)
    _refuse_strangers(dest, wanted, hub)
    manifest_path.unlink(missing_ok=True)
    verified = _keep_whole_files(dest, wanted)
    missing = [file for file in wanted if file.path not in verified]
    require_space(dest, sum(file.size_bytes for file in missing) + _BOOKKEEPING_BYTES, f"The {hub.label}")
    logger.info("Downloading the %s: %d files, %d are there already.", hub.label, len(wanted), len(verified))
    download_files(hub, missing, dest, max_workers=max_workers)
    verified |= _verify_downloads(dest, missing, hub)
    shutil.rmtree(dest / HUB_CACHE, ignore_errors=True)
    with contextlib.suppress(OSError):
        (dest / HUB_CACHE).parent.rmdir()
    source["licence"] = declared_licence(dest / "README.md")
    manifest = build_manifest(dest, source, verified)
    write_manifest(manifest_path, manifest)
    return manifest


def select_files(
    listed: dict[str, HubFile], allow_patterns: Sequence[str] = (), ignore_patterns: Sequence[str] = ()
) -> list[HubFile]:
    """The files to download, sorted by path: what the patterns leave, and the documents of the top folder."""
    chosen = set(
        filter_repo_objects(
            listed, allow_patterns=list(allow_patterns) or None, ignore_patterns=list(ignore_patterns) or None
        )
    )
    if chosen:
        chosen |= {path for path in listed if "/" not in path and path.upper().startswith(_DOCUMENTS)}
    return [listed[path] for path in sorted(chosen)]


def declared_licence(readme: Path) -> str | None:
    """The licence that a model card names in its header, for example `apache-2.0`; None where it names none.

    The header is YAML between two lines of `---`: https://huggingface.co/docs/hub/model-cards.
    """
    try:
        card = RepoCard.load(readme, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):
        return None
    licence = card.get("license")
    if licence == "other":
        licence = card.get("license_name") or licence
    return str(licence) if licence else None


def _not_a_commit(hub: HubRepo) -> BerthError:
    problem = f"revision {hub.revision!r} of {hub.repo} is no full commit (40 hexadecimal digits), so it can change"
    try:
        return BerthError(f"{problem}: write {resolve_commit(hub)}, which it is now.")
    except BerthError as error:
        return BerthError(f"{problem}: write the commit from {hub.page}. (Asked for it there: {error})")


def _complete(dest: Path, manifest_path: Path, source: dict[str, Any]) -> Manifest | None:
    """The manifest of a download of the same source that is whole, or None."""
    if not manifest_path.exists():
        return None
    manifest = read_manifest(manifest_path)
    if {**manifest.source, "licence": None} != source:
        return None
    problems = tree_problems(dest, manifest)
    for problem in problems[:_NAMED_IN_ERROR]:
        logger.warning("%s: %s %s; getting it again.", dest, problem.path, problem.detail)
    return None if problems else manifest


def _remove_former_files(dest: Path, wanted: Iterable[HubFile], manifest_path: Path) -> None:
    """Delete what an earlier download brought and this one has not, as its manifest lists it.

    A file that has another size than that manifest says was changed by somebody, and is left.
    """
    if not manifest_path.exists():
        return
    kept = {file.path for file in wanted}
    removed = []
    for entry in read_manifest(manifest_path).files:
        path = dest / entry.path
        if entry.path in kept or not path.is_file() or path.stat().st_size != entry.size_bytes:
            continue
        path.unlink()
        removed.append(entry.path)
        for folder in list(path.parents)[: len(PurePosixPath(entry.path).parts) - 1]:
            # The first folder that holds something else ends it.
            with contextlib.suppress(OSError):
                folder.rmdir()
    if removed:
        more = f" and {len(removed) - _NAMED_IN_ERROR} more" if len(removed) > _NAMED_IN_ERROR else ""
        logger.info(
            "%s: deleted what only the former download had: %s%s", dest, ", ".join(removed[:_NAMED_IN_ERROR]), more
        )


def _refuse_strangers(dest: Path, wanted: Iterable[HubFile], hub: HubRepo) -> None:
    """A file that is not of this download could change what is served, and is not ours to delete."""
    expected = {file.path for file in wanted}
    strangers = [path for path in list_tree(dest) if path not in expected] if dest.is_dir() else []
    if strangers:
        more = f" and {len(strangers) - _NAMED_IN_ERROR} more" if len(strangers) > _NAMED_IN_ERROR else ""
        raise BerthError(
            f"{dest} holds files that are not part of the {hub.label} with these patterns: "
            f"{', '.join(strangers[:_NAMED_IN_ERROR])}{more}. Move them away, or use an empty directory."
        )


def _keep_whole_files(dest: Path, wanted: Sequence[HubFile]) -> dict[str, str]:
    """The SHA-256 of each file that is there and right; files that are wrong are deleted."""
    present = [file for file in wanted if (dest / file.path).is_file()]
    verified, wrong = _check_files(dest, present)
    for path in wrong:
        logger.warning("%s is not what the hub lists; getting it again.", dest / path)
        (dest / path).unlink()
    return verified


def _verify_downloads(dest: Path, files: Sequence[HubFile], hub: HubRepo) -> dict[str, str]:
    """The SHA-256 of each downloaded file.

    Raises:
        BerthError: names the files that are not what the hub lists, which are deleted.
    """
    verified, wrong = _check_files(dest, files)
    if wrong:
        for path in wrong:
            (dest / path).unlink(missing_ok=True)
        lines = [f"  {path}: {reason}" for path, reason in list(wrong.items())[:_NAMED_IN_ERROR]]
        raise BerthError(
            f"{hub.label}: {len(wrong)} of {len(files)} downloaded files are not what {hub.endpoint} lists:\n"
            + "\n".join(lines)
            + "\nThey were deleted. Run again; if it stays so, a proxy or mirror in between serves wrong data."
        )
    return verified


def _check_files(dest: Path, files: Sequence[HubFile]) -> tuple[dict[str, str], dict[str, str]]:
    """The files that are right with their SHA-256, and those that are wrong with the reason."""
    verified, wrong = {}, {}
    with ThreadPoolExecutor(_HASH_WORKERS) as pool:
        for file, (sha256, reason) in zip(files, pool.map(lambda f: check_file(dest / f.path, f), files), strict=True):
            if reason is None:
                verified[file.path] = sha256
            else:
                wrong[file.path] = reason
    return verified, wrong


def check_file(path: Path, expected: HubFile) -> tuple[str, str | None]:
    """The SHA-256 of a file, and why it is not what the hub lists (None if it is).

    LFS files are compared by SHA-256, the others by the SHA-1 of their git blob (`blob SIZE`, a zero byte, the bytes).
    What was read is made durable, since the manifest will say that it is there.
    """
    if not path.is_file():
        return "", "is missing"
    size = path.stat().st_size
    if size != expected.size_bytes:
        return "", f"has {size} bytes instead of {expected.size_bytes}"
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        while chunk := handle.read(CHUNK_BYTES):
            sha256.update(chunk)
            if expected.lfs_sha256 is None:
                blob.update(chunk)
    found = sha256.hexdigest()
    if expected.lfs_sha256 is not None and found != expected.lfs_sha256:
        return found, f"has SHA-256 {found} instead of {expected.lfs_sha256}"
    if expected.lfs_sha256 is None and expected.blob_id is not None and blob.hexdigest() != expected.blob_id:
        return found, f"has git blob {blob.hexdigest()} instead of {expected.blob_id}"
    return found, None
