"""The tidy table as curves: one per run, with its gaps, and the points that crashed or failed beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from berth.columns import PLOTTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

_DEFINITION = ["source", "experiment", "figure", "platform", "deployment", "spec"]
# What may tell two curves of one platform apart, in the order in which a label uses it.
_QUALIFIERS = ("source", "deployment", "figure", "experiment", "spec")


@dataclass(frozen=True)
class Mark:
    """A point without a usable value: its place in the curve, and the words for it."""

    position: int
    concurrency: int
    text: str
    crashed: bool


@dataclass(frozen=True)
class Curve:
    """One run. `concurrency` holds every level that a run of the same definition has, measured in this run or not."""

    label: str
    platform: str
    group: int
    run: int
    concurrency: Numbers
    flagged: NDArray[np.bool_]
    marks: tuple[Mark, ...]
    _rows: pd.DataFrame
    _places: NDArray[np.intp]

    def values(self, column: str) -> Numbers:
        """The column at each level; NaN at a gap, that is where the point is neither ok nor flagged."""
        usable = self._rows["status"].isin(PLOTTED).to_numpy(dtype=bool)
        return self._spread(np.where(usable, self._numbers(column), np.nan))

    def raw(self, column: str) -> Numbers:
        """The column at each level, whatever became of the point; NaN where there is no number."""
        return self._spread(self._numbers(column))

    def _numbers(self, column: str) -> Numbers:
        return self._rows[column].to_numpy(dtype=np.float64, na_value=np.nan)

    def _spread(self, numbers: Numbers) -> Numbers:
        spread = np.full(len(self.concurrency), np.nan)
        spread[self._places] = numbers
        return spread


def curves(df: pd.DataFrame) -> list[Curve]:
    """The curves of a tidy table in the order in which their first rows stand in it.

    `group` numbers the definitions (platform, deployment, spec, source): runs of one group repeat each other. `run` is
    the place of the run in its group, from 0. A level that one run of a group lacks is a gap in it.
    """
    df = df.reset_index(drop=True)
    found: list[tuple[int, Curve]] = []
    labels = _labels(df)
    for group, (_, siblings) in enumerate(df.groupby(_DEFINITION, sort=False, dropna=False)):
        levels = np.unique(siblings["concurrency"].to_numpy(dtype=np.float64))
        for run, (_, unordered) in enumerate(siblings.groupby("run", sort=False)):
            rows = unordered.sort_values("concurrency")
            places = np.searchsorted(levels, rows["concurrency"].to_numpy(dtype=np.float64))
            first = rows.index[0]
            flagged = np.zeros(len(levels), dtype=np.bool_)
            flagged[places] = (rows["status"] == "flagged").to_numpy(dtype=bool)
            curve = Curve(
                label=f"{labels[first]}{_hosts(rows)}",
                platform=str(rows["platform_label"].iloc[0]),
                group=group,
                run=run,
                concurrency=levels,
                flagged=flagged,
                marks=_marks(rows, places),
                _rows=rows,
                _places=places,
            )
            found.append((int(rows.index.min()), curve))
    return [curve for _, curve in sorted(found, key=lambda item: item[0])]


def notes(df: pd.DataFrame) -> list[str]:
    """What must be said below a figure of these rows: the modes of the measurement, and the notes of the rows."""
    modes = [str(mode) for mode in df["mode"].dropna().unique()]
    told = [f"Benchmark mode: {' and '.join(modes)}."] if modes else []
    return [*(str(note) for note in df["note"].dropna().unique()), *told]


def _labels(df: pd.DataFrame) -> pd.Series[str]:
    """Per row "Platform run N", with what else is needed to tell the curves of a platform apart."""
    base = df["platform_label"].fillna(df["platform"]).astype(str)
    label = base + " run " + df["run"].astype(str)
    for _, rows in df.groupby("platform", sort=False):
        for column in _needed(rows):
            words = rows[column].fillna("").astype(str)
            if column == "source":
                words = words.where(words == "published", "")
            label.loc[rows.index] += words.where(words == "", ", " + words)
    return label


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
    mixed = len(rows["source"].unique()) > 1
    return ["source", *used] if mixed and "source" not in used else used


def _hosts(rows: pd.DataFrame) -> str:
    hosts: Sequence[str] = [str(host) for host in rows["host"].dropna().unique()]
    return f" ({', '.join(hosts)})" if hosts else ""


def _marks(rows: pd.DataFrame, places: NDArray[np.intp]) -> tuple[Mark, ...]:
    marks = []
    for place, status, level, codes in zip(
        places, rows["status"], rows["concurrency"], rows["reason_codes"].fillna(""), strict=True
    ):
        if status in {"crashed", "failed"}:
            text = "crash" if status == "crashed" else codes.replace(";", ", ") or "failed"
            marks.append(Mark(int(place), int(level), text, status == "crashed"))
    return tuple(marks)
