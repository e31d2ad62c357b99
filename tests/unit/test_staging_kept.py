"""What a stage reads of a directory that has an earlier revision of the model."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from berth import manifest, staging

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read for its SHA-256, by name."""
    counted: Counter[str] = Counter()
    real = manifest.sha256_file

    def counting(path: Path) -> str:
        counted[path.name] += 1
        return real(path)

    monkeypatch.setattr(manifest, "sha256_file", counting)
    return counted


def staged(dest: Path, files: dict[str, bytes]) -> bytes:
    """A directory as an earlier stage left it; its manifest's bytes."""
    dest.mkdir()
    for name, content in files.items():
        (dest / name).write_bytes(content)
    body = json.dumps(manifest.manifest_json(manifest.build_manifest(dest, {"kind": "generate"}))).encode()
    staging.staged_manifest(dest).write_bytes(body)
    return body


def wanted(folder: Path, files: dict[str, bytes]) -> tuple[manifest.Manifest, bytes]:
    """The manifest of the revision to come."""
    body = staged(folder, files)
    return manifest.parse_manifest(json.loads(body), "test"), body


def test_another_revision_reads_what_it_keeps_once(tmp_path: Path, read: Counter[str]) -> None:
    """Kept and renamed files are read once and linked; one that is told to be another is not read, though as large."""
    staged(tmp_path / "dest", {"a": b"aaaa", "b": b"bbbb", "old": b"cccc"})
    new, body = wanted(tmp_path / "new", {"a": b"aaaa", "b": b"BBBB", "renamed": b"cccc"})
    read.clear()
    assert not staging.is_staged(tmp_path / "dest", new, body, verify_checksums=False)
    partial = staging.resume(tmp_path / "dest", new, body)
    assert read == {"a": 1, "old": 1}
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == {"a": b"aaaa", "renamed": b"cccc"}


def test_a_byte_that_changed_since_is_not_kept(tmp_path: Path) -> None:
    """A file whose size is that of its manifest and whose content is not is fetched again."""
    staged(tmp_path / "dest", {"a": b"aaaa", "b": b"bbbb"})
    (tmp_path / "dest/a").write_bytes(b"aaxa")
    new, body = wanted(tmp_path / "new", {"a": b"aaaa", "b": b"BBBB"})
    partial = staging.resume(tmp_path / "dest", new, body)
    assert list(partial.iterdir()) == []


def test_a_stage_that_was_killed_before_its_manifest_is_found_whole(tmp_path: Path) -> None:
    """The directory has appeared, and beside it lies the manifest of the one that it was gathered in."""
    staged(tmp_path / "dest", {"a": b"old!"})
    new, body = wanted(tmp_path / "new", {"a": b"new!"})
    (tmp_path / "dest/a").write_bytes(b"new!")
    staging.staged_manifest(staging.partial_of(tmp_path / "dest")).write_bytes(body)
    assert staging.is_staged(tmp_path / "dest", new, body, verify_checksums=False)
    assert staging.staged_manifest(tmp_path / "dest").read_bytes() == body
