"""What real servers look up at their start, shared by all tests on this machine: it costs 15 CPU seconds per start."""

from __future__ import annotations

from pathlib import Path

from berth.image import default_cache_dir
from berth.pins import default_lock_file, read_lock
from berth.startcache import StartCache

SERVICE = "vllm-0.32.0"


def shared_starts() -> Path:
    """The folder in the place of a scratch folder's own."""
    folder = default_cache_dir() / "test-starts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def vllm_cache_root() -> Path:
    """A VLLM_CACHE_ROOT with nothing in it but this, for a server that a test starts by itself."""
    digest = read_lock(default_lock_file()).digest
    return shared_starts() / StartCache.of(Path("/"), SERVICE, digest, ()).folder.name / "vllm"


def share_starts(scratch: Path, digest: str | None = None) -> None:
    """Let the runs below a scratch folder share it.

    `digest` is that of an image which a test made around the environment of vLLM, and which nobody else has.
    """
    if digest is None:
        link, target = StartCache.of(scratch, SERVICE, "", ()).folder.parent, shared_starts()
    else:
        link, target = StartCache.of(scratch, SERVICE, digest, ()).folder, vllm_cache_root().parent
        target.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
