"""The power of nodes: texts in the form of the tools' documentation (no such device is here), and a real sampling."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from berth.power import (
    Reading,
    Sampling,
    mean_watts,
    parse_amd_smi,
    parse_nvidia_smi,
    parse_rapl,
    parse_rocm_smi,
    reading_of,
)

ROCM = """WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status
{"card0": {"Max Graphics Package Power (W)": "760.0", "Current Socket Graphics Package Power (W)": "551.0"},
 "card1": {"Average Graphics Package Power (W)": "N/A (Secondary die)"}, "system": {"Driver version": "6.8.5"}}"""
AMD = """[{"gpu": 0, "power": {"socket_power": {"value": 550, "unit": "W"}, "gfx_voltage": "N/A"}},
 {"gpu": 1, "power": {"socket_power": "N/A"}}]"""
RAPL = """/sys/class/powercap/intel-rapl:0/energy_uj:5000000
/sys/class/powercap/intel-rapl:0/max_energy_range_uj:262143328850
/sys/class/powercap/intel-rapl:0:0/energy_uj:1000000
/sys/class/powercap/intel-rapl:0:0/max_energy_range_uj:262143328850
/sys/class/powercap/intel-rapl:1/energy_uj:7000000
/sys/class/powercap/intel-rapl:1/max_energy_range_uj:262143328850
"""


def test_nvidia_smi_is_the_sum_of_its_devices_or_unknown() -> None:
    """Four lines are added; a device that cannot tell makes the sum unknown, and so does no device."""
    assert parse_nvidia_smi("698.11\n701.50\n 69.90\n70\n") == pytest.approx(1539.51)
    assert parse_nvidia_smi("698.11\n[N/A]\n") is None
    assert parse_nvidia_smi("") is None


def test_rocm_and_amd_smi_take_the_devices_that_have_a_power() -> None:
    """A warning before the JSON, a limit, a second die without a power, and both forms of amd-smi's list are read."""
    assert parse_rocm_smi(ROCM) == 551.0
    assert parse_rocm_smi("no JSON") is None
    assert parse_amd_smi(AMD) == 550.0
    assert parse_amd_smi(f'{{"gpu_data": {AMD}}}') == 550.0
    assert parse_amd_smi("{}") is None


def test_rapl_counts_packages_and_not_their_parts_twice() -> None:
    """Two packages are counted; the zone below one of them is a part of it."""
    assert parse_rapl(RAPL) == ((5.0, 7.0), (262143.32885, 262143.32885))
    assert parse_rapl("grep: /sys/class/powercap/*/*_uj: No such file or directory") is None


def test_mean_power_of_watts_and_of_counters_that_wrap() -> None:
    """Watts are straight between looks; a counter that starts again has wrapped once; one look is no span."""
    assert mean_watts([Reading(0.0, watts=100.0), Reading(1.0, watts=300.0), Reading(2.0, watts=300.0)]) == 250.0
    wrapped = [Reading(0.0, joules=(95.0,), wraps_at=(100.0,)), Reading(10.0, joules=(15.0,), wraps_at=(100.0,))]
    assert mean_watts(wrapped) == pytest.approx(2.0)
    assert mean_watts(wrapped[:1]) is None


def test_another_tool_is_read_by_its_pattern() -> None:
    """All matches of the platform's regular expression are added."""
    settings = {"command": ["x"], "parser": "", "pattern": r"reading: +([0-9]+) Watts"}
    text = "    Instantaneous power reading:                   420 Watts\n"
    found = reading_of(settings, text, 1.0)
    assert found == Reading(1.0, watts=420.0)
    assert reading_of(settings, "nothing", 1.0) is None


def test_a_point_has_the_power_of_all_nodes_or_none() -> None:
    """Two nodes that can be read are added up over the client's time; one that cannot makes the power unknown."""
    settings = {
        "command": ["echo", "250.0"],
        "parser": "nvidia-smi",
        "pattern": "",
        "scope": "GPUs",
        "interval_s": 0.05,
    }
    began = datetime.fromtimestamp(time.time() - 1, UTC).isoformat()
    with Sampling(settings, [(), ("env", "LC_ALL=C")]) as both:
        time.sleep(0.15)
    section = both.section((began, datetime.now(UTC).isoformat()), 10.0, 5000)
    assert section is not None
    assert (section["mean_w"], section["energy_j"], section["tokens_per_j"]) == (500.0, 5000.0, 1.0)
    assert section["samples"] >= 2
    with Sampling(settings, [(), ("false",)]) as part:
        pass
    assert part.section((None, None), 10.0, 5000) is None
    with Sampling(None, [()]) as none:
        pass
    assert none.section((None, None), 10.0, 5000) is None
