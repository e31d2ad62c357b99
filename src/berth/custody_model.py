"""The chain of a model: hub commit, manifest, downloaded files, objects in the store, staged files, copy on this node.

Every place has the manifest or its SHA-256. What most of them say is the manifest; a place that says otherwise is
where the chain breaks, and files are compared with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import s3
from berth.custody_link import Chain
from berth.custody_witness import Witnesses
from berth.errors import BerthError
from berth.fsio import CHUNK_BYTES
from berth.hub import hub_repo, list_files
from berth.manifest import Manifest, parse_manifest, tree_problems
from berth.model import check_file
from berth.provenance import same_source
from berth.staging import staged_manifest
from berth.store import manifest_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from berth.manifest import FileEntry

_AT_ONCE = 4


@dataclass(frozen=True)
class ModelPlaces:
    """Where a model is, from one platform's point of view.

    Args:
        name: of its file in config/models.
        repo: ORG/NAME.
        identity: config.Model.identity.
        results: the folder of results.
        platform: the platform.
        models_dir: paths.models.
        node_models: paths.node_models, "" where models are not copied onto nodes.
        prefix: of its keys in the store.
        quick: compare names, sizes and kept checksums, and read no file and no object.
    """

    name: str
    repo: str
    identity: dict[str, Any]
    results: Path
    platform: str
    models_dir: Path
    node_models: str
    prefix: str
    quick: bool = False

    @property
    def downloaded(self) -> Path:
        """The files as they came from the hub."""
        return self.results / "models" / self.name / "files"

    @property
    def staged(self) -> Path:
        """The files that compute nodes read."""
        return self.models_dir / self.repo

    @property
    def on_node(self) -> Path | None:
        """The copy on a node's own disk, None where there is none by configuration."""
        return Path(self.node_models) / self.repo if self.node_models else None


@dataclass(frozen=True)
class ModelChain:
    """What was found: the links, and the manifest's SHA-256 where the places agree on one."""

    chain: Chain
    manifest_sha256: str | None
    manifest: Manifest | None


def model_chain(places: ModelPlaces, store: s3.Store | str) -> ModelChain:
    """Every link of a model that can be checked from here; `store` is a reason where the store cannot be asked."""
    chain = Chain(f"model {places.name} ({places.repo}) on {places.platform}")
    witnesses = Witnesses()
    for path in (places.results / "models" / places.name / "manifest.json", *map(staged_manifest, _folders(places))):
        if path.is_file():
            witnesses.heard(str(path), path.read_bytes())
    in_store = _from_store(places, store)
    if in_store.manifest is not None:
        witnesses.heard(f"{store}: {manifest_key(places.prefix)}", in_store.manifest)
    receipts = [places.results / kind / places.platform / f"{places.name}.json" for kind in ("store", "staged")]
    unreadable = [problem for path in receipts if (problem := witnesses.receipt(path))]
    agreed, others = witnesses.verdict()
    manifest, unusable = _parsed(witnesses.texts.get(agreed or ""))
    if not witnesses.says:
        chain.add("manifest", "cannot be checked", "no manifest and no receipt of this model is here")
        return ModelChain(chain, None, None)
    count = len(witnesses.says)
    chain.compared(
        "manifest",
        [*others, *unreadable, *unusable],
        f"SHA-256 {agreed}, in all {count} places: {', '.join(witnesses.says)}",
    )
    if manifest is None:
        if agreed is not None and not unusable:
            chain.add(
                "files", "cannot be checked", "only the manifest's SHA-256 is here, in receipts, and not the manifest"
            )
        return ModelChain(chain, agreed, None)
    _commit(chain, places, manifest)
    files = _Files(chain, manifest, places.quick)
    files.compare("downloaded files", places.downloaded, "they were not downloaded here, or removed")
    if in_store.manifest is None or isinstance(store, str):
        chain.add("objects in the store", "broken" if in_store.lost else "cannot be checked", in_store.why_not)
    else:
        _objects(chain, places, store, manifest)
    files.compare("staged files", places.staged, "the model was not staged yet")
    if places.on_node is not None:
        node = socket.gethostname()
        absent = f"there is no copy on {node}; the copies of other nodes are checked there"
        files.compare(f"copy on node {node}", places.on_node, absent)
    return ModelChain(chain, agreed, manifest)


def _folders(places: ModelPlaces) -> list[Path]:
    return [each for each in (places.downloaded, places.staged, places.on_node) if each is not None]


def _parsed(text: bytes | None) -> tuple[Manifest | None, list[str]]:
    if text is None:
        return None, []
    try:
        return parse_manifest(json.loads(text), "the manifest"), []
    except (BerthError, ValueError) as error:
        return None, [str(error)]


def _commit(chain: Chain, places: ModelPlaces, manifest: Manifest) -> None:
    source = manifest.source
    if not same_source(places.identity, source):
        said = source.get("revision") or source.get("shape")
        chain.add(
            "commit", "broken", f"the manifest is of {source.get('repo')} at {said}, configured is {places.identity}"
        )
        return
    if source.get("kind") != "hub":
        chain.add("commit", "ok", f"generated from {source.get('shape')}, as configured; there is no hub")
        return
    chain.add("commit", "ok", f"{source['repo']} at {source['revision']}, as configured")
    _hub(chain, places, manifest)


def _hub(chain: Chain, places: ModelPlaces, manifest: Manifest) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        chain.add("hub", "cannot be checked", "HF_HUB_OFFLINE is set")
        return
    try:
        listed = list_files(hub_repo(places.repo, manifest.source["revision"]))
    except BerthError as error:
        chain.add("hub", "cannot be checked", f"the hub cannot be asked from here: {str(error).splitlines()[0]}")
        return
    folder = next((each for each in _folders(places) if each.is_dir()), None)
    problems, unread = [], 0
    for entry in manifest.files:
        file = listed.get(entry.path)
        if file is None or file.size_bytes != entry.size_bytes:
            problems.append(f"{entry.path} {'is not in that commit' if file is None else 'has another size there'}")
        elif file.lfs_sha256 is not None:
            if file.lfs_sha256 != entry.sha256:
                problems.append(f"{entry.path} has SHA-256 {file.lfs_sha256} there and {entry.sha256} in the manifest")
        # Of small files a hub knows git's digest alone, which needs their bytes.
        elif folder is None or places.quick:
            unread += 1
        elif reason := check_file(folder / entry.path, file)[1]:
            problems.append(f"{entry.path} {reason}")
    left = f", {unread} of them by size alone" if unread else ""
    chain.compared("hub", problems, f"{len(manifest.files)} files are those of the commit{left}")


@dataclass(frozen=True)
class _Files:
    chain: Chain
    manifest: Manifest
    quick: bool

    def compare(self, name: str, folder: Path, absent: str) -> None:
        """The link of one folder; `absent` says why it may not be there."""
        if not folder.is_dir():
            self.chain.add(name, "cannot be checked", f"{folder} is not here: {absent}")
            return
        problems = tree_problems(folder, self.manifest, checksums=not self.quick)
        fine = f"{folder}, {len(self.manifest.files)} files {'by size' if self.quick else 'by SHA-256'}"
        self.chain.compared(name, [f"{folder}/{each.path} {each.detail}" for each in problems], fine)


@dataclass(frozen=True)
class _InStore:
    """The manifest object, or why it cannot be had, and whether it was there once."""

    manifest: bytes | None = None
    why_not: str = ""
    lost: bool = False


def _from_store(places: ModelPlaces, store: s3.Store | str) -> _InStore:
    if isinstance(store, str):
        return _InStore(why_not=store)
    try:
        return _InStore(s3.read_object(store, manifest_key(places.prefix))[0])
    except BerthError as error:
        lost = s3.error_code(error) in {"NoSuchKey", "404"} and _was_pushed(places)
        return _InStore(why_not=str(error), lost=lost)


def _was_pushed(places: ModelPlaces) -> bool:
    receipt = places.results / "store" / places.platform / f"{places.name}.json"
    try:
        # A bundle writes one too, for a model that never was in a store.
        return bool(json.loads(receipt.read_bytes())["action"] == "push")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _objects(chain: Chain, places: ModelPlaces, store: s3.Store, manifest: Manifest) -> None:
    mode = s3.environment_mode() or "when_supported"
    try:
        with store.client(mode) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
            check = _object_checker(client, store, places)
            problems = [f"{store}: {each}" for each in pool.map(check, manifest.files) if each]
    except BerthError as error:
        chain.add("objects in the store", "cannot be checked", str(error))
        return
    how = "by size and kept SHA-256" if places.quick else "read again, by SHA-256"
    chain.compared("objects in the store", problems, f"{store}, {places.prefix}/: {len(manifest.files)} files {how}")


def _object_checker(client: Any, store: s3.Store, places: ModelPlaces) -> Callable[[FileEntry], str | None]:
    def check(entry: FileEntry) -> str | None:
        key = f"{places.prefix}/{entry.path}"
        ask = client.head_object if places.quick else client.get_object
        try:
            with store.explained():
                answer = ask(Bucket=store.bucket, Key=key)
                found = None if places.quick else _digest(answer["Body"])
        except BerthError as error:
            if s3.error_code(error) in {"NoSuchKey", "404"}:
                return f"{key} is missing"
            raise
        if answer["ContentLength"] != entry.size_bytes:
            return f"{key} has {answer['ContentLength']} bytes instead of {entry.size_bytes}"
        if found not in (None, entry.sha256):
            return f"{key} has SHA-256 {found} instead of {entry.sha256}"
        kept = s3.stored_sha256(answer)
        if kept == entry.sha256:
            return None
        return f"{key} has SHA-256 {kept or 'unknown'} in its metadata instead of {entry.sha256}"

    return check


def _digest(body: Any) -> str:
    digest = hashlib.sha256()
    for chunk in body.iter_chunks(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
