"""What the report says in sentences: summaries, text alternatives of figures, what a doubt means."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from berth._curves import CONCURRENCY, RATE, Curve, curves
from berth.imported import NOT_CHECKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.figures import Panel
    from berth.report_data import Shown

logger = logging.getLogger(__name__)

VALIDITY_PAGE = Path(__file__).resolve().parents[2] / "docs" / "validity.md"
THROUGHPUT = "output_throughput_tok_s"
# Below this gain, doubling the concurrency is said not to pay any more.
_WORTH = 1.1
_MOST = 12
_TELLING = ("deployment", "figure", "spec")


@dataclass(frozen=True)
class Group:
    """Runs of one definition that repeat each other: their name, the levels, and the mean of a column at each level."""

    name: str
    source: str
    curves: tuple[Curve, ...]

    @property
    def levels(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The levels that any of its runs has."""
        return self.curves[0].levels

    @property
    def by_rate(self) -> bool:
        """Whether its levels are request rates."""
        return self.curves[0].axis == RATE

    def each(self, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One row per run, one place per level; NaN at a gap."""
        return np.stack([curve.values(column) for curve in self.curves])

    def mean(self, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The mean over the runs at each level; NaN where no run has a value."""
        values = self.each(column)
        count = np.isfinite(values).sum(axis=0)
        return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def groups(rows: pd.DataFrame) -> list[Group]:
    """The groups of an experiment's rows in their order, named by platform and whatever else tells them apart."""
    found: dict[int, list[Curve]] = {}
    for curve in curves(rows):
        found.setdefault(curve.group, []).append(curve)
    first_rows = [rows.iloc[next(row for row in of_group[0].rows if row >= 0)] for of_group in found.values()]
    described = [{name: _word(row[name]) for name in ("platform", "source", *_TELLING)} for row in first_rows]
    # What tells the groups of one platform and source apart, if anything has to.
    different: dict[tuple[str, str, str], set[str]] = {}
    for words in described:
        for name in _TELLING:
            different.setdefault((words["platform"], words["source"], name), set()).add(words[name])
    named = []
    for of_group, words in zip(found.values(), described, strict=True):
        parts = [of_group[0].platform, words["source"] if words["source"] != "measured" else ""]
        parts += [words[name] for name in _TELLING if len(different[words["platform"], words["source"], name]) > 1]
        named.append(Group(", ".join(part for part in parts if part), words["source"], tuple(of_group)))
    return named


def summary(each: Shown) -> list[tuple[str, str]]:
    """Per group its name and a few sentences.

    Where throughput peaks, until where more requests in flight pay, how long users wait, and how well the runs agree.
    """
    found = groups(each.rows)
    told = [(group.name, " ".join(_sentences(group))) for group in found[:_MOST]]
    return [*told, (f"{len(found) - _MOST} more", " are in the table.")] if len(found) > _MOST else told


def _sentences(group: Group) -> list[str]:
    levels, rate = group.levels, group.mean(THROUGHPUT)
    known = np.flatnonzero(np.isfinite(rate))
    runs = len(group.curves)
    name = f" ({f'mean of {runs} runs' if runs > 1 else '1 run'})"
    if not len(known):
        return [" has no point with a value."]
    top = known[int(np.argmax(rate[known]))]
    at = f"at {levels[top]:g} requests/s" if group.by_rate else f"with {levels[top]:.0f} requests in flight"
    said = f"{name} peaks at {number(rate[top])} output tokens/s, {at}"
    first = known[0]
    if levels[first] == 1 and not group.by_rate and top != first and rate[first] > 0:
        said += f": {rate[top] / rate[first]:.3g} times the {number(rate[first])} that a single user gets"
    return [
        f"{said}.",
        *([] if group.by_rate else _knee(levels[known], rate[known])),
        *_waiting(group),
        *_agreement(group),
    ]


def _knee(levels: Any, rate: Any) -> list[str]:
    for number_, (low, high) in enumerate(pairwise(rate)):
        later = rate[number_ + 1 :]
        doubled = levels[number_ + 1] >= 2 * levels[number_]
        if doubled and low > 0 and high < _WORTH * low and (later < _WORTH * low).all():
            return [f"Beyond {levels[number_]:.0f}, more requests in flight add less than {100 * (_WORTH - 1):.0f} %."]
    return []


def _waiting(group: Group) -> list[str]:
    wait = group.mean("median_ttft_ms")
    known = np.flatnonzero(np.isfinite(wait))
    if len(known) < 2:
        return []
    low, high = known[0], known[-1]
    ends = [f"{number(wait[place])} ms at {group.levels[place]:g}" for place in (low, high)]
    return [f"The median time to first token goes from {ends[0]} to {ends[1]}."]


def _agreement(group: Group) -> list[str]:
    values = group.each(THROUGHPUT)
    both = np.flatnonzero(np.isfinite(values).sum(axis=0) > 1)
    if not len(both):
        return []
    low, high = np.nanmin(values[:, both], axis=0), np.nanmax(values[:, both], axis=0)
    apart = 100 * (high - low) / np.where(high > 0, high, 1)
    widest = int(np.argmax(apart))
    return [f"Its runs differ by {apart[widest]:.2g} % at most (at {group.levels[both[widest]]:g})."]


def alternative(each: Shown, panel: Panel, label: str) -> str:
    """A figure's text alternative: the curves, each with its first, highest and last value."""
    told = []
    column, axis = panel.column, RATE if panel.x == RATE else CONCURRENCY
    drawn = [curve for curve in curves(each.rows) if curve.axis == axis and np.isfinite(curve.values(column)).any()]
    for curve in drawn[:_MOST]:
        values = curve.values(column)
        known = np.flatnonzero(np.isfinite(values))
        first, last = known[0], known[-1]
        told.append(
            f"{curve.label}: {number(values[first])} at {curve.levels[first]:g}, "
            f"{number(values[last])} at {curve.levels[last]:g}"
            + "".join(f"; {mark.text} at {mark.level:g}" for mark in curve.marks)
        )
    if not told:
        return f"{label}: no value yet."
    more = f"; and {len(drawn) - _MOST} more curves, in the table" if len(drawn) > _MOST else ""
    over = "request rate" if axis == RATE else "maximum request concurrency"
    return f"{label} over {over}. {'. '.join(told)}{more}."


@dataclass(frozen=True)
class Meaning:
    """A reason code of the validity gate: when it is found, why it matters, what to do; "" where nothing is written."""

    found_when: str
    why: str
    remedy: str


# What a record's failure may be, where the gate had nothing to judge, and what came from elsewhere.
OTHERS = {
    NOT_CHECKED: Meaning(
        "another tool measured the point, and its file was imported",
        "The numbers are that tool's. Berth's gate could look only at what the file tells.",
        "docs/import.md says what was checked; measure the point with Berth where that matters.",
    ),
    "crash": Meaning(
        "the server died during the point, or never became ready",
        "There is no number for it.",
        "read the cause and the log; the next run measures the point again.",
    ),
    "client": Meaning(
        "the benchmark client failed while the server lived",
        "There is no number for it.",
        "read the client's log; the next run measures the point again.",
    ),
    "aborted": Meaning(
        "the time of the job did not suffice",
        "There is no number for it.",
        "start again, with more time per job if it happens again.",
    ),
    "failed": Meaning("the point has no usable number", "The record or the published set says no more.", ""),
}


def meanings(page: Path = VALIDITY_PAGE) -> dict[str, Meaning]:
    """What docs/validity.md says about each reason code, as plain text.

    A copy of the workflow may come without its documents: a report without these words is better than none.
    """
    try:
        text = page.read_text()
    except OSError as error:
        logger.warning("%s: the report does not explain reason codes: %s.", page, error.strerror)
        text = ""
    when = dict(re.findall(r"^\| `(\w+)` \| \w+ \| (.+?) \|", text, flags=re.MULTILINE))
    parts = re.split(r"^### (\w+)\n", text, flags=re.MULTILINE)
    found = dict(OTHERS)
    for code, section in zip(parts[1::2], parts[2::2], strict=True):
        body = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
        why, _, remedy = _plain(body).partition(" Do: ")
        found[code] = Meaning(when.get(code, ""), why, remedy)
    return found


def _plain(markdown: str) -> str:
    """A paragraph without line breaks and without the marks of emphasis and code."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(markdown.split()))
    return re.sub(r"\*\*(.+?)\*\*|\*(.+?)\*|`(.+?)`", lambda m: m[1] or m[2] or m[3], text)


def number(value: float) -> str:
    """A number for people: thousands apart, as many decimals as tell something."""
    size = abs(value)
    if size < 1:
        return f"{value:.4f}".rstrip("0").rstrip(".")
    decimals = 0 if size >= 1000 or float(value).is_integer() else 1 if size >= 100 else 2
    return f"{value:,.{decimals}f}"


def listed(words: Sequence[str], most: int = 8) -> str:
    """The words with commas; only the first ones of many, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _word(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
