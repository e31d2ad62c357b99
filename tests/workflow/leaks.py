"""Looks for the values of secrets where they must not be: in files, and in the arguments of processes."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

# Values that stand nowhere else. Those of the object store are not asked for by the store that Berth starts itself.
SECRETS = {
    "HF_TOKEN": "hf_recognisable4f7a91c2",
    "AWS_ACCESS_KEY_ID": "AKIARECOGNISABLE4F7A",
    "AWS_SECRET_ACCESS_KEY": "recognisable/secret+4f7a91c2",
    "AWS_SESSION_TOKEN": "recognisable-session-4f7a91c2",
    "VLLM_API_KEY": "sk-recognisable-4f7a91c2",
    "OPENAI_API_KEY": "sk-recognisable-client-4f7a91c2",
    "LITELLM_MASTER_KEY": "sk-recognisable-router-4f7a91c2",
}
# Under these names a server and a client get keys that are made for them alone.
_KEYS = (b"VLLM_API_KEY=", b"OPENAI_API_KEY=", b"LITELLM_MASTER_KEY=")
_EVERY_S = 0.2


def files_with(folder: Path, values: Iterable[str]) -> list[str]:
    """The files below a folder, hidden ones included, that hold one of these values."""
    wanted = [value.encode() for value in values]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path}: {value.decode()}" for value in wanted if value in data]
    return found


class Watch:
    """Looks at all processes for the time of a block in which a workflow runs in a folder.

    `made` are the keys that its processes had in their environment and that Berth had made; `shown` are the command
    lines of any process in which a value was seen.
    """

    def __init__(self, folder: Path, values: Iterable[str]) -> None:
        self.folder = folder
        self.values = set(values)
        self.made: set[str] = set()
        self.shown: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._lines: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        # A key may have been seen after the command line that shows it.
        known = self.values | self.made
        self.shown = {line for line in self._lines if any(value in line for value in known)}

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_S):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        self._lines.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                        self._keys((entry / "environ").read_bytes())

    def _keys(self, environ: bytes) -> None:
        if str(self.folder).encode() not in environ:
            return
        for line in environ.split(b"\0"):
            name, equals, value = line.partition(b"=")
            if name + equals in _KEYS and len(value) > 8 and value.decode() not in self.values:
                self.made.add(value.decode())
