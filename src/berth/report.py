"""The report: one HTML page from the tidy table, the provenance of its rows and the published curves."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import __version__
from berth.draw import tidy
from berth.fsio import sha256_file, write_text
from berth.report_belief import CONFIDENCE, agreements, spread, verdicts
from berth.report_data import Asked, for_page, kinds_for_page, shown
from berth.report_page import page
from berth.report_provenance import read_provenance, write_provenance
from berth.report_sections import counts, findings, ratios, section, span
from berth.report_tables import comparison, doubts, packed, runs
from berth.tidy import read_tidy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

# By so much the clock of a file server may be ahead of ours.
_CLOCKS_S = 5.0


def report(
    *,
    table: str,
    provenance: str,
    published_dir: str,
    experiments: Sequence[Mapping[str, Any]],
    profiles: Mapping[str, str],
    comparisons: Sequence[str],
    output: str,
) -> None:
    """Write the page. `experiments` are fields of `report_data.Asked`; `profiles` are profiles by platform.

    `comparisons` are files that `snakemake compare` wrote.

    The same files give the same bytes.

    Raises:
        BerthError: the table, the provenance or a published set cannot be read.
    """
    asked = [Asked.from_json(each) for each in experiments]
    rows, origin = read_tidy(Path(table)), read_provenance(Path(provenance))
    each_shown = [shown(rows, each, Path(published_dir)) for each in asked]
    found = [row for each in each_shown for row in doubts(each, origin)]
    tables = {
        "comparison": [row for each in each_shown for row in comparison(each)],
        "doubts": found,
        "runs": [row for each in each_shown for row in runs(each, origin)],
        "spread": [row for each in each_shown for row in spread(each)],
    }
    context = {
        "version": __version__,
        "table": table,
        "table_sha256": sha256_file(Path(table)),
        "provenance": provenance,
        "counts": counts(each_shown),
        "span": span(each_shown),
        "experiments": [section(each, origin, profiles) for each in each_shown],
        "comparison": ratios(tables["comparison"]),
        "findings": findings(found),
        "compared": bool(tables["comparison"]),
        "ran": bool(tables["runs"]),
        "agreements": agreements(tables["spread"]),
        "confidence": f"{CONFIDENCE:.0%}",
        "verdicts": verdicts(map(Path, comparisons)),
    }
    data = {
        "kinds": kinds_for_page(),
        "experiments": [for_page(each) for each in each_shown],
        "tables": {name: packed(each) for name, each in tables.items()},
    }
    text = page(context, data)
    write_text(Path(output), text)
    logger.info("Wrote %s: %d points, %.1f MB", output, sum(len(e.rows) for e in each_shown), len(text) / 1e6)


def report_what_there_is(
    *,
    results: str,
    records: list[str],
    failures: list[str],
    imported: list[str],
    not_run: list[dict[str, Any]],
    asked: Mapping[str, Mapping[str, Any]],
    labels: dict[str, str],
    published_dir: str,
    experiments: Sequence[Mapping[str, Any]],
    profiles: Mapping[str, str],
    comparisons: Sequence[str],
    looked_s: float,
) -> None:
    """Table, provenance and page of what was measured and what failed, at any time; measures nothing.

    Another Snakemake may accept points meanwhile. So the files get the time of the look: where a point is newer, they
    are out of date for the workflow, and made again.

    Raises:
        BerthError: as `report` does, or a record cannot be read.
    """
    folder = Path(results)
    table, origin = folder / "tidy" / "points.parquet", folder / "tidy" / "provenance.json"
    tidy(
        records=records,
        failures=failures,
        imported=imported,
        not_run=not_run,
        asked=asked,
        labels=labels,
        parquet=str(table),
        csv=str(table.with_suffix(".csv")),
    )
    write_provenance(map(Path, records), map(Path, failures), origin)
    report(
        table=str(table),
        provenance=str(origin),
        published_dir=published_dir,
        experiments=experiments,
        profiles=profiles,
        comparisons=comparisons,
        output=str(folder / "report" / "index.html"),
    )
    for path in (table, table.with_suffix(".csv"), origin, folder / "report" / "index.html"):
        os.utime(path, (looked_s - _CLOCKS_S, looked_s - _CLOCKS_S))
