"""Repeated runs of each point as numbers: mean, interval, spread, runs that a wished precision takes, and tests.

Only valid points count; what was left out is told.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from berth.columns import PLOTTED, row_level
from berth.stats import Mean, WelchTest, holm, mean_of, pooled, runs_for, welch
from berth.variance import Component, Observation, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from berth.analysis import StatisticsSettings
    from berth.coordinates import Level as Swept

_GROUP = ["source", "experiment", "figure", "platform", "deployment", "spec"]


@dataclass(frozen=True)
class Level:
    """One point of one definition over its runs; `left_out` tells what does not count, such as "run 2: crashed".

    `concurrency` is a rate where rates were swept.
    """

    concurrency: Swept
    numbers: tuple[float, ...]
    mean: Mean | None
    runs_needed: int | None
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """One definition on one platform, with its levels by rising concurrency.

    `pooled_cv` is the root mean square of its levels' spread, with `df` degrees of freedom; `runs_needed` follows from
    it. Both are None where no level has two runs.
    """

    label: str
    platform: str
    platform_label: str
    deployment: str
    spec: str
    runs: int
    hosts: tuple[str, ...]
    levels: tuple[Level, ...]
    pooled_cv: float | None
    df: int
    runs_needed: int | None


@dataclass(frozen=True)
class Difference:
    """Two definitions at one level. `p_holm` is adjusted for the number of levels of this pair that could be tested."""

    first: str
    second: str
    concurrency: Swept
    runs: tuple[int, int]
    ratio: float
    test: WelchTest
    p_holm: float | None


@dataclass(frozen=True)
class Spread:
    """Everything that `statistics` tells about a set of points."""

    metric: str
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    components: tuple[Component, ...]


def measure_spread(rows: pd.DataFrame, settings: StatisticsSettings) -> Spread:
    """The statistics of a tidy table for one number."""
    metric = settings.metric
    groups = tuple(_groups(rows, settings))
    valid = rows[_valid(rows, metric) & (rows[metric] > 0)]
    observations = [
        Observation(
            platform="/".join(str(row[name]) for name in ("platform", "deployment", "spec")),
            host="" if row["host"] is None or row["host"] != row["host"] else str(row["host"]),
            run=str(row["run"]),
            level=row_level({str(name): value for name, value in row.items()}),
            value=float(row[metric]),
        )
        for row in valid.astype(object).where(valid.notna(), None).to_dict(orient="records")
    ]
    return Spread(
        metric, groups, tuple(_differences(groups, settings)), tuple(split(observations, settings.confidence))
    )


def _valid(rows: pd.DataFrame, metric: str) -> pd.Series[bool]:
    return rows["status"].isin(PLOTTED) & rows[metric].notna()


def _groups(rows: pd.DataFrame, settings: StatisticsSettings) -> list[Group]:
    found = []
    tables = [table for _, table in rows.groupby(_GROUP, sort=False, dropna=False)]
    for table, label in zip(tables, _labels(tables), strict=True):
        first = table.iloc[0].fillna("")
        levels = tuple(
            _level(row_level({str(name): value for name, value in at.iloc[0].items()}), at, settings)
            for _, at in table.groupby(["concurrency", "request_rate_req_s"], sort=True, dropna=False)
        )
        spreads = [(each.mean.n, each.mean.cv) for each in levels if each.mean and each.mean.cv is not None]
        together = pooled([(n, cv) for n, cv in spreads if cv is not None])
        valid = table[_valid(table, settings.metric)]
        found.append(
            Group(
                label=label,
                platform=str(first["platform"]),
                platform_label=str(first["platform_label"] or first["platform"]),
                deployment=str(first["deployment"]),
                spec=str(first["spec"]),
                runs=int(valid["run"].nunique()),
                hosts=tuple(sorted(set(valid["host"].dropna().astype(str)))),
                levels=levels,
                pooled_cv=together[0] if together else None,
                df=together[1] if together else 0,
                runs_needed=runs_for(together[0], settings.precision, settings.confidence) if together else None,
            )
        )
    return found


def _labels(tables: Sequence[pd.DataFrame]) -> list[str]:
    """A name per definition: the platform's, with the least that tells its definitions apart."""
    rows = [table.iloc[0].fillna("") for table in tables]
    labels = [str(row["platform_label"] or row["platform"]) for row in rows]
    tools = [f"imported from {row['client']}" if row["source"] == "imported" else "" for row in rows]
    deployments = [str(row["deployment"]) for row in rows]
    for words in (tools, deployments, [str(row["spec"]) for row in rows]):
        counts = Counter(labels)
        labels = [
            f"{label} {word}".rstrip() if counts[label] > 1 else label
            for label, word in zip(labels, words, strict=True)
        ]
    return labels


def _level(concurrency: Swept, at: pd.DataFrame, settings: StatisticsSettings) -> Level:
    valid = _valid(at, settings.metric)
    values = tuple(float(value) for value in at[valid].sort_values("run")[settings.metric])
    mean = mean_of(values, settings.confidence) if values else None
    cv = mean.cv if mean else None
    return Level(
        concurrency=concurrency,
        numbers=values,
        mean=mean,
        runs_needed=runs_for(cv, settings.precision, settings.confidence) if cv is not None else None,
        left_out=tuple(
            f"run {run}: {_because(status)}"
            for run, status in zip(at[~valid]["run"], at[~valid]["status"], strict=True)
        ),
    )


def _because(status: object) -> str:
    return "no such number" if status in PLOTTED else str(status).replace("_", " ")


def _differences(groups: tuple[Group, ...], settings: StatisticsSettings) -> list[Difference]:
    found = []
    for first, second in itertools.combinations(groups, 2):
        others = {level.concurrency: level for level in second.levels}
        pairs = [
            (level, others[level.concurrency])
            for level in first.levels
            if level.numbers and level.concurrency in others and others[level.concurrency].numbers
        ]
        tests = [welch(a.numbers, b.numbers, settings.confidence) for a, b in pairs]
        adjusted = iter(holm([test.p for test in tests if test.p is not None]))
        found += [
            Difference(
                first=first.label,
                second=second.label,
                concurrency=a.concurrency,
                runs=(len(a.numbers), len(b.numbers)),
                ratio=float(np.mean(a.numbers) / np.mean(b.numbers)),
                test=test,
                p_holm=next(adjusted) if test.p is not None else None,
            )
            for (a, b), test in zip(pairs, tests, strict=True)
        ]
    return found
