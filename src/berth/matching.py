"""Which curve of one source is the same as which of another, and what differs in how they were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.frames import plain_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from berth.sources import Source

# What makes numbers another measurement and not a faster or slower server, by column of the tidy table.
DEFINING = (
    "platform",
    "accelerator",
    "accelerators",
    "nodes",
    "tensor_parallel",
    "pipeline_parallel",
    "model",
    "dataset",
    "num_prompts",
    "mode",
)
# The same in a benchmark's definition, for sources that have it in full.
_DEFINING_BENCHMARK = ("dataset", "seed", "request_rate", "temperature", "ignore_eos", "client_nodes", "seed_per_point")
# What a site may change between two days and wants to see the effect of.
NOTED = ("revision", "engine", "engine_version", "image", "image_digest", "client", "client_version")


@dataclass(frozen=True)
class Difference:
    """One difference in how two curves were measured; `defining` where it makes them two measurements."""

    what: str
    ours: str
    theirs: str
    defining: bool

    def __str__(self) -> str:
        """The difference in a few words."""
        return f"{self.what}: {self.ours} against {self.theirs}"


@dataclass(frozen=True)
class CurveData:
    """One definition of a source: its rows, what all of them share, and its full definition where it is known."""

    label: str
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    spec: Mapping[str, Any] | None

    @property
    def platform(self) -> str:
        """The platform's name in the configuration."""
        return str(self.facts.get("platform", ""))


@dataclass(frozen=True)
class Pair:
    """A curve and the one it is compared with, None where the other source has no such."""

    ours: CurveData | None
    theirs: CurveData | None
    differences: tuple[Difference, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name of the curve for people."""
        return (self.ours or self.theirs or _NOTHING).label


_NOTHING = CurveData("", (), {}, None)


def pair_curves(ours: Source, theirs: Source) -> list[Pair]:
    """Each curve of both sources once.

    Curves of one platform belong together: those of the same spec first, then those of the same deployment, then those
    with the fewest differences. Where both sources have one curve alone, these two belong together in any case.
    """
    mine, others = _curves(ours), _curves(theirs)
    if len(mine) == len(others) == 1:
        return [_pair(mine[0], others[0])]
    pairs = []
    left = list(others)
    for curve in mine:
        candidates = [other for other in left if other.platform == curve.platform]
        if not candidates:
            pairs.append(Pair(curve, None))
            continue
        best = min((_pair(curve, other) for other in candidates), key=_distance)
        left = [other for other in left if other is not best.theirs]
        pairs.append(best)
    return [*pairs, *(Pair(None, other) for other in left)]


def _distance(pair: Pair) -> tuple[bool, bool, int, int]:
    assert pair.ours is not None
    assert pair.theirs is not None
    a, b = pair.ours.facts, pair.theirs.facts
    defining = sum(1 for each in pair.differences if each.defining)
    return a.get("spec") != b.get("spec"), a.get("deployment") != b.get("deployment"), defining, len(pair.differences)


def _curves(source: Source) -> list[CurveData]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in plain_rows(source.rows):
        found.setdefault(tuple(row.get(name) for name in ("platform", "deployment", "spec", "figure")), []).append(row)
    platforms = [key[0] for key in found]
    curves = []
    for (platform, deployment, spec, figure), rows in found.items():
        label = str(rows[0].get("platform_label") or platform)
        if platforms.count(platform) > 1:
            label = " ".join(str(word) for word in (label, deployment or figure, spec) if word)
        names = {"spec", "deployment", *DEFINING, *NOTED}
        shared = {name: {row.get(name) for row in rows} - {None} for name in names}
        facts = {name: ", ".join(sorted(map(str, values))) for name, values in shared.items() if values}
        curves.append(CurveData(label, rows, facts, source.specs.get(str(spec))))
    return curves


def _pair(ours: CurveData, theirs: CurveData) -> Pair:
    differences = [
        Difference(name, ours.facts[name], theirs.facts[name], name in DEFINING)
        for name in (*DEFINING, *NOTED)
        if name in ours.facts and name in theirs.facts and ours.facts[name] != theirs.facts[name]
    ]
    if ours.spec and theirs.spec:
        differences += _in_specs(ours.spec, theirs.spec, {each.what for each in differences})
    unknown = [name for name in DEFINING if (name in ours.facts) != (name in theirs.facts)]
    return Pair(ours, theirs, tuple(differences), tuple(unknown))


def _in_specs(ours: Mapping[str, Any], theirs: Mapping[str, Any], told: set[str]) -> list[Difference]:
    """What two full definitions have beyond the columns of the table: benchmark, arguments, environment."""
    found = []
    for part, keys in (("benchmark", _DEFINING_BENCHMARK), ("model", ("generated",))):
        a, b = ours.get(part, {}), theirs.get(part, {})
        found += [
            Difference(f"{part}.{key}", _told(a.get(key)), _told(b.get(key)), defining=True)
            for key in keys
            if a.get(key) != b.get(key) and key not in told
        ]
    a, b = ours.get("benchmark", {}).get("warm_up_prompts"), theirs.get("benchmark", {}).get("warm_up_prompts")
    if a != b:
        found.append(Difference("benchmark.warm_up_prompts", _told(a), _told(b), defining=False))
    for part in ("args", "env"):
        a, b = ours.get("serve", {}).get(part, {}), theirs.get("serve", {}).get(part, {})
        found += [
            Difference(f"serve.{part}.{key}", _told(a.get(key)), _told(b.get(key)), defining=False)
            for key in sorted(set(a) | set(b))
            if a.get(key) != b.get(key)
        ]
    return found


def _told(value: Any) -> str:
    return "not set" if value is None else str(value)
