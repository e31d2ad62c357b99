"""From one checkout into another without a network: packed, verified, unpacked, and then staged by Snakemake."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from shared_points import flip

from berth.bundle import pack_bundle
from berth.bundle_contents import BundleRequest
from berth.errors import BerthError
from berth.fsio import sha256_file, write_json
from berth.manifest import build_manifest, read_manifest, verify_tree, write_manifest
from berth.unbundle import BundleError, unpack, verify
from berth.wheels import build_requirements, download_wheels

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"seed": 0, "vocab_size": 4096, "hidden_size": 128, "layers": 2, "heads": 4}
REQUEST = BundleRequest("", "", "results", "local", ["tiny-llama"], ["sharegpt-like-half"], [], wheels=False)
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--profile", "profiles/local"]


def checkout(path: Path) -> Path:
    """A checkout with a downloaded model and a dataset."""
    for name in ("Snakefile", "environment.yml", "workflow", "config", "profiles", "src", "data"):
        path.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(ROOT / name, path / name)
    model = path / "results/models/tiny-llama"
    (model / "files/tokenizer").mkdir(parents=True)
    for name, size in (("model.safetensors", 300_000), ("config.json", 10), ("tokenizer/tokenizer.json", 1000)):
        (model / "files" / name).write_bytes(os.urandom(size))
    source = {"kind": "generate", "repo": "berth/tiny-llama", "revision": None, "shape": SHAPE}
    write_manifest(model / "manifest.json", build_manifest(model / "files", source))
    dataset = path / "results/datasets/sharegpt-like-half"
    write_json(dataset / "sharegpt.json", [{"id": "1", "conversations": []}])
    write_json(dataset / "receipt.json", {"path": "sharegpt.json", "sha256": sha256_file(dataset / "sharegpt.json")})
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("bundle") / "first")


@pytest.fixture(scope="module")
def request_(first: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleRequest:
    """What is packed: with an image as one file, and one as a folder of blobs."""
    images = tmp_path_factory.mktemp("images")
    (images / "vllm.sif").write_bytes(os.urandom(50_000))
    (images / "vllm.dir").mkdir()
    (images / "vllm.dir/manifest.json").write_text("{}")
    receipt = {"kind": "container", "reference": "vllm:0.9.1", "digest": "sha256:1", "path": "", "archive": ""}
    folder = first / "results/images/local"
    write_json(
        folder / "a-1.json", {**receipt, "path": str(images / "vllm.sif"), "sha256": sha256_file(images / "vllm.sif")}
    )
    write_json(folder / "b-1.json", {**receipt, "archive": str(images / "vllm.dir")})
    asked = [{"recipe": name, "version": "1", "image": {"kind": "container"}} for name in "ab"]
    return dataclasses.replace(REQUEST, root=str(first), images=asked)


@pytest.fixture(scope="module")
def bundle(request_: BundleRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "berth.tar"
    pack_bundle(dataclasses.replace(request_, bundle=str(path)))
    return path


def test_what_was_interrupted_goes_on_to_the_same_bytes(request_: BundleRequest, bundle: Path, tmp_path: Path) -> None:
    """Whatever part of a bundle is there, and whatever byte of it is wrong, the result is that of one call."""
    whole, sha256 = bundle.read_bytes(), sha256_file(bundle)
    path = tmp_path / "again.tar"
    for cut in (0, 700, len(whole) // 2, len(whole) - 20_000):
        damaged = bytearray(whole[:cut])
        if cut > 1000:
            damaged[cut - 600] ^= 1
        path.with_name("again.tar.partial").write_bytes(damaged)
        pack_bundle(dataclasses.replace(request_, bundle=str(path)))
        assert sha256_file(path) == sha256
        path.unlink()
    shutil.copy(bundle, path)
    pack_bundle(dataclasses.replace(request_, bundle=str(path)))
    with pytest.raises(BerthError, match="a bundle of other contents"):
        pack_bundle(dataclasses.replace(request_, bundle=str(path), images=[]))
    assert sha256_file(path) == sha256


def test_a_damaged_source_is_not_packed(first: Path, tmp_path: Path) -> None:
    """A byte of a model that changed since it was downloaded is found while it is packed; there is no bundle."""
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    flip(copy / "results/models/tiny-llama/files/model.safetensors")
    with pytest.raises(BerthError, match=r"files/model.safetensors has SHA-256 .* so it is not packed"):
        pack_bundle(dataclasses.replace(REQUEST, root=str(copy), bundle=str(tmp_path / "b.tar")))
    assert not (tmp_path / "b.tar").exists()


def test_nothing_is_put_in_place_that_is_not_verified(bundle: Path, tmp_path: Path) -> None:
    """A flipped byte is named by its file, a bundle that is cut short is told; the next call goes on."""
    with tarfile.open(bundle) as tar:
        info = tar.getmember("results/models/tiny-llama/files/model.safetensors")
    broken = tmp_path / "broken.tar"
    shutil.copy(bundle, broken)
    flip(broken, info.offset_data + 7)
    dest = tmp_path / "dest"
    for call in (lambda: verify(broken), lambda: unpack(broken, dest)):
        with pytest.raises(BundleError, match=r"model.safetensors has SHA-256"):
            call()
    assert not dest.exists()
    for cut in (bundle.stat().st_size // 2, bundle.stat().st_size - 40_000):
        broken.write_bytes(bundle.read_bytes()[:cut])
        with pytest.raises(BundleError, match="cut short"):
            unpack(broken, dest)
    kept = tmp_path / "dest.partial/Snakefile"
    before = kept.stat().st_ino
    unpack(bundle, dest)
    assert (dest / "Snakefile").stat().st_ino == before
    unpack(bundle, dest)
    with pytest.raises(BundleError, match="is not this bundle"):
        unpack(bundle, tmp_path)
    receipts = {name: json.loads((dest / f"results/images/local/{name}-1.json").read_text()) for name in "ab"}
    assert sha256_file(Path(receipts["a"]["path"])) == receipts["a"]["sha256"]
    assert receipts["b"]["archive"] == f"{dest}/bundle/images/vllm.dir"
    assert (dest / "bundle/images/vllm.dir/manifest.json").read_text() == "{}"


def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    """A bundle that somebody made by hand cannot write elsewhere."""
    text = json.dumps(
        {"schema": 1, "members": [{"name": "../x", "size": 0, "sha256": ""}], "receipts": [], "notes": []}
    )
    (tmp_path / "MANIFEST.json").write_text(text)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../x"))
        tar.add(tmp_path / "MANIFEST.json", "MANIFEST.json")
    with pytest.raises(BundleError, match="no plain file below the bundle"):
        unpack(tmp_path / "b.tar", tmp_path / "dest")
    assert not (tmp_path / "x").exists()


def test_packages_come_from_where_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's own index or folder serves; another hash is refused; a folder that is whole is kept."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "")
        archive.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(
            "tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"tiny-thing==1.0 --hash=sha256:{sha256_file(wheel)}\n")
    folder = download_wheels(lock, tmp_path / "wheels", hashes=True)
    assert (folder / wheel.name).read_bytes() == wheel.read_bytes()
    wheel.unlink()
    download_wheels(lock, folder, hashes=True)
    lock.write_text(f"tiny-thing==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BerthError, match="bundle_wheels=false"):
        download_wheels(lock, folder, hashes=True)


def test_what_sources_are_built_with_comes_along(tmp_path: Path) -> None:
    """A package that comes as its sources is built at the other site: with what it names, or with pip's default."""
    assert build_requirements(tmp_path) == []
    for name, text in (("plain", ""), ("named", '[build-system]\nrequires = ["hatchling"]\n')):
        folder = tmp_path / f"{name}-1.0"
        folder.mkdir()
        (folder / ("pyproject.toml" if text else "setup.py")).write_text(text)
        with tarfile.open(tmp_path / f"{name}-1.0.tar.gz", "w:gz") as tar:
            tar.add(folder, folder.name)
    assert build_requirements(tmp_path) == ["hatchling", "setuptools>=40.8.0", "wheel"]


def set_unreachable_store(path: Path) -> None:
    file = path / "config/platforms/local.yaml"
    platform = yaml.safe_load(file.read_text())
    platform["store"] = {"kind": "s3", "bucket": "models", "endpoint_url": "http://127.0.0.1:9"}
    file.write_text(yaml.safe_dump(platform))


def run(path: Path, *arguments: str, isolated: bool = False) -> str:
    """The real Snakemake in a checkout; `isolated` where there is no network at all, if this user may have that."""
    offline = {"HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment = {**os.environ, "PYTHONPATH": str(path / "src"), "NO_COLOR": "1", **(offline if isolated else {})}
    before = ["unshare", "--net"] if isolated and os.geteuid() == 0 and shutil.which("unshare") else []
    command = [*before, *SNAKEMAKE, *arguments]
    done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_site_without_internet_goes_on_from_the_bundle(first: Path, tmp_path: Path) -> None:
    """Packed by Snakemake, unpacked by the file in the bundle alone; there nothing is downloaded, and staging works."""
    packed = tmp_path / "berth.tar"
    run(first, "pack_bundle", "--config", f"bundle={packed}", "bundle_wheels=false", 'select=["local"]')
    plain = Path(shutil.which("python3") or sys.executable)
    subprocess.run(["tar", "-xf", str(packed), "unpack.py"], cwd=tmp_path, check=True)
    second = tmp_path / "second"
    words = [str(plain), "-I", "unpack.py", str(packed), str(second)]
    told = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, check=True).stdout
    assert "all with the SHA-256 of the manifest" in told
    assert f"Checkout: {second}." in told

    set_unreachable_store(second)
    receipt = second / "results/staged/local/tiny-llama.json"
    needed = ("results/staged/local/tiny-llama.json", "results/datasets/sharegpt-like-half/receipt.json")
    told = run(second, *needed, isolated=True)
    # Model and dataset came along, and the store is not asked.
    assert set(re.findall(r"^(?:local)?rule (\w+):$", told, re.MULTILINE)) == {"stage_model"}
    staged: dict[str, Any] = json.loads(receipt.read_text())
    manifest = second / "results/models/tiny-llama/manifest.json"
    verify_tree(Path(staged["dest"]), read_manifest(manifest))
    assert staged["manifest"]["sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
