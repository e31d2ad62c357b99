"""From the hub's commit to a measured point: verify every link that can be checked, and say where it breaks."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.custody_model import ModelChain, ModelPlaces, model_chain
from berth.custody_point import PointPlaces, point_chain
from berth.errors import BerthError
from berth.fsio import write_json, write_text
from berth.s3 import error_code
from berth.stages import model_prefix, opened

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from berth import s3
    from berth.config import Config
    from berth.custody_link import Chain

logger = logging.getLogger(__name__)

SCHEMA = 1
_ATTEMPTS = 2


@dataclass(frozen=True)
class CustodyRequest:
    """What is verified, as plain values.

    `models` are all that are known, with `repo` and `identity` by name; `verified` are the names of those whose chains
    are told by themselves. `points` are keys.
    """

    results: str
    platform: str
    store: dict[str, Any]
    data_dir: str
    models_dir: str
    models: dict[str, dict[str, Any]]
    report: str
    node_models: str = ""
    verified: Sequence[str] = ()
    points: Sequence[str] = ()
    quick: bool = False


def request_of(config: Config, existing: Collection[str]) -> dict[str, Any]:
    """The fields of CustodyRequest for `model`, `point` or neither of a configuration; `existing` are keys of points.

    Raises:
        BerthError: there is no such point.
    """
    platform = config.platforms[config.platform]
    verified = sorted({each.model for each in config.deployments.values() if each.platform == config.platform})
    points = sorted(existing)
    report = "all"
    if config.model:
        verified, points, report = [config.model], [], config.model
    if config.point:
        key = _key_of(config.point, config.results)
        if key not in existing:
            raise BerthError(
                f"config/config.yaml: point: there is no point {key} in {config.results}/points. Give the path of a "
                "record, or EXPERIMENT/PLATFORM/SPEC/runN/cN."
            )
        verified, points, report = [], [key], key
    return {
        "results": config.results,
        "platform": config.platform,
        "store": asdict(platform.store),
        "data_dir": f"{config.results}/seaweedfs",
        "models_dir": platform.models_dir,
        "node_models": platform.node_models_dir,
        "models": {name: {"repo": each.repo, "identity": each.identity} for name, each in config.models.items()},
        "report": f"{config.results}/custody/{report}",
        "verified": verified,
        "points": points,
        "quick": config.quick,
    }


def _key_of(text: str, results: str) -> str:
    return text.removeprefix("./").removesuffix(".json").rpartition(f"{results}/points/")[2]


def custody(request: CustodyRequest) -> list[Chain]:
    """Verify chains, print one line per link, and write REPORT.json and REPORT.md.

    Raises:
        BerthError: a link is broken; the reports are written before.
    """
    results = Path(request.results)
    with _store(request) as store:
        # Reading a model takes its time, so it is done once, and only where somebody asks.
        model = cache(lambda name: _model(request, name, store))
        chains = [found.chain for name in request.verified if (found := model(name))]
        for key in request.points:
            places = PointPlaces(results, key, request.platform, request.store["results_prefix"])
            chains.append(point_chain(places, model, store, told=request.verified))
    for chain in chains:
        logger.info("%s", "\n".join([chain.of, *map(str, chain.links)]))
    _write(Path(request.report), chains)
    broken = [f"{chain.of}: {link.name}: {link.detail}" for chain in chains for link in chain.broken]
    if broken:
        raise BerthError("\n".join([f"The chain of custody is broken in {len(broken)} places:", *broken]))
    logger.info("No link that can be checked from here is broken: %s.md", request.report)
    return chains


def _model(request: CustodyRequest, name: str, store: s3.Store | str) -> ModelChain | None:
    given = request.models.get(name)
    if given is None:
        return None
    places = ModelPlaces(
        name=name,
        repo=given["repo"],
        identity=given["identity"],
        results=Path(request.results),
        platform=request.platform,
        models_dir=Path(request.models_dir).expanduser(),
        node_models=request.node_models,
        prefix=model_prefix(request.store, given["repo"]),
        quick=request.quick,
    )
    return model_chain(places, store)


@contextlib.contextmanager
def _store(request: CustodyRequest) -> Iterator[s3.Store | str]:
    """The store, or why it cannot be asked."""
    if request.store["kind"] == "embedded" and not Path(request.data_dir).exists():
        yield "the embedded store holds nothing yet"
        return
    with contextlib.ExitStack() as stack:
        store: s3.Store | str
        try:
            store = stack.enter_context(opened(request.store, request.data_dir))
            _require_answer(store)
        except BerthError as error:
            store = str(error)
        yield store


def _require_answer(store: s3.Store) -> None:
    """Do nothing if the store answers, whatever it says; asked once, and not with the patience of a transfer.

    Raises:
        BerthError: it cannot be reached.
    """
    try:
        with replace(store, max_attempts=_ATTEMPTS).client("when_required") as client:
            client.list_objects_v2(Bucket=store.bucket, MaxKeys=1)
    except BerthError as error:
        if error_code(error) is None:
            raise


def _write(report: Path, chains: list[Chain]) -> None:
    holds = not any(chain.broken for chain in chains)
    value = {"schema": SCHEMA, "holds": holds, "chains": [chain.as_json() for chain in chains]}
    write_json(report.with_name(f"{report.name}.json"), value)
    lines = ["# Custody", "", "No link that can be checked is broken." if holds else "**The chain is broken.**"]
    for chain in chains:
        lines += ["", f"## {chain.of}", "", "| link | verdict | detail |", "|---|---|---|"]
        for link in chain.links:
            verdict = f"**{link.verdict}**" if link.verdict == "broken" else link.verdict
            detail = link.detail.replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {link.name} | {verdict} | {detail} |")
    write_text(report.with_name(f"{report.name}.md"), "\n".join(lines) + "\n")
