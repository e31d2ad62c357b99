"""The tidy table as curves: one per run, with its gaps, and the points that crashed or failed beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from berth.columns import PLOTTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

CONCURRENCY, RATE = "concurrency", "request_rate_req_s"
_DEFINITION = ["source", "experiment", "figure", "platform", "deployment", "spec"]
# What may tell two curves of one platform apart, in the order in which a label uses it.
_QUALIFIERS = ("source", "deployment", "figure", "experiment", "client", "spec")


@dataclass(frozen=True)
class Mark:
    """A point without a usable value: its place in the curve, and the words for it."""

    position: int
    level: float
    text: str
    crashed: bool
    left_out: bool = False


class _Table:
    """The columns of a tidy table as arrays, each converted once: pandas is slow at thousands of small pieces."""

    def __init__(self, df: pd.DataFrame) -> None:
        self._df = df
        self._numbers: dict[str, Numbers] = {}
        self.usable = df["status"].isin(PLOTTED).to_numpy(dtype=bool)

    def numbers(self, column: str) -> Numbers:
        if column not in self._numbers:
            self._numbers[column] = self._df[column].to_numpy(dtype=np.float64, na_value=np.nan)
        return self._numbers[column]

    def words(self, column: str) -> NDArray[np.object_]:
        return self._df[column].fillna("").astype(str).to_numpy(dtype=object)


@dataclass(frozen=True)
class Curve:
    """One run. `levels` holds every level that a run of the same definition has, measured in this run or not.

    `skipped` are the levels that another run added for itself: their absence is no gap. `axis` is the column that the
    levels are of: CONCURRENCY, or RATE where rates were swept.
    """

    label: str
    platform: str
    group: int
    run: int
    axis: str
    levels: Numbers
    flagged: NDArray[np.bool_]
    skipped: NDArray[np.bool_]
    marks: tuple[Mark, ...]
    _table: _Table
    _rows: NDArray[np.intp]
    _places: NDArray[np.intp]

    @property
    def rows(self) -> NDArray[np.intp]:
        """The row of the table at each level, counted from 0; -1 where this run has none."""
        spread = np.full(len(self.levels), -1, dtype=np.intp)
        spread[self._places] = self._rows
        return spread

    def values(self, column: str) -> Numbers:
        """The column at each level; NaN at a gap, that is where the point is neither ok nor flagged."""
        usable = self._table.usable[self._rows]
        return self._spread(np.where(usable, self._table.numbers(column)[self._rows], np.nan))

    def raw(self, column: str) -> Numbers:
        """The column at each level, whatever became of the point; NaN where there is no number."""
        return self._spread(self._table.numbers(column)[self._rows])

    def _spread(self, numbers: Numbers) -> Numbers:
        spread = np.full(len(self.levels), np.nan)
        spread[self._places] = numbers
        return spread


def curves(df: pd.DataFrame) -> list[Curve]:
    """The curves of a tidy table in the order in which their first rows stand in it.

    `group` numbers the definitions (platform, deployment, spec, source): runs of one group repeat each other. `run` is
    the place of the run in its group, from 0. A level that one run of a group lacks is a gap in it.
    """
    if df.empty:
        return []
    table = _Table(df)
    rates = table.numbers(RATE)
    level = np.where(np.isfinite(rates), rates, table.numbers(CONCURRENCY))
    labels, platforms, hosts = _labels(df), table.words("platform_label"), table.words("host")
    statuses, codes = table.words("status"), table.words("reason_codes")
    groups = df.groupby(_DEFINITION, sort=False, dropna=False).ngroup().to_numpy()
    levels = {groups[rows[0]]: np.unique(level[rows]) for rows in _split(groups, level)}
    refined = table.words("refined") == "yes"
    added: dict[int, list[float]] = {}
    for row in np.flatnonzero(refined):
        added.setdefault(groups[row], []).append(float(level[row]))
    runs: Counter[int] = Counter()
    found = []
    for rows in _split(df.groupby([*_DEFINITION, "run"], sort=False, dropna=False).ngroup().to_numpy(), level):
        group = groups[rows[0]]
        places = np.searchsorted(levels[group], level[rows])
        flagged = np.zeros(len(levels[group]), dtype=np.bool_)
        flagged[places] = statuses[rows] == "flagged"
        names = ", ".join(dict.fromkeys(host for host in hosts[rows] if host))
        curve = Curve(
            label=labels[rows[0]] + (f" ({names})" if names else ""),
            platform=platforms[rows[0]],
            group=int(group),
            run=runs[group],
            axis=RATE if np.isfinite(rates[rows[0]]) else CONCURRENCY,
            levels=levels[group],
            flagged=flagged,
            skipped=np.isin(levels[group], added.get(group, [])) & ~np.isin(levels[group], level[rows]),
            marks=tuple(_marks(places, level[rows], statuses[rows], codes[rows])),
            _table=table,
            _rows=rows,
            _places=places,
        )
        runs[group] += 1
        found.append(curve)
    return found


def _marks(places: Any, levels: Any, statuses: Any, codes: Any) -> Iterator[Mark]:
    stopped = False
    for place, level, status, code in zip(places, levels, statuses, codes, strict=True):
        if status in {"crashed", "failed"}:
            yield Mark(int(place), float(level), *_word(status, code))
        elif status == "left_out" and not stopped:
            # The first of them says it for all.
            stopped = True
            yield Mark(int(place), float(level), "stopped", crashed=False, left_out=True)


def _split(numbers: NDArray[np.integer[Any]], level: Numbers) -> list[NDArray[np.intp]]:
    """The rows of each number, the rows of one number by level."""
    order = np.lexsort((level, numbers))
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _word(status: str, codes: str) -> tuple[str, bool]:
    if status == "crashed":
        return "crash", True
    first, *more = codes.split(";")
    return (first or "failed") + (f" +{len(more)}" if more else ""), False


def notes(df: pd.DataFrame) -> list[str]:
    """What must be said below a figure of these rows: the modes of the measurement, and the notes of the rows."""
    modes = [str(mode) for mode in df["mode"].dropna().unique()]
    told = [f"Benchmark mode: {' and '.join(modes)}."] if modes else []
    return [*(str(note) for note in df["note"].dropna().unique()), *told, *_stops(df)]


def _stops(df: pd.DataFrame) -> list[str]:
    """A sentence on the runs that stopped early, with the reason of the first few."""
    rows = df[df["status"] == "left_out"].drop_duplicates(["experiment", "platform", "spec", "run"])
    told = [
        f"{label} run {run} {why}"
        for label, run, why in zip(rows["platform_label"], rows["run"], rows["failure_cause"], strict=True)
    ]
    more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
    return [f"Left out, and not failed: {'; '.join(told[:4])}{more}."] if told else []


def without_value(drawn: list[Curve]) -> str:
    """A sentence that lists the points that crashed or failed, for figures in which they have no place; "" for none."""
    told = [
        f"{curve.label} at {mark.level:g} ({mark.text})" for curve in drawn for mark in curve.marks if not mark.left_out
    ]
    if not told:
        return ""
    more = f" and {len(told) - 8} more" if len(told) > 8 else ""
    return f"No value, so not shown: {', '.join(told[:8])}{more}."


def _labels(df: pd.DataFrame) -> NDArray[np.object_]:
    """Per row "Platform run N", with what else is needed to tell the curves of a platform apart."""
    df = df.reset_index(drop=True).assign(source=_source_words(df))
    label = df["platform_label"].fillna(df["platform"]).astype(str) + " run " + df["run"].astype(str)
    for _, rows in df.groupby("platform", sort=False):
        for column in _needed(rows):
            words = rows[column].fillna("").astype(str)
            label.loc[rows.index] += words.where(words == "", ", " + words)
    return label.to_numpy(dtype=object)


def _source_words(df: pd.DataFrame) -> NDArray[np.object_]:
    """Per row how its origin is told in a label: nothing for what was measured here."""
    source, client = (df[column].fillna("").astype(str) for column in ("source", "client"))
    words = source.where(source.isin(["published", "imported"]), "")
    return words.where((words != "imported") | (client == ""), "imported from " + client).to_numpy(dtype=object)


def _needed(rows: pd.DataFrame) -> list[str]:
    """The fewest qualifiers, taken in order, with which platform and run name one curve each."""
    wanted = len(rows[[*_DEFINITION, "run"]].drop_duplicates())
    used: list[str] = []
    for column in _QUALIFIERS:
        if len(rows[[*used, "run"]].drop_duplicates()) == wanted:
            break
        if len(rows[column].unique()) > 1:
            used.append(column)
    # Both kinds of data in one figure are always told apart, even when no run number collides.
    mixed = len(rows["source"].unique()) > 1 or rows["source"].str.startswith("imported").any()
    return ["source", *used] if mixed and "source" not in used else used
