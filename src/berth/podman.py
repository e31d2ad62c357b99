"""Images in Podman's storage on this node. `program` is Podman with its global options, such as --root."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth import filelocks
from berth.container import without_login_session
from berth.errors import BerthError
from berth.programs import ProgramFailed, run
from berth.references import Reference, local_name
from berth.registry import explained, options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

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


@dataclass(frozen=True)
class Storage:
    """Podman's storage on this node, and the folder of a local disk where the lock on an image lies."""

    program: tuple[str, ...]
    work: Path
    env: dict[str, str]

    @classmethod
    def at(cls, work: Path, env: Mapping[str, str] | None, program: Sequence[str]) -> Storage:
        """The storage with no login session in Podman's environment, and its temporary files off /var/tmp."""
        outside = without_login_session(os.environ) if env is None else env
        return cls(tuple(program), work, {**outside, "TMPDIR": str(work.parent)})

    def locked(self, purpose: str) -> AbstractContextManager[int]:
        """The lock on this image on this node."""
        return filelocks.exclusive(self.work.with_name(f"{self.work.name}.lock"), purpose)

    def has(self, receipt: Mapping[str, Any]) -> bool:
        """Whether the image of a receipt is there, under both of its names."""
        names = (Reference.parse(receipt["reference"]).at(receipt["digest"]), receipt["pulled_from"])
        return all(has(self.program, name, self.env) for name in dict.fromkeys(names))

    def bring(self, source: str, receipt: Mapping[str, Any], access: Access, lock_fd: int) -> None:
        """Bring the image of a receipt there, under both of its names."""
        names = (Reference.parse(receipt["reference"]).name, receipt["pulled_from"].partition("@")[0])
        tags = [local_name(name, receipt["digest"]) for name in dict.fromkeys(names)]
        bring(self.program, source, tags, access, env=self.env, lock_fd=lock_fd)
        if not self.has(receipt):
            raise BerthError(
                f"{source} was brought into Podman's storage, and {receipt['pulled_from']} is not there: it is "
                f"another image. Delete {source.removeprefix('dir:')}, and run again."
            )
