"""Only what differs is moved, and it is known without asking about each object."""

from __future__ import annotations

import os
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from s3_proxy import Exchange, Faults, proxy
from store_models import MIB, Model, Server, needs_seaweedfs, start_call, tree

from berth import manifest, objects, seaweed, staging, store
from berth.errors import BerthError
from berth.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_seaweedfs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweed.embedded_store(tmp_path_factory.mktemp("seaweed")) as endpoint:
        server = Server(endpoint)
        yield server
        server.client.close()


def remade(model: Model) -> None:
    """The manifest after a change of the files."""
    manifest.write_manifest(model.manifest_path, manifest.build_manifest(model.dir, model.manifest.source))


def requests(faults: Faults) -> list[str]:
    return sorted({f"{e.method} {e.path.partition('?')[0].rpartition('/')[2]}" for e in faults.seen})


def test_an_unchanged_model_costs_a_listing_and_no_request_per_object(server: Server, tmp_path: Path) -> None:
    """A push and a stage of what is right already ask for a few objects of Berth's own, however many files."""
    model = Model(tmp_path / "source", {f"{n}.bin": 100 for n in range(60)}, "differs/many")
    dest = tmp_path / "dest"
    store.push_model(**model.push_arguments(server))
    store.stage_model(**model.stage_arguments(server, dest))
    with proxy(server.endpoint.endpoint_url) as (url, faults):
        pushed = store.push_model(**model.push_arguments(server) | {"endpoint_url": url})
        assert pushed["sent_bytes"] == 0
        assert len(faults.seen) <= 6, requests(faults)
        faults.seen.clear()
        store.stage_model(**model.stage_arguments(server, dest) | {"endpoint_url": url})
        assert requests(faults) == ["GET many.manifest.json"]


def test_a_listing_over_several_pages_is_what_boto3_reads(server: Server) -> None:
    """Names with spaces, percents, pluses, ampersands and accents, two to a page, have boto3's own keys and sizes."""
    names = ["a b.json", "a%20b.json", "a+b.json", "c/d&e.json", "c/f<g>.json", "größe.json", "z.json"]
    for number, name in enumerate(names):
        server.client.put_object(Bucket="models", Key=f"ORG/Odd/{name}", Body=b"x" * number)
    own: dict[str, tuple[int, str]] = {}

    def two_at_a_time(params: dict[str, Any], **_: Any) -> dict[str, Any]:
        return params | {"MaxKeys": 2}

    server.client.meta.events.register("provide-client-params.s3.ListObjectsV2", two_at_a_time)
    try:
        for page in server.client.get_paginator("list_objects_v2").paginate(Bucket="models", Prefix="ORG/Odd/"):
            own |= {i["Key"].removeprefix("ORG/Odd/"): (i["Size"], i["ETag"].strip('"')) for i in page["Contents"]}
        found = objects.list_objects(server.client, "models", "ORG/Odd")
    finally:
        server.client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", two_at_a_time)
    assert sorted(own) == sorted(names)
    assert {path: (entry.size, entry.etag) for path, entry in found.items()} == own


def test_a_push_of_an_older_berth_is_known_by_its_metadata(server: Server, tmp_path: Path) -> None:
    """Without the index each object is asked once, nothing is sent, and the index is there afterwards."""
    model = Model(tmp_path / "source", {"a.bin": 1000, "b.bin": 2000}, "differs/older")
    store.push_model(**model.push_arguments(server))
    server.client.delete_object(Bucket="models", Key=f"{model.prefix}.objects.json")
    again = store.push_model(**model.push_arguments(server))
    assert again["moved"]["objects"] == 0
    assert f"{model.prefix}.objects.json" in server.keys(model.prefix)


def test_an_object_of_another_process_is_no_part_of_a_model(server: Server, tmp_path: Path) -> None:
    """One that is replaced by as many other bytes before the push has ended is named, and no manifest says "whole"."""
    model = Model(tmp_path / "source", {"a.bin": 1000, "b.bin": 2000}, "differs/replaced")

    def replace_first(exchange: Exchange) -> None:
        if "list-type=2" in exchange.path and "differs" in exchange.path and server.keys(f"{model.prefix}/"):
            server.client.put_object(Bucket="models", Key=f"{model.prefix}/b.bin", Body=b"?" * 2000)

    with (
        proxy(server.endpoint.endpoint_url, before=replace_first) as (url, _),
        pytest.raises(BerthError, match=r"differs/replaced/b\.bin is .* does another process write there"),
    ):
        store.push_model(**model.push_arguments(server) | {"endpoint_url": url})
    assert store.manifest_key(model.prefix) not in server.keys("differs")
    assert store.push_model(**model.push_arguments(server))["moved"]["objects"] == 1


def test_a_renamed_file_moves_nothing(server: Server, tmp_path: Path) -> None:
    """The store copies it, the staged directory links it, and the old name is deleted on request."""
    model = Model(tmp_path / "source", {"old.bin": 3 * MIB, "b.bin": 100}, "differs/renamed")
    dest = tmp_path / "dest"
    store.push_model(**model.push_arguments(server))
    store.stage_model(**model.stage_arguments(server, dest))
    (model.dir / "old.bin").rename(model.dir / "new.bin")
    remade(model)
    pushed = store.push_model(**model.push_arguments(server))
    assert (pushed["moved"]["objects"], pushed["copied"], pushed["sent_bytes"]) == (
        0,
        {"objects": 1, "bytes": 3 * MIB},
        0,
    )
    head = server.client.head_object(Bucket="models", Key=f"{model.prefix}/new.bin")
    assert head["Metadata"]["sha256"] == manifest.read_manifest(model.manifest_path).files[1].sha256
    assert pushed["extra"]["objects"] == 1
    assert f"{model.prefix}/old.bin" in server.keys(model.prefix)
    staged = store.stage_model(**model.stage_arguments(server, dest))
    assert staged["fetched_bytes"] == 0
    assert tree(dest) == tree(model.dir)
    deleted = store.push_model(**model.push_arguments(server) | {"delete_extra": True})
    assert deleted["deleted"] == 1
    assert f"{model.prefix}/old.bin" not in server.keys(model.prefix)
    assert store.push_model(**model.push_arguments(server))["extra"]["objects"] == 0


def test_a_dry_run_says_what_would_move_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    """Push and stage name the files to move; neither objects nor directories nor receipts come to be."""
    model = Model(tmp_path / "source", {"a.bin": 1000, "b.bin": 2000}, "differs/dry")
    push = model.push_arguments(server)
    assert store.push_model(**push | {"dry_run": True})["files"] == ["a.bin", "b.bin"]
    assert server.keys(model.prefix) == set()
    store.push_model(**push)
    model.receipt_path.unlink()
    dest = tmp_path / "dest"
    assert store.stage_model(**model.stage_arguments(server, dest) | {"dry_run": True})["moved"]["bytes"] == 3000
    assert not dest.exists()
    store.stage_model(**model.stage_arguments(server, dest))
    (model.dir / "b.bin").write_bytes(b"?" * 2000)
    remade(model)
    assert store.push_model(**push | {"dry_run": True})["files"] == ["b.bin"]
    assert not model.receipt_path.exists()
    store.push_model(**push)
    assert store.stage_model(**model.stage_arguments(server, dest) | {"dry_run": True})["files"] == ["b.bin"]


def test_patterns_choose_what_is_staged(server: Server, tmp_path: Path) -> None:
    """Excluded files are not fetched, and the smaller model is whole by itself; without the patterns the rest comes."""
    model = Model(tmp_path / "source", {"a.safetensors": 1000, "original/a.pth": 2000}, "differs/patterns")
    store.push_model(**model.push_arguments(server))
    dest = tmp_path / "dest"
    stage = model.stage_arguments(server, dest)
    assert store.stage_model(**stage | {"exclude": ("original/*",)})["moved"] == {"objects": 1, "bytes": 1000}
    assert set(tree(dest)) == {"a.safetensors"}
    assert store.stage_model(**stage | {"exclude": ("original/*",)})["moved"]["objects"] == 0
    assert store.stage_model(**stage)["fetched_bytes"] == 2000
    assert tree(dest) == tree(model.dir)
    with pytest.raises(BerthError, match="leave no file"):
        store.stage_model(**stage | {"include": ("*.gguf",)})


def test_two_pushes_of_one_model_at_once_send_it_once(server: Server, tmp_path: Path) -> None:
    """One process works; the other waits and finds it done."""
    model = Model(tmp_path / "source", {"a.bin": 8 * MIB, "b.bin": 1000}, "differs/twice")
    slow = {"tuning": {"max_bandwidth_bytes_s": 6 * MIB, "part_bytes": 5 * MIB}}
    calls = [model.push_arguments(server) | slow | {"receipt_path": tmp_path / f"{n}.json"} for n in range(2)]
    processes = [start_call("push_model", arguments) for arguments in calls]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    sent = sorted(out.partition('"sent_bytes": ')[2].partition(",")[0] for out, _ in answers)
    assert sent == ["0", str(8 * MIB + 1000)]


def test_checksums_are_compared_once_after_the_kernel_was_started_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was staged without waiting for the disk is read again after a restart: what was lost is fetched."""
    model = Model(tmp_path / "source", {"a.bin": 1000, "b.bin": 2000}, "differs/boot")
    store.push_model(**model.push_arguments(server))
    dest = tmp_path / "dest"
    stage = model.stage_arguments(server, dest) | {"tuning": Tuning(durable=False)}
    store.stage_model(**stage)
    (dest / "b.bin").write_bytes(bytes(2000))
    assert store.stage_model(**stage)["moved"]["objects"] == 0
    monkeypatch.setattr(staging, "_BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another start\n")
    assert store.stage_model(**stage)["moved"] == {"objects": 1, "bytes": 2000}
    assert tree(dest) == tree(model.dir)


def test_a_public_bucket_needs_no_credentials(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `unsigned` no request carries a signature (the proxy adds one, which this SeaweedFS wants)."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    model = Model(tmp_path / "source", {"a.bin": 1000}, "differs/public")
    store.push_model(**model.push_arguments(server))
    signed: list[Any] = []

    def serve_unsigned(exchange: Any) -> None:
        signed.extend(name for name in exchange.headers if name.lower() == "authorization")
        key = exchange.path.partition("?")[0].removeprefix("/models/")
        exchange.answer = server.client.get_object(Bucket="models", Key=key)["Body"].read()
        exchange.status = 200

    with proxy(server.endpoint.endpoint_url, serve_unsigned) as (url, _):
        arguments = model.stage_arguments(server, tmp_path / "dest") | {"credentials": None, "unsigned": True}
        store.stage_model(**arguments | {"endpoint_url": url, "tuning": Tuning(engine="wire")})
    assert not signed
    assert tree(tmp_path / "dest") == tree(model.dir)


def test_a_custom_ca_is_trusted_and_others_are_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS both engines take the site's CA from AWS_CA_BUNDLE (network.ca_bundle), and refuse without it."""
    certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    model = Model(tmp_path / "source", {"a.bin": 6 * MIB}, "differs/tls")
    with proxy(server.endpoint.endpoint_url, tls=context) as (url, _):
        with pytest.raises(BerthError, match="AWS_CA_BUNDLE"):
            store.push_model(**model.push_arguments(server) | {"endpoint_url": url})
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        for engine in ("wire", "boto3"):
            tuning = {"tuning": Tuning(engine=engine, part_bytes=5 * MIB), "endpoint_url": url}  # type: ignore[arg-type]
            arguments = model.push_arguments(server) | tuning | {"prefix": f"differs/tls-{engine}"}
            assert store.push_model(**arguments)["engine"] == engine
            stage = model.stage_arguments(server, tmp_path / engine) | tuning | {"prefix": f"differs/tls-{engine}"}
            store.stage_model(**stage)
            assert tree(tmp_path / engine) == tree(model.dir)
