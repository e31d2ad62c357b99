"""Electrical power of nodes while a point runs: the site's command, sampled on each node, as mean watts and joules.

A platform file says which command and how its output is read (docs/costs.md#power). Berth knows the texts of
nvidia-smi, amd-smi and rocm-smi, and Linux's energy counters; for another tool there is a regular expression.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20.0
_MICRO = 1e-6
# Top-level zones alone (intel-rapl:0): the zones below them (intel-rapl:0:0) are parts of them.
_ZONE = re.compile(r"^[a-z-]+:\d+$")


@dataclass(frozen=True)
class Reading:
    """One look at a node: watts where the tool tells power, joules since some moment where it tells energy."""

    at: float
    watts: float | None = None
    joules: tuple[float, ...] = ()
    wraps_at: tuple[float, ...] = ()


def parse_nvidia_smi(text: str) -> float | None:
    """Watts of all devices in `nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits`; None without any.

    A device that cannot tell writes [N/A] or [Not Supported]: then the sum is not known.
    """
    values = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return sum(float(value.removesuffix("W").strip()) for value in values) if values else None
    except ValueError:
        return None


def parse_rocm_smi(text: str) -> float | None:
    """Watts of all devices in `rocm-smi --showpower --json`: cards with a key of their (average or current) power."""
    cards = [card for name, card in _json_object(text).items() if name.startswith("card") and isinstance(card, dict)]
    watts = [_number(next((value for key, value in card.items() if _is_power(key.lower())), None)) for card in cards]
    # Both dies of some modules are listed, and the second has no power of its own ("N/A").
    known = [each for each in watts if each is not None]
    return sum(known) if known else None


def _is_power(key: str) -> bool:
    # "Average Graphics Package Power (W)" or "Current Socket Graphics Package Power (W)", by card and version. With
    # --showmaxpower beside it there is a "Max Graphics Package Power (W)", which is a limit.
    return "power" in key and "(w)" in key and "max" not in key


def parse_amd_smi(text: str) -> float | None:
    """Watts of all devices in `amd-smi metric --power --json`; the list of devices, bare or as `gpu_data`."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    devices = value.get("gpu_data") if isinstance(value, dict) else value
    watts = []
    for device in devices if isinstance(devices, list) else ():
        power = device.get("power") if isinstance(device, dict) else None
        found = power.get("socket_power") if isinstance(power, dict) else None
        watts.append(_number(found.get("value") if isinstance(found, dict) else found))
    known = [each for each in watts if each is not None]
    return sum(known) if known else None


PARSERS: dict[str, Callable[[str], float | None]] = {
    "nvidia-smi": parse_nvidia_smi,
    "rocm-smi": parse_rocm_smi,
    "amd-smi": parse_amd_smi,
}


def parse_rapl(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Joules and where each counter wraps, of `grep -H . /sys/class/powercap/*/*_uj`; None without any package."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        place, _, value = line.rpartition(":")
        folder, _, name = place.rpartition("/")
        zone = folder.rpartition("/")[2]
        if _ZONE.match(zone) and value.strip().isdigit():
            found.setdefault(zone, {})[name] = int(value) * _MICRO
    zones = [each for _, each in sorted(found.items()) if {"energy_uj", "max_energy_range_uj"} <= set(each)]
    if not zones:
        return None
    return tuple(each["energy_uj"] for each in zones), tuple(each["max_energy_range_uj"] for each in zones)


def reading_of(settings: Mapping[str, Any], text: str, at: float) -> Reading | None:
    """What a command's output says, by the parser or the regular expression of the platform's `power`."""
    if settings.get("parser") == "rapl":
        counters = parse_rapl(text)
        return None if counters is None else Reading(at, joules=counters[0], wraps_at=counters[1])
    if settings.get("parser"):
        watts = PARSERS[settings["parser"]](text)
    else:
        found = [float(each) for each in re.findall(settings["pattern"], text)]
        watts = sum(found) if found else None
    return None if watts is None else Reading(at, watts=watts)


def _json_object(text: str) -> dict[str, Any]:
    # rocm-smi writes warnings before its JSON.
    start = text.find("{")
    try:
        value = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    try:
        return float(str(value).removesuffix("W").strip())
    except ValueError:
        return None


def mean_watts(readings: Sequence[Reading]) -> float | None:
    """Mean power between the first and the last look; None where there are fewer than two.

    Watts are taken as straight between two looks. A counter that starts again has wrapped once.
    """
    if len(readings) < 2 or readings[-1].at <= readings[0].at:  # A span has two ends.
        return None
    joules = 0.0
    for before, after in itertools.pairwise(readings):
        if before.watts is not None and after.watts is not None:
            joules += (before.watts + after.watts) / 2 * (after.at - before.at)
        else:
            pairs = zip(before.joules, after.joules, after.wraps_at, strict=True)
            joules += sum(last - first if last >= first else last - first + wrap for first, last, wrap in pairs)
    return joules / (readings[-1].at - readings[0].at)


class NodeSampler:
    """Looks at one node every `interval_s` in a thread of its own, from `start` to `stop`.

    `before` is what goes before the site's command so that it runs on that node.
    """

    def __init__(self, settings: Mapping[str, Any], before: Sequence[str]) -> None:
        self._settings = settings
        self._command = [*before, *settings["command"]]
        self._readings: list[Reading] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._thread.start()

    def _run(self) -> None:
        while self._look() and not self._done.wait(self._settings["interval_s"]):
            pass

    def _look(self) -> bool:
        try:
            done = subprocess.run(
                self._command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            _not_recorded(f"{self._command[0]}: {error}")
            return False
        reading = reading_of(self._settings, done.stdout, time.time())
        if reading is None:
            said = done.stdout.strip()
            _not_recorded(f"{self._command[0]} says {said[:200]!r}" if said else f"{self._command[0]} finds no counter")
            return False
        self._readings.append(reading)
        return True

    def stop(self) -> Sequence[Reading]:
        """End with one look more; the looks."""
        self._done.set()
        self._thread.join(_TIMEOUT_S + 1)
        if self._readings:
            self._look()
        return tuple(self._readings)


class Sampling:
    """The power of all nodes of a server while a point runs.

    `settings` is the platform's `power`, None where it has none; `befores` has an entry per node.
    """

    def __init__(self, settings: Mapping[str, Any] | None, befores: Sequence[Sequence[str]]) -> None:
        self._settings = settings
        self._samplers = [NodeSampler(settings, each) for each in befores] if settings else []
        self._looks: list[Sequence[Reading]] = []

    def __enter__(self) -> Self:
        for each in self._samplers:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._looks = [each.stop() for each in self._samplers]

    def section(
        self, phase: tuple[str | None, str | None], duration_s: float | None, tokens: float | None
    ) -> dict[str, Any] | None:
        """The `power` of a point's record: mean watts, joules and tokens per joule of the client's measured time.

        `phase` is when that began and ended (ISO 8601), as far as the client tells. None where a node could not be
        read twice: the sum would be a part of the whole.
        """
        looks = [_within(each, phase) for each in self._looks]
        watts = [mean_watts(each) for each in looks]
        if self._settings is None or not watts or None in watts or not duration_s:
            return None
        mean_w = sum(each for each in watts if each is not None)
        energy_j = mean_w * duration_s
        return {
            "mean_w": round(mean_w, 3),
            "energy_j": round(energy_j, 3),
            "tokens_per_j": tokens / energy_j if tokens and energy_j > 0 else None,
            "samples": min(map(len, looks)),
            "scope": self._settings["scope"],
        }


def _within(readings: Sequence[Reading], phase: tuple[str | None, str | None]) -> Sequence[Reading]:
    if phase[0] is None or phase[1] is None:
        return readings
    begin, end = (datetime.fromisoformat(each).timestamp() for each in phase if each is not None)
    inside = [each for each in readings if begin <= each.at <= end]
    # A point of a few seconds has too few looks of its own.
    return inside if len(inside) > 1 else readings


@functools.cache
def _not_recorded(why: str) -> None:
    """Say it once: a sweep asks at every point."""
    logger.info("power is not recorded: %s", why)
