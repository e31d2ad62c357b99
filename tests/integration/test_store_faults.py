"""Faults between a model and its store: nothing is lost, nothing wrong is accepted."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from s3_proxy import Exchange, proxy
from small_disk import small_disk
from store_models import MIB, Model, Server, needs_seaweedfs, start_call, tree

from berth import manifest, seaweed, store
from berth.errors import BerthError
from berth.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_seaweedfs

SIZES = {"a.safetensors": 12 * MIB, "b.safetensors": 11 * MIB + 7, "config.json": 300, "empty": 0}
SMALL_PARTS = {"tuning": Tuning(part_bytes=5 * MIB, connections=4), "max_attempts": 8}
KILLS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweed.embedded_store(tmp_path_factory.mktemp("seaweed")) as endpoint:
        server = Server(endpoint)
        yield server
        server.client.close()


@pytest.fixture(scope="module")
def pushed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that is in the store, for tests that only read it."""
    model = Model(tmp_path_factory.mktemp("pushed"), SIZES, "faults/pushed")
    store.push_model(**model.push_arguments(server) | SMALL_PARTS)
    return model


def every_tenth_503(exchange: Exchange) -> None:
    if exchange.number % 10 == 0:
        exchange.fail(503, "SlowDown")


def is_part_of_file(exchange: Exchange) -> bool:
    return exchange.method == "GET" and "safetensors" in exchange.path and exchange.status in {200, 206}


def cut_often(exchange: Exchange) -> None:
    """Every second answer with a part ends after a megabyte, with a reset."""
    if is_part_of_file(exchange) and exchange.number % 2:
        exchange.cut_after = MIB


def truncate_often(exchange: Exchange) -> None:
    """Every second answer with a part is whole for HTTP, and a thousand bytes short."""
    if is_part_of_file(exchange) and exchange.number % 2:
        exchange.answer = exchange.answer[:-1000]


class FlipOnce:
    """One byte of one answer is changed."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, exchange: Exchange) -> None:
        if is_part_of_file(exchange) and not self.done:
            self.done = True
            body = bytearray(exchange.answer)
            body[len(body) // 2] ^= 4
            exchange.answer = bytes(body)


@pytest.mark.parametrize("engine", ["wire", "boto3"])
@pytest.mark.parametrize(
    "fault",
    [
        lambda: {"before": every_tenth_503},
        lambda: {"after": cut_often},
        lambda: {"after": truncate_often},
        lambda: {"after": FlipOnce()},
    ],
    ids=["every tenth request 503", "connections cut", "bodies truncated", "a flipped byte"],
)
def test_a_download_gets_through(server: Server, pushed: Model, tmp_path: Path, engine: Any, fault: Any) -> None:
    """Busy answers, resets, short bodies and a damaged byte are met by asking again; what is staged is right."""
    tuning = Tuning(part_bytes=5 * MIB, connections=4, engine=engine)
    with proxy(server.endpoint.endpoint_url, **fault()) as (url, _):
        arguments = pushed.stage_arguments(server, tmp_path / "dest") | SMALL_PARTS
        receipt = store.stage_model(**arguments | {"endpoint_url": url, "tuning": tuning})
    assert receipt["engine"] == engine
    assert tree(tmp_path / "dest") == tree(pushed.dir)


def lose_parts(exchange: Exchange) -> None:
    """Every fourth part that is sent gets no answer, although the store has taken it."""
    if exchange.method == "PUT" and "partNumber" in exchange.path and exchange.number % 4 == 0:
        exchange.cut_after = 0


def flip_some(exchange: Exchange) -> None:
    """A byte of every third part is changed on its way to the store."""
    if exchange.method == "PUT" and "partNumber" in exchange.path and exchange.number % 3 == 0:
        body = bytearray(exchange.body)
        body[100] ^= 4
        exchange.body = bytes(body)


@pytest.mark.parametrize("engine", ["wire", "boto3"])
@pytest.mark.parametrize(
    "fault",
    [{"before": every_tenth_503, "after": lose_parts}, {"before": flip_some}],
    ids=["503 and lost answers", "flipped bytes"],
)
def test_an_upload_gets_through(server: Server, pushed: Model, tmp_path: Path, engine: Any, fault: Any) -> None:
    """Parts whose answer is lost or which arrive damaged are sent again; the objects are right."""
    prefix = f"faults/uploaded-{tmp_path.name}"
    tuning = Tuning(part_bytes=5 * MIB, connections=4, engine=engine)
    arguments = pushed.push_arguments(server) | SMALL_PARTS | {"prefix": prefix, "tuning": tuning}
    with proxy(server.endpoint.endpoint_url, **fault) as (url, _):
        store.push_model(**arguments | {"endpoint_url": url, "receipt_path": tmp_path / "receipt.json"})
    place = pushed.stage_arguments(server, tmp_path / "dest") | {"prefix": prefix}
    store.stage_model(**place)
    assert tree(tmp_path / "dest") == tree(pushed.dir)


def test_an_object_replaced_while_it_is_read_is_never_mixed(server: Server, tmp_path: Path) -> None:
    """Halves of two versions never make a file: the wrong new version is named, the right old one is taken."""
    model = Model(tmp_path / "source", {"a.bin": 16 * MIB}, "faults/replaced")
    store.push_model(**model.push_arguments(server) | SMALL_PARTS)
    key, right = f"{model.prefix}/a.bin", (model.dir / "a.bin").read_bytes()
    put = lambda body: server.client.put_object(Bucket="models", Key=key, Body=body)  # noqa: E731
    seen: list[int] = []

    def replace(exchange: Exchange) -> None:
        if is_part(exchange) and len(seen) < 3:
            seen.append(exchange.number)
            if len(seen) == 2:
                put(bytes(16 * MIB))

    def is_part(exchange: Exchange) -> bool:
        return exchange.method == "GET" and exchange.path.endswith("a.bin")

    arguments = model.stage_arguments(server, tmp_path / "dest") | SMALL_PARTS
    one = {"tuning": Tuning(part_bytes=5 * MIB, connections=1)}
    with (
        proxy(server.endpoint.endpoint_url, after=replace) as (url, _),
        pytest.raises(BerthError, match=r"a\.bin has SHA-256"),
    ):
        store.stage_model(**arguments | one | {"endpoint_url": url})
    assert not (tmp_path / "dest").exists()
    put(right)
    store.stage_model(**arguments | one)
    assert (tmp_path / "dest" / "a.bin").read_bytes() == right


def test_permission_denied_on_one_object_is_named(server: Server, pushed: Model, tmp_path: Path) -> None:
    """One object that may not be read ends the stage with its reason, and no model appears."""

    def deny(exchange: Exchange) -> None:
        if exchange.path.endswith("config.json"):
            exchange.fail(403, "AccessDenied")

    arguments = pushed.stage_arguments(server, tmp_path / "dest") | SMALL_PARTS
    with (
        proxy(server.endpoint.endpoint_url, deny) as (url, faults),
        pytest.raises(BerthError, match="ask for read, write and list"),
    ):
        store.stage_model(**arguments | {"endpoint_url": url})
    assert not (tmp_path / "dest").exists()
    # It will not pass, so it was asked for once.
    assert faults.count("GET", "config.json") == 1
    store.stage_model(**arguments)
    assert tree(tmp_path / "dest") == tree(pushed.dir)


def test_a_bucket_that_disappears_is_named(server: Server, tmp_path: Path) -> None:
    """A bucket that is deleted while a model is pushed or staged ends both with an error."""
    model = Model(tmp_path / "source", SIZES, "faults/gone")
    place = {"bucket": "short-lived"}
    deleted: list[int] = []

    def delete(exchange: Exchange) -> None:
        if not deleted and exchange.number > 12:
            deleted.append(exchange.number)
            names = server.client.list_objects_v2(Bucket="short-lived").get("Contents", [])
            for name in names:
                server.client.delete_object(Bucket="short-lived", Key=name["Key"])
            server.client.delete_bucket(Bucket="short-lived")
        if deleted:
            exchange.fail(404, "NoSuchBucket")

    push = model.push_arguments(server) | SMALL_PARTS | place
    with proxy(server.endpoint.endpoint_url, delete) as (url, _), pytest.raises(BerthError, match="does not exist"):
        store.push_model(**push | {"endpoint_url": url})
    assert deleted
    assert not model.receipt_path.exists()
    with pytest.raises(BerthError, match=r"not pushed|does not exist"):
        store.stage_model(**model.stage_arguments(server, tmp_path / "dest") | place)
    store.push_model(**push)
    store.stage_model(**model.stage_arguments(server, tmp_path / "dest") | place)
    assert tree(tmp_path / "dest") == tree(model.dir)


def test_a_disk_that_fills_up_keeps_what_is_whole(server: Server, pushed: Model, tmp_path: Path) -> None:
    """A full disk is one error that says where; with room again the stage goes on."""
    with small_disk(tmp_path / "disk", "size=30m") as disk:
        ballast = disk / "ballast"
        arguments = pushed.stage_arguments(server, disk / "dest") | SMALL_PARTS
        filled = threading.Event()

        def fill(exchange: Exchange) -> None:
            if is_part_of_file(exchange) and not filled.is_set():
                filled.set()
                with contextlib.suppress(OSError), ballast.open("wb") as handle:
                    for _ in range(18):
                        handle.write(bytes(MIB))
                        handle.flush()

        with (
            proxy(server.endpoint.endpoint_url, after=fill) as (url, _),
            pytest.raises(BerthError, match="became full"),
        ):
            store.stage_model(**arguments | {"endpoint_url": url})
        assert not (disk / "dest").exists()
        ballast.unlink()
        store.stage_model(**arguments)
        assert tree(disk / "dest") == tree(pushed.dir)


def test_a_store_that_is_away_for_a_while_is_waited_for(server: Server, pushed: Model, tmp_path: Path) -> None:
    """While the store is away for two seconds, requests fail, and the stage goes on when it is back."""
    away_until: list[float] = []

    def restart(exchange: Exchange) -> None:
        if exchange.number == 6:
            away_until.append(time.monotonic() + 2)
        if away_until and time.monotonic() < away_until[0]:
            exchange.status, exchange.cut_after = 1, 0

    with proxy(server.endpoint.endpoint_url, restart) as (url, faults):
        arguments = pushed.stage_arguments(server, tmp_path / "dest") | SMALL_PARTS
        store.stage_model(**arguments | {"endpoint_url": url})
        assert away_until
        assert len(faults.seen) > 8
    assert tree(tmp_path / "dest") == tree(pushed.dir)


def kill_and_go_on(arguments: dict[str, Any], action: str, after_s: float) -> None:
    """SIGKILL a push or a stage after some time; one that is done before is no error."""
    process = start_call(action, arguments)
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    out, err = process.communicate()
    assert process.returncode in {0, -9}, (out, err)


def test_sigkill_at_random_moments(server: Server, tmp_path: Path) -> None:
    """However often a push and a stage are killed, the run that completes has every byte right."""
    rng = random.Random(5)
    model = Model(tmp_path / "source", SIZES, "faults/killed")
    slow = {"tuning": {"part_bytes": 5 * MIB, "max_bandwidth_bytes_s": 10 * MIB, "abandoned_after_s": 0}}
    dest = tmp_path / "dest"
    for _ in range(KILLS):
        kill_and_go_on(model.push_arguments(server) | slow, "push_model", rng.uniform(0.8, 2.5))
        if f"{model.prefix}.manifest.json" in server.keys(model.prefix):
            store.stage_model(**model.stage_arguments(server, tmp_path / "early"))
            assert tree(tmp_path / "early") == tree(model.dir)
    store.push_model(**model.push_arguments(server) | {"tuning": Tuning(abandoned_after_s=0)})
    assert not server.client.list_multipart_uploads(Bucket="models", Prefix=model.prefix).get("Uploads")
    for _ in range(KILLS):
        kill_and_go_on(model.stage_arguments(server, dest) | slow, "stage_model", rng.uniform(0.8, 2.5))
        assert not dest.exists() or tree(dest) == tree(model.dir)
    store.stage_model(**model.stage_arguments(server, dest))
    assert tree(dest) == tree(model.dir)
    assert not manifest.tree_problems(dest, model.manifest)
