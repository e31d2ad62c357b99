"""What one server of an image looked up at its start, for the next server of the same image on the node.

A recipe names the folders of its cache that hold such things (expects.cache.kept). They are copied: every run has its
own cache, so that two servers at the same time never write into one folder, and nothing else of a cache, such as
compiled kernels, goes from one run into another.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from berth.fsio import write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

# What is looked up takes kilobytes. A folder that a recipe names by mistake must not fill the node's disk.
_MOST_BYTES = 1024 * 1024
_DIGITS = 12


@dataclass(frozen=True)
class StartCache:
    """The folder of one image on this node, and the folders below a cache that it keeps.

    It may be deleted at any time: the next start looks everything up again.
    """

    folder: Path
    names: tuple[str, ...]

    @classmethod
    def of(cls, scratch_dir: Path, service: str, digest: str, names: tuple[str, ...]) -> StartCache:
        """That of an image by its digest; `service` is for people, such as vllm-0.32.0."""
        # An experiment's name, which is the other kind of folder here, does not begin with a dot.
        return cls(scratch_dir / "berth" / ".starts" / f"{service}-{digest.rpartition(':')[2][:_DIGITS]}", names)

    def seed(self, cache: Path) -> None:
        """Copy what is kept into the cache of a run that does not have it. What cannot be copied is looked up again."""
        self._copy(self.folder, cache, ours=True)

    def keep(self, cache: Path) -> None:
        """Keep what a server has looked up, once it is ready. What cannot be kept is looked up again."""
        self._copy(cache, self.folder, ours=False)

    def _copy(self, source: Path, target: Path, *, ours: bool) -> None:
        for name in self.names:
            try:
                for path in _files(source / name, ours=ours):
                    copy = target / path.relative_to(source)
                    if not copy.exists():
                        write_bytes(copy, path.read_bytes())
            except OSError as error:
                logger.debug("what servers look up at their start is not copied: %s", error)


def _files(folder: Path, *, ours: bool) -> Iterator[Path]:
    """Small regular files; with `ours` only this user's, for on a disk that users share a folder may be foreign."""
    for directory, _, names in os.walk(folder):
        for path in (Path(directory, name) for name in names):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size <= _MOST_BYTES and not path.name.endswith(".tmp"):
                if ours and found.st_uid != os.geteuid():
                    continue
                yield path
