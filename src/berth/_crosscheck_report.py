"""How benchmark clients differ on one server: ratio to the first client, the noise of each, and a verdict."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from berth.markdown import number, percent, table
from berth.record import is_valid, result_value
from berth.stats import mean_of, welch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.analysis import CrossCheckSettings
    from berth.sweep import SweepRequest

# What is compared: the client's key, its name for people, and its unit.
METRICS = (
    ("output_throughput", "output throughput", "tokens/s"),
    ("request_throughput", "request throughput", "requests/s"),
    ("mean_ttft_ms", "mean TTFT", "ms"),
    ("mean_tpot_ms", "mean TPOT", "ms"),
    ("mean_itl_ms", "mean ITL", "ms"),
)


@dataclass(frozen=True)
class Difference:
    """One number of one client at one level, over its runs, against the first client's.

    `noise` is its coefficient of variation over runs, `ratio` its mean over the first client's, `p` that of Welch's
    test. What cannot be known is None.
    """

    concurrency: int
    metric: str
    unit: str
    client: str
    version: str
    runs: int
    refused: int
    mean: float | None
    noise: float | None
    ratio: float | None
    p: float | None
    verdict: str


def differences(
    records: Mapping[tuple[int, int, str], Mapping[str, Any]], settings: CrossCheckSettings
) -> list[Difference]:
    """All numbers of all clients, by level, metric and client. Keys of `records` are run, level and client."""
    return [
        _difference(level, metric, name, records, settings)
        for level in dict.fromkeys(level for _, level, _ in records)
        for metric in METRICS
        for name in settings.clients
    ]


def _difference(
    level: int,
    metric: tuple[str, str, str],
    name: str,
    records: Mapping[tuple[int, int, str], Mapping[str, Any]],
    settings: CrossCheckSettings,
) -> Difference:
    reference = settings.clients[0]
    mine, theirs = (
        [record for key, record in records.items() if key[1:] == (level, each)] for each in (name, reference)
    )
    values, first = _values(mine, metric[0]), _values(theirs, metric[0])
    mean, itself = (mean_of(values, 0.95) if values else None), name == reference
    p = None if itself else welch(values, first, 0.95).p
    base = sum(first) / len(first) if first else None
    ratio = mean.mean / base if mean and base else None
    return Difference(
        concurrency=level,
        metric=metric[1],
        unit=metric[2],
        client=name,
        version=next((str(each["client"]["version"]) for each in mine), ""),
        runs=len(values),
        refused=sum(not is_valid(each) for each in mine),
        mean=mean.mean if mean else None,
        noise=mean.cv if mean else None,
        ratio=None if itself else ratio,
        p=p,
        verdict="reference" if itself else _verdict(ratio, p, settings),
    )


def _values(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    values = [result_value(each["result"], key) for each in records if is_valid(each)]
    return [float(value) for value in values if value is not None]


def _verdict(ratio: float | None, p: float | None, settings: CrossCheckSettings) -> str:
    if ratio is None:
        return "not given"
    if abs(ratio - 1) <= settings.tolerance:
        return "agree"
    if p is None:
        return "noise unknown"
    return "differ" if p < settings.significance else "within noise"


def csv_text(found: Sequence[Difference]) -> str:
    """One row per level, metric and client."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(Difference)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in found)
    return text.getvalue()


def page(
    request: SweepRequest,
    records: Mapping[tuple[int, int, str], Mapping[str, Any]],
    found: Sequence[Difference],
    settings: CrossCheckSettings,
) -> str:
    """The report."""
    benchmark = request.benchmark
    how = (
        f"{benchmark['num_prompts']} prompts of {benchmark['dataset']}, seed {benchmark['seed']}; {settings.repeats} "
        "runs of each client in turn, another one first each time. One pass before them was not counted. Ratios are to "
        f"{settings.clients[0]}. *agree*: closer than {percent(settings.tolerance)}. *differ*: further apart, and "
        f"Welch's test says p < {settings.significance:g}. *within noise*: further apart, and so are the runs of one "
        "client. *noise unknown*: one run has no spread. *not given*: the client's output does not hold it, or no run "
        "was valid."
    )
    parts = [f"# Benchmark clients on one server: {request.deployment['name']} on {request.platform}\n", f"{how}\n"]
    for level in dict.fromkeys(each.concurrency for each in found):
        rows = [
            [
                f"{each.metric} ({each.unit})",
                f"{each.client} {each.version}",
                str(each.runs),
                number(each.mean),
                percent(each.noise),
                number(each.ratio),
                number(each.p, 2),
                each.verdict,
            ]
            for each in found
            if each.concurrency == level
        ]
        parts.append(f"## Concurrency {level}\n")
        parts.append(table(["number", "client", "runs", "mean", "noise", "ratio", "p", "verdict"], rows))
    told = [
        f"- {name} at concurrency {level}, run {repeat}: {record['validity']['verdict']}, {reason['message']}"
        for (repeat, level, name), record in records.items()
        for reason in record["validity"]["reasons"]
    ]
    told += [
        f"- {name} at concurrency {level}, run {repeat}: {record['failure']['cause']}"
        for (repeat, level, name), record in records.items()
        if record["failure"] and not record["validity"]["reasons"]
    ]
    return "\n".join([*parts, *(["## Doubts\n", "\n".join(told) + "\n"] if told else [])])
