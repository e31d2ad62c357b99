"""A store of another kind: an object of several parts is listed with another ETag than its upload was answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rclone_server import rclone_store
from s3_proxy import proxy
from store_models import MIB, Model, Server, tree

from berth import s3, store
from berth.custody_model import ModelPlaces, model_chain
from berth.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARTS = {"tuning": Tuning(part_bytes=5 * MIB)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_store(tmp_path_factory.mktemp("rclone")) as endpoint:
        server = Server(endpoint)
        yield server
        server.client.close()


def test_files_of_several_parts_are_pushed_and_staged(server: Server, tmp_path: Path) -> None:
    """The model is whole, a second push asks for no object, and a model without its index is known by its metadata."""
    model = Model(tmp_path / "source", {"big.bin": 11 * MIB, "small.bin": 1000}, "ORG/Parts")
    push = model.push_arguments(server) | PARTS
    pushed = store.push_model(**push)
    head = server.client.head_object(Bucket="models", Key="ORG/Parts/big.bin")
    assert pushed["objects"][0]["etag"] == head["ETag"].strip('"')
    assert not pushed["objects"][0]["etag"].endswith("-3")
    dest = tmp_path / "dest"
    store.stage_model(**model.stage_arguments(server, dest) | PARTS)
    assert tree(dest) == tree(model.dir)
    with proxy(server.endpoint.endpoint_url) as (url, faults):
        assert store.push_model(**push | {"endpoint_url": url})["sent_bytes"] == 0
        assert faults.count("HEAD") == 0
    server.client.delete_object(Bucket="models", Key="ORG/Parts.objects.json")
    assert store.push_model(**push)["sent_bytes"] == 0


def test_its_metadata_is_a_link_of_custody(server: Server, tmp_path: Path) -> None:
    """The checksum in an object's metadata is read, whatever the case of its name."""
    model = Model(tmp_path / "source", {"a.bin": 1000}, "ORG/Kept")
    store.push_model(**model.push_arguments(server))
    assert "sha256" not in server.client.head_object(Bucket="models", Key="ORG/Kept/a.bin")["Metadata"]
    results = tmp_path / "results"
    (results / "models/kept").mkdir(parents=True)
    (results / "models/kept/manifest.json").write_bytes(model.manifest_path.read_bytes())
    identity = {"repo": "ORG/Kept", "generated": {}}
    places = ModelPlaces("kept", "ORG/Kept", identity, results, "hops", tmp_path, "", "ORG/Kept", quick=True)
    found = s3.Store("models", server.endpoint.endpoint_url, "us-east-1", "path", server.endpoint.credentials)
    links = {link.name: link for link in model_chain(places, found).chain.links}
    assert links["objects in the store"].verdict == "ok"
