"""The tidy table and the figures of the workflow: measured points and published curves side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.figures import draw_figure
from berth.frames import combine, read_published
from berth.plan import FORMATS
from berth.published import find_figure
from berth.tidy import read_tidy, tidy_records, write_tidy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.plan import Plan


def tidy(
    *,
    records: list[str],
    failures: list[str],
    not_run: list[dict[str, Any]],
    labels: dict[str, str],
    parquet: str,
    csv: str,
    imported: Sequence[str] = (),
    asked: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write one row per point from the records' paths; `not_run` are rows of points that a run did not reach."""
    paths = [[Path(path) for path in each] for each in (records, failures, imported)]
    table = tidy_records(paths[0], paths[1], not_run, labels, paths[2], asked=asked)
    write_tidy(table, Path(parquet), Path(csv))


def figure(
    *,
    table: str,
    published: list[str],
    published_dir: str,
    experiment: str,
    kind: str,
    title: str,
    outputs: list[str],
    note: str = "",
) -> None:
    """Draw one kind of figure of an experiment, with the published curves (SET/FIGURE) that belong beside it."""
    measured = read_tidy(Path(table))
    parts = [measured[measured["experiment"] == experiment]]
    notes = [note] if note else []
    for reference in published:
        described, found = find_figure(Path(published_dir), reference)
        parts.append(read_published(found.path))
        notes.append(f"Published: {described.citation}")
    draw_figure(combine(parts), kind, title, [Path(path) for path in outputs], " ".join(notes))


def draw_what_there_is(plan: Plan) -> None:
    """Table and figures of what was measured and what failed, after a workflow that could not finish.

    `plan` is made anew after the failures. The next run that finishes draws them again.
    """
    config = plan.config
    results = plan.root / config.results
    table = results / "tidy" / "points.parquet"
    tidy(
        records=[str(results / "points" / f"{key}.json") for key in sorted(plan.existing)],
        failures=[str(results / "failures" / f"{key}.json") for key in plan.failures],
        imported=[str(path) for path in plan.imported],
        not_run=plan.not_run,
        asked=plan.asked,
        labels={name: platform.label for name, platform in config.platforms.items()},
        parquet=str(table),
        csv=str(table.with_suffix(".csv")),
    )
    for experiment in sorted({key.partition("/")[0] for key in plan.failures}):
        for kind in plan.figures.get(experiment, ()):
            figure(
                table=str(table),
                published=list(plan.published_of(experiment, kind)),
                published_dir=config.published_dir,
                experiment=experiment,
                kind=kind,
                title=config.experiments[experiment].title,
                note=plan.note_of(experiment, kind),
                outputs=[str(results / "figures" / experiment / f"{kind}.{suffix}") for suffix in FORMATS],
            )
