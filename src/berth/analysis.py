"""What `statistics` and `compare` are asked to do: settings of the configuration, with their reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from berth._schema import nearest
from berth.columns import COLUMNS
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping

THROUGHPUT = "output_throughput_tok_s"
# Numbers of the table that say how fast a server was.
METRICS = tuple(
    column.name for column in COLUMNS if column.kind == "number" and column.unit in ("tokens/s", "requests/s", "ms")
)


@dataclass(frozen=True)
class Tolerance:
    """How much worse a number may be than the reference: at one point, and over a curve in the geometric mean."""

    tolerance: float
    reason: str
    curve_tolerance: float | None = None


def _published_spread() -> dict[str, Tolerance]:
    return {
        THROUGHPUT: Tolerance(
            tolerance=0.05,
            curve_tolerance=0.03,
            reason=(
                "Two published runs of the same point differ by less than 5 % in 95 of 100 cases; two whole published "
                "runs, in the geometric mean over their points, by less than 3 % in all cases but one."
            ),
        )
    }


@dataclass(frozen=True)
class CompareSettings:
    """Numbers that are judged, by column of the tidy table, and differences that do not stand in the way."""

    metrics: dict[str, Tolerance] = field(default_factory=_published_spread)
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class StatisticsSettings:
    """The number that is looked at, how sure an interval is, and the relative precision that is wished."""

    metric: str = THROUGHPUT
    confidence: float = 0.95
    precision: float = 0.02


@dataclass(frozen=True)
class CrossCheckSettings:
    """Clients that are compared on one server, the first being the reference, how often, and at which levels.

    Without levels, the least, the middle and the largest of the benchmark. Means closer than `tolerance` (relative)
    agree; others differ where Welch's test gives a p below `significance`.
    """

    clients: tuple[str, ...] = ("vllm", "guidellm", "aiperf")
    repeats: int = 3
    levels: tuple[int, ...] = ()
    tolerance: float = 0.02
    significance: float = 0.05


def cross_check_settings(raw: Mapping[str, Any]) -> CrossCheckSettings:
    """The section `cross_check` of config.yaml, which its schema has accepted."""
    lists = {key: tuple(raw[key]) for key in ("clients", "levels") if key in raw}
    return CrossCheckSettings(**{**raw, **lists})


def compare_settings(raw: Mapping[str, Any]) -> CompareSettings:
    """The section `compare` of config.yaml, which its schema has accepted.

    Raises:
        BerthError: a metric is no such column.
    """
    metrics = raw.get("metrics") or {}
    for name in metrics:
        _require_metric(name, f"config/config.yaml: compare.metrics.{name}")
    chosen = {name: Tolerance(**value) for name, value in metrics.items()}
    return CompareSettings(chosen or _published_spread(), tuple(raw.get("accept", ())))


def statistics_settings(raw: Mapping[str, Any]) -> StatisticsSettings:
    """The section `statistics` of config.yaml, which its schema has accepted.

    Raises:
        BerthError: `metric` is no such column.
    """
    settings = StatisticsSettings(**raw)
    _require_metric(settings.metric, "config/config.yaml: statistics.metric")
    return settings


def lower_is_better(metric: str) -> bool:
    """Whether a smaller number is the faster server: a time, not a rate."""
    return metric.endswith("_ms")


def _require_metric(name: str, where: str) -> None:
    if name not in METRICS:
        raise BerthError(
            f'{where}: "{name}" is no number of speed.{nearest(name, list(METRICS))} Use one of: {", ".join(METRICS)}.'
        )
