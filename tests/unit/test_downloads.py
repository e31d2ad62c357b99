"""One file on its way from the store, without a store: a stand-in of a session hands over the bytes."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from berth.downloads import Download
from berth.manifest import FileEntry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA = b"weights" * 1000


class Session:
    """Hands over the whole file."""

    def get(self, key: str, span: Any, etag: str | None, sink: Callable[[memoryview], None]) -> str:
        sink(memoryview(DATA)[span.start : span.stop])
        return "etag"


def test_whoever_comes_when_a_file_is_whole_leaves_it_alone(tmp_path: Path) -> None:
    """A thread that was sent to a part which another took meanwhile neither fetches nor finishes the file again."""
    moving: Any = SimpleNamespace(
        part_bytes=1 << 20,
        account=lambda count: None,
        retries=SimpleNamespace(call=lambda request, progress, what: request(), check=lambda: None),
    )
    entry = FileEntry("a.bin", len(DATA), hashlib.sha256(DATA).hexdigest())
    job = Download(moving, entry, tmp_path / "a.bin", "model/a.bin", durable=True)
    job.step(Session())
    assert (tmp_path / "a.bin").read_bytes() == DATA
    job.step(Session())
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == DATA
