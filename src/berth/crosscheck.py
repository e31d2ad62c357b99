"""What the rule `cross_check` does: several benchmark clients in turn against one server, and how they differ."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from berth._crosscheck_report import csv_text, differences, page
from berth.analysis import CrossCheckSettings
from berth.clienttool import DEFAULT
from berth.coordinates import level_name, level_words
from berth.errors import BerthError
from berth.fsio import write_text
from berth.measure import Session
from berth.measured import PointFailed
from berth.parts import texts
from berth.record import read_record, write_record
from berth.resources import sweep_resources
from berth.signals import announce, raise_if_asked, terminate_as_exception
from berth.sweep import SweepRequest, brought_up, leased

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from berth.plan import Plan, Run

logger = logging.getLogger(__name__)

RULE = "cross_check"


def run_of(plan: Plan, rule: str) -> Run:
    """The run whose server and benchmark are used: the first of `experiment`, of `deployment` where that is given.

    Raises:
        BerthError: `experiment` is not given, or has no such deployment on this platform.
    """
    config = plan.config
    found = [
        run
        for run in plan.runs.values()
        if run.experiment.name == config.experiment and config.deployment in ("", run.deployment.name)
    ]
    if not found:
        raise BerthError(
            f"{rule}: experiment {config.experiment or '(none given)'} has no deployment "
            f"{f'{config.deployment} ' if config.deployment else ''}that {config.platform} can measure. "
            f"Example: snakemake --profile profiles/local {rule} --config experiment=local"
        )
    return found[0]


def request_of(plan: Plan, settings: CrossCheckSettings) -> dict[str, Any]:
    """The fields of SweepRequest for the server of a cross-check, receipts apart.

    It is a run of its own name, so that no sweep waits for it and none of its points is taken for a sweep's.

    Raises:
        BerthError: as run_of(), or a client does not run on this platform.
    """
    run = run_of(plan, RULE)
    runtime = plan.config.platforms[plan.config.platform].runtime
    for name in settings.clients:
        if name != DEFAULT:
            plan.config.clients[name].image(runtime)
    levels = run.benchmark.concurrency
    if not levels:
        raise BerthError(
            f"config/config.yaml: benchmarks.{run.benchmark.name}.request_rates: clients are compared over "
            "concurrency. Choose an experiment with a benchmark that has it."
        )
    request = plan.sweep_request(run.id.key, texts([levels])[0])
    return {
        **request,
        "experiment": f"cross_check-{run.experiment.name}",
        "levels": list(settings.levels) or chosen_levels(levels),
        "benchmark": {**asdict(run.benchmark), "client": settings.clients[0]},
        "tools": plan.tools(settings.clients),
    }


def ceiling_request_of(plan: Plan) -> dict[str, Any]:
    """The fields of SweepRequest for the client of `experiment` alone, on one node, receipts apart.

    Raises:
        BerthError: as run_of().
    """
    run = run_of(plan, "client_ceiling")
    request = plan.sweep_request(run.id.key, texts([run.benchmark.levels])[0])
    alone = {"nodes": 1, "client_nodes": 0, "tensor_parallel": 1, "pipeline_parallel": 1}
    return {**request, "experiment": "client_ceiling", "deployment": {**request["deployment"], **alone}}


def resources_of(plan: Plan, clients: int) -> dict[str, int | str]:
    """What the job asks its scheduler for: the time of a whole sweep for each client, if the site allows it."""
    run = run_of(plan, RULE)
    platform = plan.config.platforms[run.id.platform]
    if platform.queue is None:
        return {}
    repeats = (plan.config.cross_check or CrossCheckSettings()).repeats
    once = plan.jobs.estimate(run.id.key).job_minutes(list(run.benchmark.concurrency), platform.queue.warn_s)
    minutes = once * clients * repeats
    return sweep_resources(run.deployment, platform, min(minutes, platform.queue.max_minutes or minutes))


def chosen_levels(levels: Sequence[int]) -> list[int]:
    """The least, the middle and the largest level of a benchmark."""
    return list(dict.fromkeys((levels[0], levels[len(levels) // 2], levels[-1])))


def cross_check(request: SweepRequest, settings: CrossCheckSettings, folder: Path) -> None:
    """Measure each level by each client `repeats` times on one server, and write cross_check.md and .csv.

    A measurement that was kept in `folder` before is not made again. One that fails is told in the report.

    Raises:
        BerthError: the server or a client does not come up, or nothing could be compared.
        Terminated: TERM or INT; what is finished is kept.
    """
    with terminate_as_exception():
        announce()
        rounds = [
            (repeat, level, name)
            for repeat in range(1, settings.repeats + 1)
            for level in map(int, request.levels)
            # Another client is first each time, so that none always meets what the one before left.
            for name in _turned(settings.clients, repeat - 1)
        ]
        todo = [each for each in rounds if not _path(folder, *each).exists()]
        if todo:
            with (
                leased(request) as (spool, held, token, host),
                brought_up(request, spool, held, token, host) as deployed,
                Session.open(deployed, request, token, 1, held.check) as session,
                ExitStack() as stack,
            ):
                sessions = {settings.clients[0]: session}
                for name in settings.clients[1:]:
                    sessions[name] = stack.enter_context(session.with_client(name))
                # All prompts are in the server's cache for each client, or for none.
                _unmeasured(session, int(max(request.levels)))
                for each in todo:
                    _one(sessions[each[2]], each, folder)
    records = {each: read_record(_path(folder, *each)) for each in rounds}
    found = differences(records, settings)
    text = page(request, records, found, settings)
    write_text(folder / "cross_check.md", text)
    write_text(folder / "cross_check.csv", csv_text(found))
    logger.info("%s", text)


def _turned(names: Sequence[str], by: int) -> list[str]:
    start = by % len(names)
    return [*names[start:], *names[:start]]


def _path(folder: Path, repeat: int, level: int, name: str) -> Path:
    return folder / name / f"run{repeat}" / f"{level_name(level)}.json"


def _unmeasured(session: Session, level: int) -> None:
    try:
        session.measure(level, lambda _completed, _total: None)
    except PointFailed as failed:
        raise_if_asked()
        if failed.death is not None:
            raise failed.death from None


def _one(session: Session, each: tuple[int, int, str], folder: Path) -> None:
    repeat, level, name = each
    told: str
    requests: Mapping[str, Any] | None
    try:
        point = session.measure(level, lambda _completed, _total: None)
        record, requests, told = point.record, point.requests, point.told
    except PointFailed as failed:
        raise_if_asked()
        if failed.death is not None:
            raise failed.death from None
        record, requests, told = failed.record, failed.requests, f"FAILED: {failed.cause}"
    record["point"]["run"] = repeat
    write_record(_path(folder, *each), record, requests)
    logger.info("%s at %s, %d: %s", name, level_words(level), repeat, told)
