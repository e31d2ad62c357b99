"""Where points come from that are compared or counted: an experiment, a baseline, a published set, or a file.

A reference is one of

    NAME              an experiment of config.yaml: its records, failures and imported points in results/
    baseline:NAME     what `snakemake baseline` stored
    SET/FIGURE        a published figure
    PATH              a tidy table or another CSV of points, a baseline's JSON file, or a folder of records
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from berth._schema import nearest
from berth.baseline import baseline_path, baselines, read_baseline
from berth.columns import COLUMNS, row_level
from berth.coordinates import level_name
from berth.errors import BerthError
from berth.frames import frame
from berth.fsio import sha256_file
from berth.imported import imported_paths
from berth.published import find_figure, published_sets, read_points, read_rows
from berth.tidy import read_tidy, tidy_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

_BASELINE = "baseline:"


@dataclass(frozen=True)
class Source:
    """Points from one place.

    `name` is what the user called it, `words` says where the numbers come from. `rows` is a tidy table. `specs` are the
    full definitions by their hash, as far as they are known; `files` the points' files by row number, where they are.
    """

    name: str
    words: str
    rows: pd.DataFrame
    specs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[int, Path] = field(default_factory=dict)


def open_source(
    reference: str,
    *,
    root: Path,
    results: str,
    published_dir: str,
    experiments: Iterable[str],
    labels: Mapping[str, str],
    runs: Iterable[int] = (),
) -> Source:
    """The points that a reference names; of these `runs` alone, where any are given.

    `labels` are the names of platforms for people.

    Raises:
        BerthError: nothing has this name, it holds no points, or they cannot be read.
    """
    known = sorted(experiments)
    path = root / reference
    if reference in known:
        source = _experiment(reference, root / results, labels)
    elif reference.startswith(_BASELINE):
        source = _baseline(baseline_path(root / results, reference.removeprefix(_BASELINE)), reference)
    elif path.exists():
        source = _path(path, reference, labels)
    elif (set_name := reference.partition("/")[0]) in published_sets(root / published_dir):
        described, figure = find_figure(root / published_dir, reference)
        source = Source(
            reference, f"{described.citation} Figure file: {figure.path.name}.", frame(read_rows(figure.path))
        )
    else:
        stored = [_BASELINE + name for name in baselines(root / results)]
        sets = [f"{name}/FIGURE" for name in published_sets(root / published_dir)]
        raise BerthError(
            f'"{reference}" is no experiment, baseline, published figure or file.'
            f"{nearest(reference if '/' not in reference else set_name, [*known, *stored])} "
            f"Known: {', '.join([*known, *stored, *sets])}; or the path of a file."
        )
    wanted = sorted(set(runs))
    if not wanted:
        return source
    kept = source.rows["run"].isin(wanted)
    absent = sorted(set(wanted) - set(source.rows["run"].dropna().astype(int)))
    if absent:
        raise BerthError(f"only_runs: {reference} has no run {absent[0]}. Runs: {_listed(source.rows['run'])}.")
    numbers = {old: new for new, old in enumerate(source.rows.index[kept])}
    files = {numbers[old]: file for old, file in source.files.items() if old in numbers}
    return Source(source.name, source.words, source.rows[kept].reset_index(drop=True), source.specs, files)


def _listed(runs: pd.Series[Any]) -> str:
    return ", ".join(str(int(run)) for run in sorted(runs.dropna().unique())) or "none"


def _experiment(name: str, results: Path, labels: Mapping[str, str]) -> Source:
    records = sorted((results / "points" / name).glob("*/*/run*/[cq]*.json"))
    failures = sorted((results / "failures" / name).glob("*/*/run*/[cq]*.json"))
    imported = imported_paths(results, [name])
    words = f"Experiment {name}, {results.name}/."
    if imported:
        words += f" {len(imported)} of its points are imported."
    return _records(name, words, labels, records=records, failures=failures, imported=imported)


def _records(
    name: str,
    words: str,
    labels: Mapping[str, str],
    *,
    records: list[Path],
    failures: Sequence[Path] = (),
    imported: Sequence[Path] = (),
) -> Source:
    if not (records or failures or imported):
        raise BerthError(f"{name}: there are no points yet. Measure them, or correct the name.")
    rows = tidy_records(records, failures, platform_labels=labels, imported=imported)
    by_key = {tuple(path.parts[-4:]): path for path in [*failures, *imported, *records]}
    files, specs = {}, {}
    for number, row in enumerate(rows.itertuples()):
        level = row_level({"concurrency": row.concurrency, "request_rate_req_s": row.request_rate_req_s})
        path = by_key[str(row.platform), str(row.spec), f"run{row.run}", f"{level_name(level)}.json"]
        files[number] = path
        if row.spec not in specs and path not in imported:
            specs[str(row.spec)] = json.loads(path.read_text())["spec"]
    return Source(name, words, rows, specs, files)


def _baseline(path: Path, reference: str) -> Source:
    stored = read_baseline(path)
    words = (
        f"Baseline {stored['name']} of {stored['source']}, stored {stored['stored']}, SHA-256 {stored['sha256'][:16]}."
    )
    return Source(reference, words, frame(point["row"] for point in stored["points"]), stored["specs"])


def _path(path: Path, reference: str, labels: Mapping[str, str]) -> Source:
    if path.is_dir():
        records = sorted(path.glob("*/*/run*/[cq]*.json"))
        if not records:
            raise BerthError(
                f"{path}: no points here (PLATFORM/SPEC/runN/cN.json). Name the folder of one experiment, such as "
                "results/points/EXPERIMENT."
            )
        return _records(reference, f"Records in {reference}.", labels, records=records)
    if path.suffix == ".json":
        return _baseline(path, reference)
    if path.suffix not in (".csv", ".parquet"):
        raise BerthError(f"{path}: points are read from .csv, .parquet, a baseline's .json, or a folder of records.")
    words = f"File {reference}, SHA-256 {sha256_file(path)[:16]}."
    if path.suffix == ".parquet" or _header(path) == [column.name for column in COLUMNS]:
        rows = read_tidy(path)
    else:
        shared = {"source": "file", "experiment": path.stem}
        points = read_points(path)
        rows = frame({**shared, "platform_label": labels.get(row["platform"]), **row} for row in points)
    return Source(reference, words, rows)


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])
