"""The chain of a measured point: its record and requests file, and what it says of image, dataset and model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth import s3, seal
from berth.custody_link import Chain
from berth.errors import BerthError
from berth.fsio import canonical_json, sha256_file, sha256_text
from berth.pointfiles import PointFiles, measured
from berth.record import read_record, read_requests
from berth.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from berth.custody_model import ModelChain

_COPIES = {"node": "the node's own copy", "shared": "the staged files", "volume": "a volume of the cluster"}
_OLD = "the record is of before `custody` existed"


@dataclass(frozen=True)
class PointPlaces:
    """Where a point is: the folder of results, its key, the platform at hand, and its prefix in the store."""

    results: Path
    key: str
    platform: str
    results_prefix: str


def point_chain(
    places: PointPlaces,
    model: Callable[[str], ModelChain | None],
    store: s3.Store | str,
    told: Collection[str] = (),
) -> Chain:
    """Every link of a point that can be checked from here.

    `model` gives the chain of a model by its name, whose links become this chain's unless its name is among `told`.
    """
    chain = Chain(f"point {places.key}")
    files = PointFiles(places.results / "points", places.key)
    try:
        record = read_record(files.record_path, key=places.key)
    except BerthError as error:
        chain.add("record", "broken", str(error))
        return chain
    _record(chain, files, record)
    _requests(chain, files, record)
    spec = sha256_text(canonical_json(record["spec"]))[: len(record["point"]["spec"])]
    wrong = f"the hash of the definition in the record is {spec}, and its folder is {record['point']['spec']}"
    chain.compared("definition", [] if spec == record["point"]["spec"] else [wrong], f"hash {spec}")
    here = record["point"]["platform"] == places.platform
    _image(chain, places, record, here=here)
    _dataset(chain, places, record, here=here)
    known = _model(chain, record, model, here=here)
    if known is not None and record["spec"]["model"]["name"] not in told:
        chain.links.extend(known.chain.links)
    _shared(chain, places, files, store)
    return chain


def _record(chain: Chain, files: PointFiles, record: dict[str, Any]) -> None:
    if not seal.has_seal(record):
        chain.add(
            "record", "not recorded", f"{files.record_path} is of its schema; {_OLD}, so its bytes cannot be compared"
        )
        return
    try:
        seal.check_record(str(files.record_path), files.record_path.read_bytes())
    except BerthError as error:
        chain.add("record", "broken", str(error))
    else:
        chain.add("record", "ok", f"{files.record_path}, {measured(record)}, has the SHA-256 that it says of itself")


def _requests(chain: Chain, files: PointFiles, record: dict[str, Any]) -> None:
    try:
        lists = read_requests(files.record_path, record)
        if seal.has_seal(record):
            seal.check_requests(str(files.requests_path), record, sha256_file(files.requests_path) if lists else None)
    except BerthError as error:
        chain.add("requests file", "broken", str(error))
        return
    if seal.has_seal(record):
        chain.add("requests file", "ok", f"{files.requests_path} has the SHA-256 that the record says")
    else:
        chain.add("requests file", "not recorded", f"{files.requests_path} can be read; {_OLD}")


def _image(chain: Chain, places: PointPlaces, record: dict[str, Any], *, here: bool) -> None:
    image, defined = record["server"]["image"], record["spec"].get("image", {})
    serve = record["spec"].get("serve", {})
    receipt = places.results / "images" / places.platform / f"{serve.get('recipe')}-{serve.get('version')}.json"
    if not here or not receipt.exists():
        where = f"measured on {record['point']['platform']}" if not here else f"{receipt} is not here"
        chain.add("image", "cannot be checked", f"{image['reference']} at {image['digest']}: {where}")
        return
    try:
        staged = json.loads(receipt.read_bytes())
        digests = {staged["digest"], staged.get("index_digest") or staged["digest"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        chain.add("image", "broken", f"{receipt}: no readable receipt ({error})")
        return
    problems = []
    if image["digest"] not in digests:
        problems.append(f"the record says {image['digest']}, and {receipt} says {staged['digest']}")
    if defined.get("digest") not in (None, *digests):
        problems.append(f"the definition says {defined['digest']}, and {receipt} says {staged['digest']}")
    chain.compared("image", problems, f"{image['reference']} at {image['digest']}, as staged")


def _dataset(chain: Chain, places: PointPlaces, record: dict[str, Any], *, here: bool) -> None:
    said = (record.get("custody") or {}).get("dataset", {}).get("sha256")
    name = record["spec"].get("benchmark", {}).get("dataset", {})
    defined = name.get("sha256")
    if said is None:
        chain.add("dataset", "not recorded", f"{_OLD}" if "custody" not in record else "its receipt had no SHA-256")
        return
    receipt = places.results / "datasets" / str(name.get("name")) / "receipt.json"
    try:
        path = receipt.parent / json.loads(receipt.read_bytes())["path"]
        found = sha256_file(path)
    except (OSError, ValueError, KeyError, TypeError):
        chain.add("dataset", "cannot be checked", f"SHA-256 {said}; {receipt} and its file are not here")
        return
    problems = []
    if found != said:
        problems.append(f"{path} has SHA-256 {found}, and the record says {said}")
    if defined not in (None, said):
        problems.append(f"the definition says {defined}, and the record says {said}")
    if problems and not here:
        chain.add("dataset", "cannot be checked", f"measured elsewhere: {problems[0]}")
        return
    chain.compared("dataset", problems, f"{path}, SHA-256 {said}")


def _model(
    chain: Chain, record: dict[str, Any], chain_of: Callable[[str], ModelChain | None], *, here: bool
) -> ModelChain | None:
    """The chain of the model that was served, where it is known to be that one."""
    custody = record.get("custody") or {}
    said = custody.get("model", {}).get("manifest_sha256")
    model = record["spec"].get("model", {})
    told = f"{model.get('repo')} at {model.get('revision') or model.get('generated')}"
    if said is None:
        chain.add("model", "not recorded", f"{told}; {_OLD if not custody else 'its receipt had no manifest'}")
        return None
    known = chain_of(str(model.get("name")))
    if known is None or known.manifest_sha256 is None:
        chain.add(
            "model", "cannot be checked", f"{told}, manifest SHA-256 {said}: no manifest of it is here to compare with"
        )
        return None
    if known.manifest_sha256 != said:
        wrong = f"{told}: the record says manifest SHA-256 {said}, and here it is {known.manifest_sha256}"
        chain.add("model", "broken" if here else "cannot be checked", wrong if here else f"measured elsewhere. {wrong}")
        return None
    copy = _COPIES.get(custody["model"]["copy"], custody["model"]["copy"])
    chain.add("model", "ok", f"{told}, manifest SHA-256 {said}, served from {copy}")
    return known


def _shared(chain: Chain, places: PointPlaces, files: PointFiles, store: s3.Store | str) -> None:
    name = "point in the store"
    if isinstance(store, str):
        chain.add(name, "cannot be checked", store)
        return
    digests = files.digests()
    try:
        with store.client(s3.environment_mode() or "when_supported") as client:
            shelf = Shelf(store, places.results_prefix, client)
            there = shelf.contents(lambda key: key == places.key, below=places.key).points.get(places.key, set())
            if there == {digests}:
                shelf.record(places.key, digests)
                shelf.requests(places.key, digests)
    except BerthError as error:
        damaged = s3.error_code(error) is None and error.__cause__ is None
        chain.add(name, "broken" if damaged else "cannot be checked", str(error))
        return
    if not there:
        chain.add(name, "cannot be checked", "it was not pushed")
    else:
        others = [f"the store has {each}, and here is {digests}" for each in sorted(there - {digests})]
        chain.compared(name, others, f"the same bytes are in {store}, {places.results_prefix}")
