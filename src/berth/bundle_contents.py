"""What goes into a bundle, in the order in which it is packed, and what its receiver is told."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from berth import unbundle
from berth.errors import BerthError
from berth.fsio import json_text, sha256_file
from berth.manifest import read_manifest
from berth.pins import LOCKS
from berth.unbundle import DEST_MARK
from berth.wheels import download_wheels

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

# What a checkout has beside its files: results, environments, and what tools keep.
_NOT_OF_THE_CHECKOUT = {".git", ".snakemake", ".venv", "results", "__pycache__", "bundle"}


@dataclass(frozen=True)
class BundleRequest:
    """What is packed, as plain values.

    `images` have recipe, version and the image as spec.Definition has it; `wheels` says whether Python's packages come
    along. `results` is relative to `root`, the checkout. `in_pods`: models are served by pods, from the site's store.
    """

    bundle: str
    root: str
    results: str
    platform: str
    models: list[str]
    datasets: list[str]
    images: list[dict[str, Any]]
    wheels: bool = True
    in_pods: bool = False


@dataclass(frozen=True)
class Member:
    """One file of a bundle: its name there, and a path or bytes; `sha256` is what it must have, where that is known."""

    name: str
    source: Path | bytes
    sha256: str | None = None

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @property
    def where(self) -> str:
        """Where it comes from, for people."""
        return self.name if isinstance(self.source, bytes) else str(self.source)

    @property
    def executable(self) -> bool:
        """Whether it is a program."""
        return isinstance(self.source, Path) and os.access(self.source, os.X_OK)

    def opened(self) -> BinaryIO:
        """The file, open."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def digest(self) -> str:
        """The SHA-256 that it must have, or has."""
        if self.sha256 is not None:
            return self.sha256
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else sha256_file(self.source)


@dataclass
class Contents:
    """Members in their order; names of receipts from the oldest to the newest; what the receiver is told."""

    members: list[Member] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def receipt(self, name: str, value: dict[str, Any]) -> None:
        """A receipt, in which DEST_MARK is filled in where it is unpacked."""
        self.receipts.append(name)
        self.members.append(Member(name, json_text(value).encode()))


def contents_of(request: BundleRequest) -> Contents:
    """Everything that the request names.

    Raises:
        BerthError: something of it is not there, or wheels cannot be had.
    """
    root, found = Path(request.root), Contents()
    results = root / request.results
    found.members.append(Member("unpack.py", Path(unbundle.__file__)))
    found.members += [Member(f"checkout/{path.relative_to(root).as_posix()}", path) for path in checkout_files(root)]
    found.notes.append(f"Checkout: {DEST_MARK}.")
    if request.wheels:
        _wheels(found, "wheels", root / "requirements.lock", results, hashes=True)
        found.notes.append(
            f"Environment: cd {DEST_MARK} && PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/bundle/wheels "
            "bash tools/make-venv.sh .venv requirements.lock (the same Python version and kind of machine as here: "
            f"{sys.version_info[0]}.{sys.version_info[1]})."
        )
    else:
        found.notes.append(
            "Environment: as your site has it; environment.yml and requirements.lock say what is needed."
        )
    for image in request.images:
        _image(found, request, image, results)
    for name in request.datasets:
        folder = results / "datasets" / name
        receipt = _json(folder / "receipt.json")
        place = f"{request.results}/datasets/{name}"
        found.members.append(
            Member(f"{_in_results(request, place)}/{receipt['path']}", folder / receipt["path"], receipt["sha256"])
        )
        found.receipt(f"{_in_results(request, place)}/receipt.json", receipt)
    for name in request.models:
        _model(found, request, name, results)
    found.notes.append(f"Then: snakemake --profile profiles/... with platform {request.platform}, or -n first.")
    return found


def checkout_files(root: Path) -> list[Path]:
    """The files of the checkout: what git tracks or would, and without git everything that no tool made."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        except (OSError, subprocess.CalledProcessError) as error:
            raise BerthError(f"{root}: git cannot list the files of the checkout ({error}).") from error
        return [path for name in sorted(filter(None, listed)) if (path := root / name).is_file()]
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_OF_THE_CHECKOUT]
        found += [path for name in names if (path := Path(folder) / name).is_file() and not path.is_symlink()]
    return sorted(found)


def _in_results(request: BundleRequest, place: str) -> str:
    # Members of results/ keep their place, which unpack.py knows by this name alone.
    if request.results != "results":
        raise BerthError(
            f"config/config.yaml: results: {request.results!r}: a bundle needs the folder `results`, the default."
        )
    return place


def _model(found: Contents, request: BundleRequest, name: str, results: Path) -> None:
    folder = results / "models" / name
    manifest_path = folder / "manifest.json"
    manifest = read_manifest(manifest_path)
    place = _in_results(request, f"results/models/{name}")
    found.members += [Member(f"{place}/files/{e.path}", folder / "files" / e.path, e.sha256) for e in manifest.files]
    found.receipts.append(f"{place}/manifest.json")
    found.members.append(Member(f"{place}/manifest.json", manifest_path))
    if request.in_pods:
        found.notes.append(f"Model {name}: push_model brings it into the store of that site, where pods take it from.")
        return
    # In the place of a push: rule stage_model takes the files from where this says that they are.
    receipt = {
        "schema": 1,
        "action": "unpack",
        "source": manifest.source,
        "manifest": {"key": f"results/models/{name}/manifest.json", "sha256": sha256_file(manifest_path)},
        "files": f"results/models/{name}/files",
        "total_bytes": manifest.total_bytes,
    }
    found.receipt(f"results/store/{request.platform}/{name}.json", receipt)
    found.notes.append(f"Model {name} with its tokenizer: {len(manifest.files)} files; stage_model takes it from here.")


def _image(found: Contents, request: BundleRequest, image: dict[str, Any], results: Path) -> None:
    name = f"{image['recipe']}-{image['version']}"
    if image["image"]["kind"] == "environment":
        if request.wheels:
            _wheels(found, f"image-wheels/{Path(image['image']['lock']).stem}", LOCKS / image["image"]["lock"], results)
            found.notes.append(f"Image {name}: wheels, from which stage_image builds the environment without an index.")
        else:
            found.notes.append(f"Image {name}: not here (no wheels were asked for); stage_image needs a package index.")
        return
    receipt = _json(results / "images" / request.platform / f"{name}.json")
    kept = [key for key in ("path", "archive") if receipt.get(key)]
    if not kept:
        raise BerthError(
            f"The image {name} is in Podman's storage of this machine alone, so it cannot be packed. Pack on a "
            "platform with a scheduler or with Apptainer, where it is staged as files."
        )
    for key in kept:
        source = Path(receipt[key])
        found.members += _image_files(source, name, receipt.get("sha256"))
        receipt[key] = f"{DEST_MARK}/bundle/images/{source.name}"
    mirrored = results / "mirrored" / request.platform / f"{name}.json"
    if mirrored.exists():
        found.receipt(_in_results(request, f"results/mirrored/{request.platform}/{name}.json"), _json(mirrored))
    found.receipt(_in_results(request, f"results/images/{request.platform}/{name}.json"), receipt)
    found.notes.append(f"Image {name}: {receipt['reference']} at {receipt['digest']}.")


def _image_files(source: Path, name: str, sha256: str | None) -> list[Member]:
    if source.is_file():
        return [Member(f"images/{source.name}", source, sha256)]
    if not source.is_dir():
        raise BerthError(f"{source} is not there, although the receipt of {name} says so. Stage the image again.")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return [Member(f"images/{source.name}/{path.relative_to(source).as_posix()}", path) for path in files]


def _wheels(found: Contents, place: str, lock: Path, results: Path, *, hashes: bool = False) -> None:
    folder = download_wheels(lock, results / "bundle" / place, hashes=hashes)
    found.members += [Member(f"{place}/{path.name}", path) for path in _files(folder)]


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: no readable receipt ({error}). Delete it, so that it is made again.") from None
    return value
