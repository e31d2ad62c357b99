"""An image as one file for Apptainer (SIF): built under another name, and taken only with the receipt beside it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.container import apptainer_places
from berth.disk import require_space
from berth.errors import BerthError
from berth.fsio import fsync_dir, fsync_file, sha256_file
from berth.programs import ProgramFailed, run
from berth.registry import explained

if TYPE_CHECKING:
    from berth.registry import Access, Found

logger = logging.getLogger(__name__)

# Layers are compressed, and so is the SIF; between them they are downloaded and unpacked. vLLM's unpack to about 2.5.
_SIF_PER_BYTE = 1.2
_WORK_PER_BYTE = 4.0


def receipt_beside(sif: Path) -> Path:
    """Where the receipt of a SIF lies, so that another checkout finds the image done."""
    return sif.with_name(f"{sif.name}.json")


def whole_sif(sif: Path) -> dict[str, Any] | None:
    """The receipt beside a SIF that has the size and the SHA-256 in it; else None."""
    try:
        receipt: dict[str, Any] = json.loads(receipt_beside(sif).read_text())
        same = sif.stat().st_size == receipt["size_bytes"] and sha256_file(sif) == receipt["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if same else None


def build_sif(sif: Path, place: str, found: Found, access: Access, *, work: Path, lock_fd: int) -> dict[str, Any]:
    """Build a SIF from REGISTRY/NAME@DIGEST; it has its name when it is whole. Returns size_bytes and sha256.

    Call it with the lock on the SIF held, `lock_fd`. `work` is a folder of this build alone on a local disk.

    Raises:
        BerthError: no room, Apptainer is not there, or what the registry answered.
    """
    require_space(sif.parent, int(found.size_bytes * _SIF_PER_BYTE), f"The SIF of {place}")
    require_space(work.parent, int(found.size_bytes * _WORK_PER_BYTE), f"Unpacking {place}")
    partial = sif.with_name(f".{sif.name}.partial")
    # What a killed build left. Nobody writes there: that build held the lock, and its Apptainer too.
    partial.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    environment = {**os.environ, **apptainer_places(work)}
    if access.ca_file:
        environment["SSL_CERT_FILE"] = access.ca_file
    argv = ["apptainer", "build", "--force", *apptainer_options(access), str(partial), f"docker://{place}"]
    try:
        for folder in apptainer_places(work).values():
            Path(folder).mkdir(parents=True)
        run(argv, env=environment, lock_fd=lock_fd)
        fsync_file(partial)
        told = {"size_bytes": partial.stat().st_size, "sha256": sha256_file(partial)}
        partial.replace(sif)
        fsync_dir(sif.parent)
    except ProgramFailed as failed:
        raise explained(failed, f"building {sif} from {place} (unpacking in {work})", access.key) from None
    except OSError as error:
        raise BerthError(f"{error.filename or sif}: {error.strerror or error}. Building {sif} writes there.") from error
    finally:
        partial.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
    return told


def apptainer_options(access: Access) -> list[str]:
    """The options with which Apptainer speaks to a registry; a CA file goes by SSL_CERT_FILE."""
    words = [] if access.tls_verify else ["--no-https"]
    return [*words, f"--authfile={access.auth_file}"] if access.auth_file else words
