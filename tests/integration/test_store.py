"""Push and stage against a real S3 server (SeaweedFS)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from s3_proxy import Exchange, proxy
from small_disk import small_disk
from store_models import MIB, Model, Server, needs_seaweedfs, slowly, start_call, tree, wait_for

from berth import manifest, seaweed, store, weed
from berth.errors import BerthError
from berth.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = needs_seaweedfs

HOLDER = """
import sys, time
from pathlib import Path
from berth.seaweed import embedded_store
with embedded_store(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweed.embedded_store(tmp_path_factory.mktemp("seaweed")) as endpoint:
        server = Server(endpoint)
        yield server
        server.client.close()


@pytest.fixture
def make_model(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Model]:
    def make(sizes: dict[str, int] | None = None) -> Model:
        chosen = sizes or {"config.json": 300, "empty": 0, "weights/a.safetensors": 20 * MIB, "LICENSE": 11_000}
        return Model(tmp_path / "source", chosen, f"tests/{request.node.name}")

    return make


def test_round_trip_is_byte_identical_and_receipts_account_for_it(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """A staged model has the same files as the pushed one, and both receipts list each with its checksum."""
    model = make_model()
    pushed = store.push_model(**model.push_arguments(server))
    staged = store.stage_model(**model.stage_arguments(server, tmp_path / "dest"), manifest_path=model.manifest_path)
    assert tree(tmp_path / "dest") == tree(model.dir)
    assert {o["key"]: o["sha256"] for o in pushed["objects"]} == {
        f"{model.prefix}/{f.path}": f.sha256 for f in model.manifest.files
    }
    assert pushed["moved"] == staged["moved"] == {"objects": 4, "bytes": model.manifest.total_bytes}
    assert json.loads(model.receipt_path.read_text()) == pushed
    assert pushed["manifest"] == staged["manifest"]
    assert server.endpoint.credentials["AWS_SECRET_ACCESS_KEY"] not in model.receipt_path.read_text()
    assert server.endpoint.credentials["AWS_ACCESS_KEY_ID"] not in model.receipt_path.read_text()


def test_a_second_push_and_a_second_stage_move_nothing(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """What is right already is neither sent nor fetched nor written again."""
    model = make_model()
    store.push_model(**model.push_arguments(server))
    dest = tmp_path / "dest"
    store.stage_model(**model.stage_arguments(server, dest))
    objects = server.client.list_objects_v2(Bucket="models", Prefix=model.prefix)["Contents"]
    files = {p: p.stat() for p in dest.rglob("*")}
    assert store.push_model(**model.push_arguments(server))["moved"] == {"objects": 0, "bytes": 0}
    for verify in (False, True):
        again = store.stage_model(**model.stage_arguments(server, dest), verify_checksums=verify)
        assert again["moved"]["objects"] == 0
    assert server.client.list_objects_v2(Bucket="models", Prefix=model.prefix)["Contents"] == objects
    assert {p: p.stat().st_mtime_ns for p in dest.rglob("*")} == {p: s.st_mtime_ns for p, s in files.items()}


def test_one_changed_file_moves_alone(server: Server, make_model: Callable[..., Model], tmp_path: Path) -> None:
    """After a change of one file of the same size, push and stage move that file and no other."""
    model = make_model()
    dest = tmp_path / "dest"
    store.push_model(**model.push_arguments(server))
    store.stage_model(**model.stage_arguments(server, dest))
    (model.dir / "config.json").write_bytes(b"x" * 300)
    manifest.write_manifest(model.manifest_path, manifest.build_manifest(model.dir, model.manifest.source))
    assert store.push_model(**model.push_arguments(server))["moved"] == {"objects": 1, "bytes": 300}
    assert store.stage_model(**model.stage_arguments(server, dest))["moved"] == {"objects": 1, "bytes": 300}
    assert tree(dest) == tree(model.dir)


def test_killed_push_is_no_model_and_the_next_push_goes_on(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """SIGKILL in the middle of an upload leaves no manifest object; a second push sends only the parts that lack."""
    model = make_model({"model.safetensors": 64 * MIB})
    process = start_call("push_model", model.push_arguments(server) | slowly(16 * MIB))
    try:
        parts: list[Any] = []

        def some_parts() -> bool:
            place = {"Bucket": "models", "Key": f"{model.prefix}/model.safetensors"}
            for upload in server.client.list_multipart_uploads(Bucket="models", Prefix=model.prefix).get("Uploads", []):
                parts[:] = server.client.list_parts(**place, UploadId=upload["UploadId"]).get("Parts", [])
            return len(parts) >= 3

        wait_for(some_parts)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert server.keys(model.prefix) == set()
    with pytest.raises(BerthError, match=r"manifest\.json.*not pushed, or not to the end"):
        store.stage_model(**model.stage_arguments(server, tmp_path / "dest"))
    assert not (tmp_path / "dest").exists()
    receipt = store.push_model(**model.push_arguments(server))
    assert receipt["moved"] == {"objects": 1, "bytes": 64 * MIB}
    assert receipt["sent_bytes"] <= 64 * MIB - sum(part["Size"] for part in parts)
    store.stage_model(**model.stage_arguments(server, tmp_path / "dest"))
    assert tree(tmp_path / "dest") == tree(model.dir)
    assert not server.client.list_multipart_uploads(Bucket="models", Prefix=model.prefix).get("Uploads")


def test_killed_stage_goes_on_without_what_it_has(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """SIGKILL during a stage leaves no model directory, and the next stage fetches only the parts that lack."""
    model = make_model({"a.bin": 2 * MIB, "b.bin": 32 * MIB})
    store.push_model(**model.push_arguments(server))
    dest, done = tmp_path / "dest", tmp_path / "dest.partial" / ".b.bin.part.map"
    process = start_call("stage_model", model.stage_arguments(server, dest) | slowly(8 * MIB))
    try:
        wait_for(lambda: done.exists() and done.read_text().count("\n") >= 3)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert not dest.exists()
    parts = done.read_text().count("\n") - 1
    again = {"tuning": Tuning(part_bytes=5 * MIB)}
    receipt = store.stage_model(**model.stage_arguments(server, dest) | again)
    assert receipt["fetched_bytes"] <= 34 * MIB - parts * 5 * MIB + 3 * MIB
    assert tree(dest) == tree(model.dir)
    assert not (tmp_path / "dest.partial").exists()


def test_two_stages_of_one_model_at_once_fetch_it_once(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """One process works; the other waits and finds the model."""
    model = make_model({"a.bin": 8 * MIB, "b.bin": 1000})
    store.push_model(**model.push_arguments(server))
    arguments = model.stage_arguments(server, tmp_path / "dest") | slowly(4 * MIB)
    processes = [start_call("stage_model", arguments) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert sorted(json.loads(out)["moved"]["objects"] for out, _ in answers) == [0, 2]
    assert tree(tmp_path / "dest") == tree(model.dir)


@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing"])
def test_a_damaged_object_is_named_and_nothing_appears(
    server: Server, make_model: Callable[..., Model], tmp_path: Path, damage: str
) -> None:
    """An object with a flipped byte, of another size, or gone, is found by stage, which leaves no model directory."""
    model = make_model({"a.bin": 1000, "b.bin": 5000})
    store.push_model(**model.push_arguments(server))
    key, body = f"{model.prefix}/b.bin", bytearray((model.dir / "b.bin").read_bytes())
    if damage == "missing":
        server.client.delete_object(Bucket="models", Key=key)
    else:
        body[100] ^= 1
        kept = bytes(body) if damage == "flipped" else bytes(body[:-1])
        server.client.put_object(
            Bucket="models", Key=key, Body=kept, Metadata={"sha256": model.manifest.files[1].sha256}
        )
    said = {"flipped": "has SHA-256", "shorter": "has 4999 bytes instead of 5000", "missing": "is missing"}[damage]
    with pytest.raises(BerthError, match=f"b.bin {said}"):
        store.stage_model(**model.stage_arguments(server, tmp_path / "dest"))
    assert not (tmp_path / "dest").exists()
    assert not (tmp_path / "dest.receipt.json").exists()
    server.client.delete_object(Bucket="models", Key=key)
    store.push_model(**model.push_arguments(server))
    store.stage_model(**model.stage_arguments(server, tmp_path / "dest"))
    assert tree(tmp_path / "dest") == tree(model.dir)


def test_a_damaged_model_directory_is_repaired(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """A file of the staged directory that changed is fetched again, alone; a file too many goes away."""
    model = make_model({"a.bin": 1000, "b.bin": 5000})
    dest = tmp_path / "dest"
    store.push_model(**model.push_arguments(server))
    store.stage_model(**model.stage_arguments(server, dest))
    (dest / "b.bin").write_bytes(b"?" * 5000)
    (dest / "old.safetensors").write_bytes(b"x")
    receipt = store.stage_model(**model.stage_arguments(server, dest), verify_checksums=True)
    assert receipt["moved"] == {"objects": 1, "bytes": 5000}
    assert tree(dest) == tree(model.dir)


def test_a_foreign_directory_is_left_alone(server: Server, make_model: Callable[..., Model], tmp_path: Path) -> None:
    """Stage refuses to replace a directory that it did not make."""
    model = make_model({"a.bin": 1000})
    store.push_model(**model.push_arguments(server))
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "thesis.tex").write_text("years of work")
    with pytest.raises(BerthError, match="was not staged by Berth"):
        store.stage_model(**model.stage_arguments(server, tmp_path / "dest"))
    assert (tmp_path / "dest" / "thesis.tex").read_text() == "years of work"


def test_a_changed_local_file_is_not_pushed(server: Server, make_model: Callable[..., Model]) -> None:
    """A file that differs from the manifest is named, and the store gets no manifest."""
    model = make_model({"a.bin": 1000})
    (model.dir / "a.bin").write_bytes(b"?" * 1000)
    with pytest.raises(BerthError, match=r"a\.bin has SHA-256 .* so it is not pushed"):
        store.push_model(**model.push_arguments(server))
    assert server.keys(model.prefix) == set()


def test_another_revision_than_expected_is_refused(
    server: Server, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    """Stage with an expected manifest refuses a store that holds another one."""
    model = make_model({"a.bin": 1000})
    store.push_model(**model.push_arguments(server))
    manifest.write_manifest(model.manifest_path, manifest.Manifest({"revision": "x"}, model.manifest.files))
    with pytest.raises(BerthError, match="another revision"):
        store.stage_model(**model.stage_arguments(server, tmp_path / "d"), manifest_path=model.manifest_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"credentials": {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "x"}},
            "does not know this access key",
        ),
        ({"bucket": "ab"}, "3 to 63"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"endpoint_url": "ftp://x"}, "http://HOST:PORT"),
        ({"endpoint_url": "http://key:hunter2@127.0.0.1:9"}, "end up in logs"),
        ({"bucket": "nobody-made-this"}, "does not exist"),
    ],
)
def test_one_clear_error(
    server: Server, make_model: Callable[..., Model], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """Each wrong value gives one error that says what is wrong, from push and from stage, and prints no secret."""
    model = make_model({"a.bin": 10})
    push = model.push_arguments(server) | {"create_bucket": False} | change
    stage = model.stage_arguments(server, tmp_path / "dest") | change
    for call, arguments in ((store.push_model, push), (store.stage_model, stage)):
        with pytest.raises(BerthError, match=said) as caught:
            call(**arguments)
        assert "hunter2" not in str(caught.value)
    assert not model.receipt_path.exists()
    assert not (tmp_path / "dest").exists()


def test_wrong_secret_names_the_variables(server: Server, make_model: Callable[..., Model]) -> None:
    """A wrong secret key is explained, and neither key of the pair is shown."""
    model = make_model({"a.bin": 10})
    wrong = server.endpoint.credentials | {"AWS_SECRET_ACCESS_KEY": "wrong-secret-value"}
    with pytest.raises(BerthError, match=r"secret key does not belong.*AWS_SECRET_ACCESS_KEY") as caught:
        store.push_model(**model.push_arguments(server) | {"credentials": wrong})
    assert "wrong-secret-value" not in str(caught.value)


def test_missing_credentials_are_named(
    server: Server, make_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials anywhere the error names the variables to set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    model = make_model({"a.bin": 10})
    with pytest.raises(BerthError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.push_model(**model.push_arguments(server) | {"credentials": None})


def test_credentials_come_from_the_environment(
    server: Server, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials of its own the store uses boto3's chain."""
    for name, value in server.endpoint.credentials.items():
        monkeypatch.setenv(name, value)
    model = make_model({"a.bin": 10})
    assert store.push_model(**model.push_arguments(server) | {"credentials": None})["moved"]["objects"] == 1


def test_missing_bucket_is_made(server: Server, make_model: Callable[..., Model]) -> None:
    """Push makes a bucket that is missing."""
    model = make_model({"a.bin": 10})
    store.push_model(**model.push_arguments(server) | {"bucket": "made-by-push"})
    assert "made-by-push" in [b["Name"] for b in server.client.list_buckets()["Buckets"]]


def refuse_checksums(exchange: Exchange) -> None:
    if "x-amz-sdk-checksum-algorithm" in {name.lower() for name in exchange.headers}:
        exchange.fail(501, "NotImplemented")


def changed() -> contextlib.AbstractContextManager[Any]:
    return pytest.raises(BerthError, match="came back changed")


def change_probes(exchange: Exchange) -> None:
    if exchange.method == "GET" and "probe" in exchange.path:
        exchange.answer = exchange.answer.swapcase()


def test_a_store_without_new_checksums_is_used_without_them(
    server: Server, make_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that refuses the SDK's checksums is found by the probe, unless the environment decides."""
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)
    model = make_model({"a.bin": 1000})
    assert store.push_model(**model.push_arguments(server))["checksum_mode"] == "when_supported"
    with proxy(server.endpoint.endpoint_url, refuse_checksums) as (url, _):
        arguments = model.push_arguments(server) | {"endpoint_url": url, "prefix": "tests/other"}
        assert store.push_model(**arguments)["checksum_mode"] == "when_required"
        stage = model.stage_arguments(server, tmp_path / "dest") | {"endpoint_url": url, "prefix": "tests/other"}
        store.stage_model(**stage)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        with pytest.raises(BerthError, match="NotImplemented"):
            store.push_model(**arguments)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    assert store.push_model(**model.push_arguments(server))["checksum_mode"] == "when_required"
    assert tree(tmp_path / "dest") == tree(model.dir)


def test_clock_skew_is_explained(server: Server, make_model: Callable[..., Model]) -> None:
    """S3's answer to a wrong clock is explained (given by a proxy: SeaweedFS does not check, and clocks stay put)."""
    model = make_model({"a.bin": 10})
    fault = lambda exchange: exchange.fail(403, "RequestTimeTooSkewed")  # noqa: E731
    with proxy(server.endpoint.endpoint_url, fault) as (url, _), pytest.raises(BerthError, match="set the clock"):
        store.push_model(**model.push_arguments(server) | {"endpoint_url": url})


def test_a_store_that_changes_objects_is_refused(server: Server, make_model: Callable[..., Model]) -> None:
    """When the probe comes back changed in every mode, nothing is pushed."""
    model = make_model({"a.bin": 1000})
    with (
        proxy(server.endpoint.endpoint_url, after=change_probes) as (url, _),
        pytest.raises(BerthError, match="came back changed"),
    ):
        store.push_model(**model.push_arguments(server) | {"endpoint_url": url})
    assert f"{model.prefix}/a.bin" not in server.keys(model.prefix)


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=4m", "needs 8.4 MB"), ("size=64m,nr_inodes=4", "became full")],
    ids=["known before", "found while writing"],
)
def test_full_disk_is_one_clear_error(
    server: Server, make_model: Callable[..., Model], tmp_path: Path, options: str, said: str
) -> None:
    """No room for the model, or a disk that fills up meanwhile: the place is named and no model appears."""
    model = make_model({"a.bin": 4 * MIB, "b/c/d/e.bin": 4 * MIB})
    store.push_model(**model.push_arguments(server))
    with small_disk(tmp_path / "disk", options) as disk:
        with pytest.raises(BerthError, match=f"{said}|{disk}"):
            store.stage_model(**model.stage_arguments(server, disk / "dest"))
        assert not (disk / "dest").exists()


def start_holder(data_dir: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "ready\n"
    return holder, psutil.Process(json.loads((data_dir / "holder.json").read_text())["pid"])


def test_a_leftover_store_is_ended_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    """While a holder lives the next user waits; after its SIGKILL the next one ends its server, and only that one."""
    data_dir = tmp_path / "store"
    ports = weed.free_ports(2)
    foreign = subprocess.Popen(
        [
            *(str(weed.find_weed()), "master", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-mdir={tmp_path}"),
            *(f"-port={ports[0]}", f"-port.grpc={ports[1]}", "-telemetry=false"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    holder, leftover = start_holder(data_dir)
    try:
        with (
            pytest.raises(BerthError, match="still holds this lock"),
            seaweed.embedded_store(data_dir, lock_timeout_s=0.1),
        ):
            pass
        # A server that hangs: it does not even notice that its holder dies.
        leftover.suspend()
        holder.kill()
        holder.wait()
        assert leftover.is_running()
        with seaweed.embedded_store(data_dir) as endpoint:
            assert not leftover.is_running()
            assert endpoint.endpoint_url.startswith("http://127.0.0.1:")
        assert foreign.poll() is None
    finally:
        for process in (holder, foreign):
            process.kill()
            process.wait()
        assert holder.stdout
        holder.stdout.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            leftover.kill()


def test_sigterm_ends_the_store_and_its_objects_survive(make_model: Callable[..., Model], tmp_path: Path) -> None:
    """SIGTERM to a rule ends its server; the next rule, with a new server and new ports, has what the first pushed."""
    model = make_model({"a.bin": 100_000})
    data_dir = tmp_path / "store"
    holder, process = start_holder(data_dir)
    keys = json.loads((data_dir / "secrets.json").read_text())
    credentials = {"AWS_ACCESS_KEY_ID": keys["access_key"], "AWS_SECRET_ACCESS_KEY": keys["secret_key"]}
    port = json.loads((data_dir / "holder.json").read_text())["ports"]["s3.port"]
    place = {"bucket": "models", "endpoint_url": f"http://127.0.0.1:{port}", "credentials": credentials}
    try:
        push = {"model_dir": model.dir, "manifest_path": model.manifest_path, "receipt_path": model.receipt_path}
        store.push_model(**place, **push, prefix="first")
        holder.send_signal(signal.SIGTERM)
        holder.communicate(timeout=60)
        assert holder.returncode != 0
        assert not process.is_running()
    finally:
        holder.kill()
        holder.wait()
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600
    with seaweed.embedded_store(data_dir) as endpoint:
        assert endpoint.credentials == credentials
        place["endpoint_url"] = endpoint.endpoint_url
        assert store.push_model(**place, **push, prefix="second")["moved"]["objects"] == 1
        # What was written after the restart must not have taken the place of what was there.
        for prefix in ("first", "second"):
            store.stage_model(**place, prefix=prefix, dest=tmp_path / prefix, receipt_path=tmp_path / "r.json")
            assert tree(tmp_path / prefix) == tree(model.dir)
    assert not (data_dir / "holder.json").exists()
