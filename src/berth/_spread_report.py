"""Statistics over runs as files: a page to read, a table, and JSON for other programs."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from berth.columns import BY_NAME
from berth.markdown import number, percent, table
from berth.variance import REPEATING

if TYPE_CHECKING:
    from berth.analysis import StatisticsSettings
    from berth.sources import Source
    from berth.spread import Difference, Group, Spread

_CSV = (
    *("curve", "platform", "deployment", "spec", "concurrency", "metric", "unit", "runs", "mean", "sd", "cv"),
    *("low", "high", "confidence", "runs_needed", "precision", "values", "left_out"),
)
# With fewer runs an interval rests on the assumption that they are normally distributed, which cannot be looked at.
_FEW_RUNS = 5


def page(source: Source, spread: Spread, settings: StatisticsSettings) -> str:
    """The statistics in Markdown."""
    unit = BY_NAME[spread.metric].unit
    parts = [
        f"# {source.name}: {spread.metric} ({unit}) over runs\n",
        f"{source.words}\n",
        (
            f"Intervals: Student's t, {percent(settings.confidence)}. CV: standard deviation over mean. "
            f"Runs needed: so that the interval reaches at most {percent(settings.precision)} to each side. Crashed "
            "and failed points do not count.\n"
        ),
        "## Platforms and definitions\n",
        table(
            ["curve", "runs", "hosts", "CV, all levels together", "degrees of freedom", "runs needed"],
            [
                [
                    group.label,
                    str(group.runs),
                    ", ".join(group.hosts) or "not known",
                    percent(group.pooled_cv),
                    str(group.df),
                    _needed(group.runs_needed, group.pooled_cv),
                ]
                for group in spread.groups
            ],
        ),
        *(_warnings(spread.groups)),
        "\n## Where the spread comes from\n",
        _components(spread),
    ]
    for group in spread.groups:
        parts += [f"## {group.label}\n", _levels(group)]
    if spread.differences:
        parts += ["## Whether they differ\n", _tests(spread.differences, settings)]
    return "\n".join(parts)


def csv_text(spread: Spread, settings: StatisticsSettings) -> str:
    """The points as CSV."""
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(_CSV)
    for group in spread.groups:
        for level in group.levels:
            mean = level.mean
            numbers = [mean.mean, mean.sd, mean.cv, mean.low, mean.high] if mean else [None] * 5
            writer.writerow(
                [
                    *(group.label, group.platform, group.deployment, group.spec, level.concurrency),
                    *(spread.metric, BY_NAME[spread.metric].unit, len(level.numbers), *numbers),
                    *(settings.confidence, level.runs_needed, settings.precision),
                    *(" ".join(map(str, level.numbers)), "; ".join(level.left_out)),
                ]
            )
    return handle.getvalue()


def as_json(source: Source, spread: Spread, settings: StatisticsSettings) -> dict[str, Any]:
    """The statistics as JSON values, schema 1."""
    return {"schema": 1, "name": source.name, "source": source.words, "settings": asdict(settings), **asdict(spread)}


def _needed(runs: int | None, cv: float | None) -> str:
    if cv is None:
        return "not known"
    return "more than 1000" if runs is None else str(runs)


def _warnings(groups: tuple[Group, ...]) -> list[str]:
    told = []
    few = [f"{group.label} {group.runs}" for group in groups if 0 < group.runs < _FEW_RUNS]
    if few:
        told.append(
            f"\nFew runs ({', '.join(few)}): whether they are normally distributed cannot be looked at, and an "
            "interval of two runs is 9 standard errors wide to each side (95 %)."
        )
    gone = [
        f"{group.label} at {level.concurrency} ({', '.join(level.left_out)})"
        for group in groups
        for level in group.levels
        if level.left_out
    ]
    return [*told, f"\nLeft out: {'; '.join(gone)}."] if gone else told


def _components(spread: Spread) -> str:
    if not spread.components:
        return "There is no valid point.\n"
    repeating = [part for part in spread.components if part.term in REPEATING]
    repeats = {part.term: part.sd**2 for part in repeating if part.sd is not None}
    all_repeats = sum(repeats.values())
    header = ["of", "spread", "share of the variance", "share without platforms", "degrees of freedom", "to know"]
    rows = [
        [
            part.term,
            percent(part.sd),
            percent(part.share),
            percent(repeats[part.term] / all_repeats) if part.term in repeats and all_repeats else "",
            str(part.df),
            "; ".join(
                word
                for word in (
                    f"{percent(part.low)} to {percent(part.high)}" if part.low is not None else "",
                    part.told,
                )
                if word
            ),
        ]
        for part in spread.components
    ]
    return (
        "Relative spread (standard deviation of the logarithm) at one level. Nested: a run on a host, a host of a "
        "platform.\n\n" + table(header, rows)
    )


def _levels(group: Group) -> str:
    return table(
        ["concurrency", "runs", "mean", "interval from", "to", "CV", "runs needed", "left out"],
        [
            [
                str(level.concurrency),
                str(len(level.numbers)),
                number(level.mean.mean) if level.mean else "",
                number(level.mean.low) if level.mean else "",
                number(level.mean.high) if level.mean else "",
                percent(level.mean.cv) if level.mean else "",
                _needed(level.runs_needed, level.mean.cv if level.mean else None),
                ", ".join(level.left_out),
            ]
            for level in group.levels
        ],
    )


def _tests(differences: tuple[Difference, ...], settings: StatisticsSettings) -> str:
    rows = [
        [
            f"{each.first} / {each.second}",
            str(each.concurrency),
            f"{each.runs[0]}, {each.runs[1]}",
            f"{each.ratio:.3f}",
            number(each.test.p, 2),
            number(each.p_holm, 2),
            number(each.test.g, 3),
            f"{number(each.test.g_low, 3)} to {number(each.test.g_high, 3)}" if each.test.g_low is not None else "",
            _outcome(each, settings),
        ]
        for each in differences
    ]
    header = ["of", "concurrency", "runs", "ratio", "p", "p, Holm", "Hedges' g", "interval of g", "differ"]
    return (
        f"Welch's test per level; p adjusted for the levels of a pair (Holm). They differ where it is below "
        f"{number(1 - settings.confidence)}. Holm counts levels, and not pairs of platforms.\n\n" + table(header, rows)
    )


def _outcome(each: Difference, settings: StatisticsSettings) -> str:
    if each.p_holm is None:
        return "cannot be tested: one run" if min(each.runs) < 2 else "cannot be tested: no spread"
    return "yes" if each.p_holm < 1 - settings.confidence else "not shown"
