"""What the rule `statistics` does: the spread of an experiment's runs, as a page, a table, JSON and a figure."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from berth import _spread_report as report
from berth._bands import draw_bands
from berth.comparing import file_name, open_named
from berth.errors import BerthError
from berth.fsio import write_json, write_text
from berth.record import finite
from berth.spread import measure_spread

if TYPE_CHECKING:
    from pathlib import Path

    from berth.analysis import StatisticsSettings
    from berth.config import Config

logger = logging.getLogger(__name__)


def report_runs(config: Config, root: Path, settings: StatisticsSettings) -> Path:
    """Write the statistics of what `experiment` names; their folder.

    Raises:
        BerthError: it is not given, not there, or has no valid point with this number.
    """
    if not config.experiment:
        raise BerthError(
            "statistics: give experiment. Example: snakemake --profile profiles/local statistics --config "
            "experiment=beltre2025/fig9"
        )
    source = open_named(config, root, config.experiment, config.only_runs)
    spread = measure_spread(source.rows, settings)
    if not any(group.runs for group in spread.groups):
        raise BerthError(f"{source.name}: no valid point has a {settings.metric}.")
    folder = root / config.results / "statistics" / file_name(config.experiment)
    page = report.page(source, spread, settings)
    write_text(folder / "statistics.md", page)
    write_text(folder / "statistics.csv", report.csv_text(spread, settings))
    write_json(folder / "statistics.json", finite(report.as_json(source, spread, settings)))
    draw_bands(
        spread,
        f"{source.name}: mean and spread over runs",
        [source.words],
        settings,
        [folder / f"bands.{suffix}" for suffix in ("pdf", "svg", "png")],
    )
    logger.info("%s", page)
    logger.info("Written: %s/statistics.md, .csv, .json and bands.pdf, .svg, .png", folder)
    return folder
