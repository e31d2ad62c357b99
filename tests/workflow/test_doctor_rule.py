"""`snakemake doctor` as a person types it."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest
from workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.workflow


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """A workspace in which nothing was done yet."""
    return Workspace.create(tmp_path / "fresh")


def lines(output: str) -> list[str]:
    return re.findall(r"^(?:ok|WARN|FAIL) .*$", output, flags=re.MULTILINE)


def test_this_machine_is_well(fresh: Workspace) -> None:
    """The local platform passes every check, one line each, and nothing is made for it but the report."""
    output = fresh.run("doctor")
    assert lines(output)
    assert not [line for line in lines(output) if line.startswith("FAIL")]
    kept = (fresh.path / "results/logs/doctor/local.txt").read_text().splitlines()
    assert kept[:-1] == lines(output)
    assert {path.name for path in (fresh.path / "results").iterdir()} == {"logs"}


def test_something_in_the_way_fails_with_the_remedy(fresh: Workspace) -> None:
    """A range of ports that is taken is one FAIL line with the key to change, and the exit code is 1."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        port = held.getsockname()[1]
        platform = fresh.path / "config/platforms/local.yaml"
        platform.write_text(platform.read_text().replace("[18000, 18999]", f"[{port}, {port}]"))
        output = fresh.run("doctor", code=1)
    (failed,) = [line for line in lines(output) if line.startswith("FAIL")]
    assert "config/platforms/local.yaml: server.ports" in failed
    assert "1 check(s) of platform local failed" in output
    # Nothing was to be measured, so nothing is said or drawn of measurements.
    assert "Every finished point is kept" not in output
    assert not (fresh.path / "results/figures").exists()


def test_a_cluster_that_is_not_here_is_told_line_by_line(fresh: Workspace) -> None:
    """Without Slurm, credentials or room, each is a line of its own, and nothing is submitted."""
    output = fresh.run(
        *("doctor", "--profile", "profiles/hops", "--executor", "local", "--cores", "1"),
        code=1,
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "SLURM_CONF"), ""),
    )
    told = "\n".join(lines(output))
    assert "FAIL  Slurm" in told
    assert "FAIL  object store" in told
    assert "paths.models: /projects/berth/models" in told
