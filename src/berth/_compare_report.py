"""A comparison as files: a page to read, a table, and JSON for other programs."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from berth.columns import BY_NAME
from berth.compare import defining_differences
from berth.markdown import number, percent, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.analysis import CompareSettings
    from berth.compare import Compared, Comparison
    from berth.sources import Source

_CSV = (
    *("curve", "concurrency", "metric", "unit", "ours", "ours_runs", "ours_cv", "theirs", "theirs_runs", "theirs_cv"),
    *("ratio", "speed", "tolerance", "verdict", "regression", "why"),
)


def page(ours: Source, theirs: Source, comparison: Comparison, settings: CompareSettings) -> str:
    """The comparison in Markdown."""
    parts = [
        f"# {ours.name} against {theirs.name}\n",
        f"**{summary(comparison)}**\n",
        f"- {ours.name}: {ours.words}\n- {theirs.name}, the reference: {theirs.words}\n",
        (
            "Each number is the mean over the valid runs of the point. Ratio: ours over the reference's. Speed: above "
            "1 where ours is the faster.\n"
        ),
        _tolerances(settings),
        _differences(comparison, settings),
    ]
    paired = {pair.label for pair in comparison.pairs if pair.ours and pair.theirs}
    for metric in settings.metrics:
        points = [point for point in comparison.points if point.metric == metric and point.curve in paired]
        if points:
            parts += [f"## {_words(metric)}\n", point_table(points), _curve_table(comparison, metric)]
    return "\n".join(part for part in parts if part)


def summary(comparison: Comparison) -> str:
    """The outcome in one sentence."""
    counts = {verdict: sum(point.verdict == verdict for point in comparison.points) for verdict in _VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no point"
    if not comparison.judged:
        return f"Nothing could be compared: {told}."
    broken = sum(point.regression for point in comparison.points if point.verdict == "missing")
    curves = sum(curve.regression for curve in comparison.curves)
    more = [f"{broken} of the missing crashed or failed"] if broken else []
    more += [f"{curves} whole curve{'s' if curves > 1 else ''} slower"] if curves else []
    return f"{'passed' if comparison.passed else 'REGRESSION'}: {'; '.join([told, *more])}."


_VERDICTS = ("ok", "faster", "slower", "missing", "not comparable")


def point_table(points: Sequence[Compared]) -> str:
    """The points as a table."""
    return table(
        ["curve", "concurrency", "ours", "runs", "reference", "runs", "ratio", "tolerance", "verdict", "why"],
        [
            [
                point.curve,
                str(point.concurrency),
                number(point.ours.value),
                str(point.ours.runs),
                number(point.theirs.value),
                str(point.theirs.runs),
                "" if point.ratio is None else f"{point.ratio:.3f}",
                percent(point.tolerance),
                point.verdict.upper() if point.regression else point.verdict,
                point.why,
            ]
            for point in points
        ],
    )


def csv_text(comparison: Comparison) -> str:
    """The points as CSV."""
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(_CSV)
    for point in comparison.points:
        sides = [value for side in (point.ours, point.theirs) for value in (side.value, side.runs, side.cv)]
        writer.writerow(
            [
                *(point.curve, point.concurrency, point.metric, BY_NAME[point.metric].unit, *sides),
                *(point.ratio, point.speed, point.tolerance, point.verdict, str(point.regression).lower(), point.why),
            ]
        )
    return handle.getvalue()


def as_json(ours: Source, theirs: Source, comparison: Comparison, settings: CompareSettings) -> dict[str, Any]:
    """The comparison as JSON values, schema 1."""
    return {
        "schema": 1,
        "ours": {"name": ours.name, "source": ours.words},
        "theirs": {"name": theirs.name, "source": theirs.words},
        "passed": comparison.passed,
        "regressions": comparison.regressions,
        "settings": asdict(settings),
        "pairs": [
            {
                "curve": pair.label,
                "ours": pair.ours is not None,
                "theirs": pair.theirs is not None,
                "differences": [asdict(each) for each in pair.differences],
                "unknown": list(pair.unknown),
            }
            for pair in comparison.pairs
        ],
        "points": [asdict(point) for point in comparison.points],
        "curves": [asdict(curve) for curve in comparison.curves],
    }


def _tolerances(settings: CompareSettings) -> str:
    lines = []
    for metric, limit in settings.metrics.items():
        whole = f", {percent(limit.curve_tolerance)} over a whole curve" if limit.curve_tolerance is not None else ""
        lines.append(f"- {_words(metric)}: {percent(limit.tolerance)} at one point{whole}. Reason: {limit.reason}")
    if settings.accept:
        lines.append(f"- Differences that are accepted: {', '.join(settings.accept)}.")
    return "\n".join(["Tolerances:\n", *lines, ""])


def _differences(comparison: Comparison, settings: CompareSettings) -> str:
    lines = []
    for pair in comparison.pairs:
        if pair.ours is None or pair.theirs is None:
            lines.append(f"- {pair.label}: only in {'the reference' if pair.ours is None else 'ours'}.")
            continue
        barring = defining_differences(pair, settings)
        others = [each for each in pair.differences if each not in barring]
        if barring:
            lines.append(f"- {pair.label}: **another measurement**: {'; '.join(map(str, barring))}.")
        if others:
            lines.append(f"- {pair.label}: {'; '.join(map(str, others))}.")
        if pair.unknown:
            lines.append(f"- {pair.label}: known for one of the two alone, so not compared: {', '.join(pair.unknown)}.")
    return "\n".join(["Differences in how they were measured:\n", *(lines or ["- none that is known."]), ""])


def _curve_table(comparison: Comparison, metric: str) -> str:
    curves = [curve for curve in comparison.curves if curve.metric == metric]
    if not curves:
        return ""
    return table(
        ["whole curve", "points", "speed, geometric mean", "tolerance", "verdict"],
        [
            [
                curve.curve,
                str(curve.points),
                f"{curve.speed:.4f}",
                percent(curve.tolerance),
                curve.verdict.upper() if curve.regression else curve.verdict,
            ]
            for curve in curves
        ],
    )


def _words(metric: str) -> str:
    return f"{metric} ({BY_NAME[metric].unit})"
