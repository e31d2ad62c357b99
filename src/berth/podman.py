"""Images in Podman's storage on this node. `program` is Podman with its global options, such as --root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.programs import ProgramFailed, run
from berth.registry import explained, options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.registry import Access


def has(program: Sequence[str], name: str, env: Mapping[str, str]) -> bool:
    """Whether the storage has an image, NAME@DIGEST or NAME:TAG.

    Raises:
        BerthError: Podman is not there, or does not work here.
    """
    try:
        run([*program, "image", "exists", name], env=env)
    except ProgramFailed as failed:
        # 1 is its answer; 125 is its own failure.
        if failed.code == 1:
            return False
        raise BerthError(f"podman image exists {name}: {failed} `podman info` must work on this node.") from None
    return True


def look(program: Sequence[str], name: str, env: Mapping[str, str]) -> tuple[str, str, int]:
    """Digest, platform (such as linux/amd64) and unpacked bytes of an image that is there."""
    wanted = "--format={{.Digest}} {{.Os}}/{{.Architecture}} {{.Size}}"
    digest, platform, size = run([*program, "image", "inspect", wanted, name], env=env).decode().split()
    return digest, platform, int(size)


def bring(
    program: Sequence[str],
    source: str,
    tags: Sequence[str],
    access: Access,
    *,
    env: Mapping[str, str],
    lock_fd: int,
) -> None:
    """Bring an image into the storage and give it names there.

    `source` is REGISTRY/NAME@DIGEST, or `dir:FOLDER` with a folder of image_archive.

    Raises:
        BerthError: no room, a damaged folder, Podman is not there, or what the registry answered.
    """
    try:
        with options(access) as words:
            # The last line is the id of the image.
            said = run([*program, "pull", "--quiet", *words, source], env=env, lock_fd=lock_fd)
        run([*program, "tag", said.decode().split()[-1], *tags], env=env)
    except ProgramFailed as failed:
        raise explained(failed, f"bringing {source} into Podman's storage", access.key) from None
