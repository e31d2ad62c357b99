"""Table, provenance, figures and report of many points: seconds, peak memory, size of the page, and a browser's time.

Usage: PYTHONPATH=tests python benchmarks/report_scale.py [--points 1000,2500,5000,10000] [--no-browser]

Each number of points is made in a process of its own, from records as files: runs of 11 levels, a tenth of the points
flagged. The browser (Debian: chromium-headless-shell) opens the page, draws all of it, and sorts the table of points.
Prints a table in Markdown: CPU seconds of Python, seconds of the wall for the browser, and CPU seconds of the report
per 1,000 points, which stay the same where growth is linear.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import headless_browser
from report_points import KINDS, flagged, record

from berth.draw import figure
from berth.report import report
from berth.report_provenance import write_provenance
from berth.tidy import tidy_records, write_tidy

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = [2**power for power in range(11)]
COLUMNS = ("table_s", "provenance_s", "figures_s", "report_s", "peak_mb", "page_mb", "open_s", "draw_s", "sort_s")


def measure(points: int, *, browser: bool) -> dict[str, float]:
    """The columns of one row, measured in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = make_records(folder, points)
        table, origin, page = (folder / name for name in ("points.parquet", "provenance.json", "index.html"))
        took: dict[str, float] = {}
        clock = Clock(took, time.process_time)
        write_tidy(tidy_records(records, []), table, folder / "points.csv")
        clock.lap("table_s")
        write_provenance(records, [], origin)
        clock.lap("provenance_s")
        for kind in KINDS:
            figure(
                table=str(table),
                published=[],
                published_dir="",
                experiment="mine",
                kind=kind,
                title="Scale",
                outputs=[str(folder / f"{kind}.svg")],
            )
        clock.lap("figures_s")
        mine = {"name": "mine", "title": "Scale", "kinds": KINDS, "published": []}
        report(
            table=str(table),
            provenance=str(origin),
            published_dir="",
            experiments=[mine],
            profiles={},
            comparisons=[],
            output=str(page),
        )
        clock.lap("report_s")
        took["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        took["page_mb"] = page.stat().st_size / 1e6
        if browser:
            look(page, folder / "browser", took)
        return took


class Clock:
    """Seconds between laps: of this process's CPU, which others on the machine do not change much, or of the wall."""

    def __init__(self, took: dict[str, float], now: Callable[[], float]) -> None:
        self._took, self._now = took, now
        self._last = now()

    def lap(self, name: str) -> None:
        """Note the seconds since the lap before."""
        now = self._now()
        self._took[name], self._last = now - self._last, now


def make_records(folder: Path, points: int) -> list[Path]:
    """The files of so many records."""
    paths = []
    for number in range(points):
        run, level = number // len(LEVELS) + 1, LEVELS[number % len(LEVELS)]
        doubt: dict[str, Any] = (
            {"validity": flagged("warm_cache", "57.0% of the prompt tokens.")} if number % 10 == 0 else {}
        )
        path = folder / f"run{run}-c{level}.json"
        path.write_text(json.dumps(record(run, level, **doubt)))
        paths.append(path)
    return paths


def look(page: Path, profile: Path, took: dict[str, float]) -> None:
    """What a browser needs: until the page is loaded, until all of it is drawn, and for a sort."""
    with headless_browser.browser(profile) as tab:
        tab.size(1280, 900)
        clock = Clock(took, time.monotonic)
        tab.go(page.as_uri())
        tab.settle()
        clock.lap("open_s")
        tab.ask("window.dispatchEvent(new Event('beforeprint'))")
        tab.settle()
        clock.lap("draw_s")
        tab.ask("document.querySelectorAll('[data-experiment-table] th button')[5].click()")
        tab.settle()
        clock.lap("sort_s")


def main() -> None:
    """Measure each number of points in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="1000,2500,5000,10000")
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    browser = not given.no_browser and headless_browser.program() is not None
    if given.one:
        print(json.dumps(measure(given.one, browser=browser)))
        return
    columns = [name for name in COLUMNS if browser or name not in {"open_s", "draw_s", "sort_s"}]
    print("| points | " + " | ".join(columns) + " | report_s per 1,000 |")
    print("|---|" + "---|" * (len(columns) + 1))
    for points in map(int, given.points.split(",")):
        more = ["--no-browser"] if not browser else []
        argv = [sys.executable, __file__, "--one", str(points), *more]
        took = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        cells = " | ".join(f"{took[name]:.3g}" for name in columns)
        print(f"| {points} | {cells} | {1000 * took['report_s'] / points:.3g} |", flush=True)


if __name__ == "__main__":
    main()
