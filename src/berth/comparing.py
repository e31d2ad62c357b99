"""What the rules `compare` and `baseline` do: open the sources, write the outcome, and fail on a regression."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from berth import _compare_report as report
from berth._ratio_figure import draw_ratios
from berth.baseline import store_baseline
from berth.compare import compare
from berth.errors import BerthError
from berth.fsio import write_json, write_text
from berth.record import finite
from berth.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from berth.analysis import CompareSettings
    from berth.config import Config
    from berth.sources import Source

logger = logging.getLogger(__name__)

_HOW = "Example: snakemake --profile profiles/local compare --config experiment=local against=baseline:NAME"


def compare_sources(config: Config, root: Path, settings: CompareSettings) -> Path:
    """Compare what `experiment` names with what `against` names; the folder with the outcome.

    Raises:
        BerthError: one of the two is not given or not there, nothing could be compared, or something is worse than
            allowed. The files are written all the same in the last two cases.
    """
    if not config.experiment or not config.against:
        raise BerthError(f"compare: give both experiment and against. {_HOW}")
    ours = open_named(config, root, config.experiment, config.only_runs)
    theirs = open_named(config, root, config.against, ())
    comparison = compare(ours, theirs, settings)
    folder = root / config.results / "compare" / file_name(config.experiment) / file_name(config.against)
    page = report.page(ours, theirs, comparison, settings)
    write_text(folder / "comparison.md", page)
    write_text(folder / "comparison.csv", report.csv_text(comparison))
    write_json(folder / "comparison.json", finite(report.as_json(ours, theirs, comparison, settings)))
    draw_ratios(
        comparison,
        f"{ours.name} against {theirs.name}",
        [f"Band: tolerance. Reference: {theirs.words}"],
        [folder / f"comparison.{suffix}" for suffix in ("pdf", "svg", "png")],
    )
    logger.info("%s", page)
    logger.info("Written: %s/comparison.md, .csv, .json, .pdf, .svg, .png", folder)
    if not comparison.passed:
        raise BerthError(f"{ours.name} against {theirs.name}: {report.summary(comparison)} See {folder}/comparison.md.")
    return folder


def keep_baseline(config: Config, root: Path) -> Path:
    """Store what `experiment` names under the name that `baseline` gives; the file.

    Raises:
        BerthError: one of the two is not given, the name is taken by other points, or there is no valid point.
    """
    if not config.experiment or not config.baseline:
        raise BerthError(
            "baseline: give both experiment and baseline, the name to store it under. Example: "
            "snakemake --profile profiles/local baseline --config experiment=local baseline=2026-11"
        )
    source = open_named(config, root, config.experiment, config.only_runs)
    return store_baseline(source, config.baseline, root / config.results)


def file_name(reference: str) -> str:
    """A reference as one part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", reference).strip("-.") or "points"


def open_named(config: Config, root: Path, reference: str, runs: tuple[int, ...]) -> Source:
    """The points that a reference names, with the folders and platforms of the configuration.

    Raises:
        BerthError: as sources.open_source().
    """
    return open_source(
        reference,
        root=root,
        results=config.results,
        published_dir=config.published_dir,
        experiments=config.experiments,
        labels={name: platform.label for name, platform in config.platforms.items()},
        runs=runs,
    )
