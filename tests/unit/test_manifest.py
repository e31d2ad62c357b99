from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from berth.errors import BerthError
from berth.manifest import (
    FileEntry,
    Manifest,
    build_manifest,
    manifest_json,
    read_manifest,
    tree_problems,
    verify_tree,
    write_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = {"kind": "hub", "repo": "org/name", "revision": "a" * 40, "licence": "apache-2.0"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"alpha")
    (root / "sub" / "b.bin").write_bytes(b"\0" * 1000)
    (root / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (root / ".cache" / "huggingface" / "download" / "a.txt.metadata").write_text("bookkeeping")
    return root


def test_manifest_lists_each_file_and_leaves_out_the_hubs_bookkeeping(tree: Path) -> None:
    """Paths are POSIX and sorted, sizes and SHA-256 are those of the bytes."""
    manifest = build_manifest(tree, SOURCE)
    assert manifest.files == (
        FileEntry("a.txt", 5, hashlib.sha256(b"alpha").hexdigest()),
        FileEntry("sub/b.bin", 1000, hashlib.sha256(b"\0" * 1000).hexdigest()),
    )
    assert manifest.total_bytes == 1005


def test_a_known_checksum_is_taken_as_it_is(tree: Path) -> None:
    """A file whose SHA-256 the caller has verified is not read again."""
    assert build_manifest(tree, SOURCE, {"a.txt": "f" * 64}).files[0].sha256 == "f" * 64


def test_a_written_manifest_is_read_back_the_same(tree: Path, tmp_path: Path) -> None:
    """Writing and reading keep every field."""
    manifest = build_manifest(tree, SOURCE)
    write_manifest(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path / "manifest.json") == manifest


def test_an_empty_directory_has_no_manifest(tmp_path: Path) -> None:
    """Nothing to describe is an error, not an empty manifest that looks complete."""
    with pytest.raises(BerthError, match="has no files"):
        build_manifest(tmp_path, SOURCE)


def edited(**changes: object) -> str:
    value = manifest_json(Manifest(SOURCE, (FileEntry("a", 1, "0" * 64),)))
    return json.dumps(value | changes)


def entry(**changes: object) -> str:
    return edited(files=[{"path": "a", "size": 1, "sha256": "0" * 64} | changes])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited()[:-20], "cut short"),
        ("", "cut short"),
        ("[1]", "no manifest of Berth"),
        ('{"some": "json"}', "no manifest of Berth"),
        (edited(schema=2), "newer than this Berth.*update Berth"),
        (edited(files=[]), "`source` or `files` is missing"),
        (edited(total_bytes=2), "total_bytes is 2, its files add up to 1"),
        (entry(path="../../etc/passwd"), "not below the model directory"),
        (entry(path="/etc/passwd"), "not below the model directory"),
        (entry(size=-1), "the size of a is -1"),
        (entry(sha256="xyz"), "the sha256 of a is 'xyz'"),
        (edited(files=[{"path": "a", "size": 1, "sha256": "0" * 64}] * 2, total_bytes=2), "listed twice"),
        (edited(files=["a"]), "is no object"),
    ],
)
def test_an_unusable_manifest_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    """Truncated, foreign, newer and inconsistent files are refused with the file's name and the reason."""
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(BerthError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_a_missing_manifest_says_which_step_makes_it(tmp_path: Path) -> None:
    """The error names the rule that writes the manifest."""
    with pytest.raises(BerthError, match="rule download_model"):
        read_manifest(tmp_path / "manifest.json")


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Binary bytes are a foreign file, not a crash."""
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BerthError, match="not a usable manifest"):
        read_manifest(tmp_path / "manifest.json")


def test_an_unchanged_tree_verifies(tree: Path) -> None:
    """No problem is found in the directory that the manifest was made of."""
    manifest = build_manifest(tree, SOURCE)
    verify_tree(tree, manifest)
    assert tree_problems(tree, manifest) == ()


def test_every_damaged_file_is_named(tree: Path) -> None:
    """Missing, wrong-size, wrong-content and unexpected files are all in one error."""
    (tree / "c").write_bytes(b"c")
    (tree / "d").write_bytes(b"d")
    manifest = build_manifest(tree, SOURCE)
    (tree / "a.txt").write_bytes(b"ALPHA")
    (tree / "sub" / "b.bin").write_bytes(b"\0" * 999)
    (tree / "c").unlink()
    (tree / "extra.safetensors").write_bytes(b"x")
    assert {(p.path, p.kind) for p in tree_problems(tree, manifest)} == {
        ("a.txt", "sha256"),
        ("sub/b.bin", "size"),
        ("c", "missing"),
        ("extra.safetensors", "unexpected"),
    }
    with pytest.raises(BerthError) as caught:
        verify_tree(tree, manifest)
    assert "sub/b.bin has 999 bytes instead of 1000" in str(caught.value)
    assert "extra.safetensors is not in the manifest" in str(caught.value)


def test_without_checksums_only_names_and_sizes_count(tree: Path) -> None:
    """The quick check does not read the files, so equal sizes pass."""
    manifest = build_manifest(tree, SOURCE)
    (tree / "a.txt").write_bytes(b"ALPHA")
    verify_tree(tree, manifest, checksums=False)
    (tree / "a.txt").write_bytes(b"longer")
    with pytest.raises(BerthError, match=r"a\.txt has 6 bytes"):
        verify_tree(tree, manifest, checksums=False)


def test_a_directory_that_is_gone_has_every_file_missing(tree: Path, tmp_path: Path) -> None:
    """A lost directory is reported file by file."""
    manifest = build_manifest(tree, SOURCE)
    assert {p.kind for p in tree_problems(tmp_path / "nowhere", manifest)} == {"missing"}
