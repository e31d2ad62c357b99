"""A deployment that is kept up in a container of the real Podman, as a job of a real Slurm. The stand-in is inside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slurm_cluster import Slurm, SlurmWorkspace, use_standin, wait_until
from test_slurm_podman import Podman, podman, standin_folder, use_container
from test_slurm_serve import FIRST, SETTINGS, Served, key_in, pytestmark

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["podman", "pytestmark"]


def test_a_served_container_starts_again_and_is_taken_down(slurm: Slurm, tmp_path: Path, podman: Podman) -> None:
    """A container that is killed is replaced in its job, a request is answered, and `unserve` leaves no container."""
    workspace = SlurmWorkspace.on(slurm, tmp_path / "workspace")
    use_standin(workspace, runs=1, levels=[1])
    use_container(workspace, podman, standin_folder(tmp_path))
    workspace.change_queue(warn_s=45)
    workspace.configure(lambda config: config.update(services=SETTINGS))
    here = Served(slurm, workspace)
    keeper = here.serve(FIRST)
    try:
        before = here.up(FIRST, "a container that serves")
        (container,) = podman.containers()
        first = podman("inspect", "--format={{.Id}}", container)
        key = key_in(here.key(FIRST))
        assert (here.post(FIRST, key), here.post(FIRST, None)) == (200, 401)
        since = before.instances[0].since
        wait_until(lambda: time.time() - since > SETTINGS["quick_s"], "a server that has served for a while")
        podman("kill", container)
        after = here.up(FIRST, "another container", events=1)
        assert after.instances[0].job_id == before.instances[0].job_id
        assert (after.history[0].kind, here.post(FIRST, key)) == ("crash", 200)
        (another,) = podman.containers()
        assert podman("inspect", "--format={{.Id}}", another) != first
        assert here.serve(FIRST, "unserve").wait() == 0
        assert keeper.wait() == 0
    finally:
        keeper.kill()
        keeper.wait()
    assert podman.containers() == []
    assert here.now(FIRST).state == "ended"
