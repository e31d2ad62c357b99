"""The live view as lines of text, for any width, with or without colour and with or without UTF-8."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from berth.coordinates import level_words
from berth.progress import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from berth.coordinates import Level
    from berth.watch_state import PointSeen, RunSeen

_LEAST_WIDTH = 24
# Of the finished runs, at most so many lines.
_MOST_IDLE = 12
_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
# What a terminal would obey instead of showing: C0 and C1 controls, and marks that turn the direction of text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True)
class Style:
    """How wide a line may be, and what the terminal can show."""

    width: int
    colour: bool = False
    utf8: bool = True

    def line(self, text: str, colour: str = "") -> str:
        """One line that fits: what controls a terminal is left out, and what is too long is cut."""
        plain = _CONTROL.sub(" ", text)
        if not self.utf8:
            plain = plain.encode("ascii", "replace").decode()
        width = max(_LEAST_WIDTH, self.width)
        if len(plain) > width:
            plain = plain[: width - 3] + "..."
        return f"\033[{_COLOURS[colour]}m{plain}\033[0m" if colour and self.colour else plain

    def lines(self, name: str, text: str, colour: str = "") -> list[str]:
        """A named part, over as many lines as it needs."""
        # The width of the widest name, and less where there is no room for it.
        indent = 10 if self.width >= 60 else 4
        head = f"  {name:<{indent - 2}}" if indent == 10 else f"  {name} "
        room = max(_LEAST_WIDTH, self.width)
        wrapped = textwrap.wrap(
            _CONTROL.sub(" ", text), room, initial_indent=head, subsequent_indent=" " * indent, break_on_hyphens=False
        )
        return [self.line(each, colour) for each in wrapped or [head]]

    def text(self, text: str, colour: str = "", *, indent: int = 0) -> list[str]:
        """A text over as many lines as it needs, the later ones further in."""
        later = " " * (2 * indent)
        wrapped = textwrap.wrap(
            text, max(_LEAST_WIDTH, self.width), initial_indent=" " * indent, subsequent_indent=later
        )
        return [self.line(each, colour) for each in wrapped]

    def bar(self, part: float, cells: int) -> str:
        """A bar of so many cells."""
        full = round(max(0.0, min(1.0, part)) * cells)
        return ("█" * full + "░" * (cells - full)) if self.utf8 else "#" * full + "." * (cells - full)


def view(runs: Sequence[RunSeen], now_s: float, style: Style) -> list[str]:
    """The lines: all in all, then each run that a sweep holds, then the others by experiment and platform."""
    lines = [*_total(runs, now_s, style)]
    for seen in runs:
        if seen.state != "idle":
            lines += ["", *_run(seen, now_s, style)]
    idle = [seen for seen in runs if seen.state == "idle"]
    if idle:
        lines += ["", *_idle(idle, style)]
    return lines


def _total(runs: Sequence[RunSeen], now_s: float, style: Style) -> list[str]:
    if not runs:
        return [style.line("No run yet: no point, no failure and no sweep in these results.")]
    states = [seen.state for seen in runs]
    busy = [
        f"{states.count(state)} {state}"
        for state in ("measuring", "ready", "starting", "silent", "dead")
        if state in states
    ]
    done, failed = sum(len(seen.done) for seen in runs), sum(len(seen.failed) for seen in runs)
    waiting = sum(len(seen.waiting) + bool(seen.standing and seen.standing.level) for seen in runs if seen.active)
    told = [f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(busy) or 'no sweep goes on'}"]
    points = [f"{done} point{'s' if done != 1 else ''} done"]
    if failed:
        points.append(f"{failed} failed")
    if waiting:
        points.append(f"{waiting} to go")
    told.append(", ".join(points))
    left = [seen.standing.left_s(now_s) if seen.standing else None for seen in runs if seen.active]
    if left:
        known = [seconds for seconds in left if seconds is not None]
        # Sweeps run side by side, so that the longest one counts.
        if len(known) == len(left):
            told.append(f"about {span(max(known))} left in all")
        elif known:
            told.append(f"at least {span(max(known))} left in all")
        else:
            told.append("time left not known before a first point")
    return style.text("; ".join(told), "bold")


def _run(seen: RunSeen, now_s: float, style: Style) -> list[str]:
    run, standing = seen.run, seen.standing
    lines = style.text(f"{run.experiment} on {run.platform}, run {run.run} ({run.spec})", "bold")
    lines += style.lines("server", _server(seen, now_s), "red" if seen.state in {"dead", "silent"} else "")
    if standing is not None and standing.level:
        lines += _running(seen, now_s, style)
    if seen.waiting:
        lines += style.lines("to go", ", ".join(map(str, seen.waiting)))
    lines += _ended(seen, style)
    if standing is not None and seen.active:
        left = standing.left_s(now_s)
        lines += style.lines("left", f"about {span(left)}" if left is not None else "not known before a first point")
    if seen.said:
        lines.append(style.line(f"  log       {seen.said}" if style.width >= 60 else f"  {seen.said}", "dim"))
    return lines


def _server(seen: RunSeen, now_s: float) -> str:
    holder, standing = seen.holder, seen.standing
    if holder is None:
        raise AssertionError("only a run that a sweep holds is shown so")
    where = holder.identity.host + (f", job {holder.job_id}" if holder.job_id else "")
    if seen.state == "dead":
        return f"the sweep on {where} is dead; start Snakemake again, and it goes on from what is done"
    if seen.state == "silent":
        return f"no sign of life from {where} for {span(seen.silent_s)}: dead, paused, or cut off from these files"
    since = f" for {span(max(0.0, now_s - standing.since_s))}" if standing else f", sweep since {holder.acquired}"
    restarted = f", started for the {standing.instance}. time" if standing and standing.instance > 1 else ""
    told = {"ready": "between two points, ready", "measuring": "measuring, ready"}.get(seen.state, seen.state)
    return f"{told}{since} on {where}{restarted}"


def _running(seen: RunSeen, now_s: float, style: Style) -> list[str]:
    standing = seen.standing
    if standing is None:
        raise AssertionError("only a sweep that tells how it gets on has a running point")
    elapsed_s = max(0.0, now_s - standing.level_since_s)
    text = level_words(standing.level)
    if standing.total:
        part = standing.completed / standing.total
        bar = f" {style.bar(part, 20)}" if style.width >= 100 else ""
        text += f":{bar} {standing.completed}/{standing.total} requests ({part:.0%})"
    text += f" in {span(elapsed_s)}"
    if standing.completed and elapsed_s > 0:
        text += f", {standing.completed / elapsed_s:.2f} requests/s"
    left = standing.point_left_s(now_s)
    return style.lines("point", text + (f", about {span(left)} left" if left is not None else ""), "green")


def _ended(seen: RunSeen, style: Style) -> list[str]:
    lines = []
    if seen.done:
        lines += style.lines("done", "  ".join(_point(point) for point in seen.done))
    flags: dict[str, list[Level]] = {}
    for point in seen.done:
        for code in point.codes:
            flags.setdefault(code, []).append(point.level)
    for code, levels in flags.items():
        lines += style.lines("flagged", f"{code} at {', '.join(map(str, levels))}", "yellow")
    for point in seen.failed:
        lines += style.lines("failed", f"{point.level}: {_short(point)}", "red")
    return lines


def _point(point: PointSeen) -> str:
    rate = "no rate" if point.rate_tok_s is None else f"{point.rate_tok_s:.4g} tok/s"
    # No line break between a level and its rate.
    return f"{point.level}:\u00a0{rate}".replace(" ", "\u00a0")


def _short(point: PointSeen) -> str:
    return textwrap.shorten(_CONTROL.sub(" ", point.failure) or ", ".join(point.codes) or "no reason given", 200)


def _idle(runs: Iterable[RunSeen], style: Style) -> list[str]:
    lines = [style.line("No sweep goes on:", "bold")]
    grouped = [
        (name, list(members))
        for name, members in groupby(runs, key=lambda seen: (seen.run.experiment, seen.run.platform, seen.run.spec))
    ]
    for (experiment, platform, spec), members in grouped[:_MOST_IDLE]:
        done, failed = sum(len(seen.done) for seen in members), sum(len(seen.failed) for seen in members)
        text = f"{experiment} on {platform} ({spec}): {len(members)} run{'s' if len(members) > 1 else ''}, {done} done"
        failures = f", {failed} failed" if failed else ""
        lines += style.text(text + failures, "red" if failed else "", indent=2)
    if len(grouped) > _MOST_IDLE:
        lines.append(style.line(f"  and {len(grouped) - _MOST_IDLE} more definitions"))
    return lines
