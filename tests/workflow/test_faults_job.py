"""Nothing finished is lost and nothing is left when the job, Snakemake or the disk ends. All of it is real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from workspace import LEVELS, levels_of, point_starts, run_log, wait_until, words_of

if TYPE_CHECKING:
    from pathlib import Path

    import psutil
    from workspace import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.vllm]


def sweeps(workspace: Workspace) -> list[psutil.Process]:
    return [p for p in workspace.processes() if (words := words_of(p)) and words[-1].endswith(".sweep.py")]


def test_killed_snakemake_and_killed_sweep(workspace: Workspace) -> None:
    """Snakemake is killed, its sweep goes on; a second sweep waits for it, and takes over when it is killed too."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=7))
    old = workspace.snapshot()
    first = workspace.start()
    wait_until(lambda: levels_of(workspace.spooled()) == [1], "the first point is in the spool")
    kept = next(iter(workspace.spooled().values())).read_bytes()
    (first_sweep,) = sweeps(workspace)
    workspace.kill_session(first)
    assert first_sweep.is_running()
    # It goes on without Snakemake. Stopped, so that its short points are not done before the second sweep comes.
    first_sweep.suspend()

    workspace.run("--unlock")
    second = workspace.start()
    wait_until(lambda: "waiting for the sweep that holds" in run_log(workspace), "the second sweep waits")
    assert len(workspace.servers()) == 1
    first_sweep.kill()
    assert second.wait() == 0
    spec = {key for key in workspace.points() if not any(name.startswith(key + ".") for name in old)}
    assert sorted(int(key.rpartition("/c")[2]) for key in spec) == list(LEVELS)
    accepted = next(path for key, path in workspace.points().items() if key in spec and key.endswith("/c1"))
    assert accepted.read_bytes() == kept
    assert workspace.servers() == []
    after = workspace.snapshot()
    assert {name: after[name] for name in old} == old
    # Both definitions are in one table, and so in one figure.
    assert len((workspace.path / "results/tidy/points.csv").read_text().splitlines()) == 1 + 2 * len(LEVELS)


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(16 * 1024))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs: run as root")
def test_full_spool_loses_nothing(workspace: Workspace) -> None:
    """A spool that fills up ends the sweep before the next point; with room again only the rest is measured."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=8))
    spool = workspace.path / "results/spool"
    spool.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(spool)], check=True)
    try:
        running = workspace.start()
        wait_until(lambda: point_starts(workspace, 1), "the first point starts")
        fill(spool / "filler")
        assert running.wait() == 1
        assert "no room for the next point's record" in run_log(workspace)
        assert levels_of(workspace.spooled()) == [1]
        kept = next(iter(workspace.spooled().values())).read_bytes()
        (spool / "filler").unlink()
        assert workspace.planned()["point"] == len(LEVELS)
        workspace.run()
        assert kept in [path.read_bytes() for path in workspace.points().values()]
    finally:
        subprocess.run(["umount", "--lazy", str(spool)], check=True)


def test_terminated_sweep_keeps_what_is_finished(workspace: Workspace) -> None:
    """TERM to the sweep, as a scheduler sends it, ends the server at once and keeps the finished points."""
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(seed=9))
    running = workspace.start()
    wait_until(lambda: levels_of(workspace.spooled()) == [1], "the first point is in the spool")
    (sweep,) = sweeps(workspace)
    sweep.send_signal(signal.SIGTERM)
    assert running.wait() == 1
    assert workspace.servers() == []
    assert "every finished point is kept" in run_log(workspace)
    assert levels_of(workspace.spooled())[:1] == [1]
