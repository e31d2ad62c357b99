"""What a real Slurm refuses before anything is submitted: its own words, and the key of the platform file to change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Slurm, wait_until

import berth
from berth.errors import BerthError
from berth.submission import judge, require_taken

pytestmark = [pytest.mark.slurm]

FITS: dict[str, Any] = {
    "nodes": 2,
    "tasks_per_node": 2,
    "cpus_per_task": -1,
    "gres": "gpu:4",
    "runtime": 10,
    "slurm_partition": "batch",
    "slurm_extra": "--signal=B:USR1@180 --exclusive",
}
SRC = Path(berth.__file__).resolve().parents[1]
GPUS_IN_EXTRA = "accelerator.per_node, slurm.gpu_type, slurm.extra"
TOO_LARGE = "Requested node configuration is not available"


def use(cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("change", "words", "keys"),
    [
        ({"slurm_partition": "nowhere"}, "invalid partition specified: nowhere", "slurm.partition"),
        ({"gres": "gpu:9"}, TOO_LARGE, "accelerator.per_node, slurm.gpu_type"),
        ({"gres": "gpu:h100:4"}, TOO_LARGE, "accelerator.per_node, slurm.gpu_type"),
        ({"gres": "tpu:1"}, "Invalid generic resource (gres) specification", "slurm.gpus, slurm.gpu_type"),
        ({"mem_mb": 999_999_999}, TOO_LARGE, "slurm.mem_mb_per_node"),
        ({"cpus_per_task": 99}, TOO_LARGE, "slurm.cpus_per_node"),
        ({"nodes": 99}, TOO_LARGE, "nodes, or nodes of the deployment in config/config.yaml"),
        ({"constraint": "h100"}, "Invalid feature specification", "slurm.constraint"),
        ({"slurm_extra": "--reservation=none"}, "Requested reservation is invalid", "slurm.extra"),
        ({"slurm_extra": "--no-such-option"}, "unrecognized option '--no-such-option'", "slurm.extra"),
        ({"slurm_extra": "--gpus-per-node=9", "gres": ""}, TOO_LARGE, GPUS_IN_EXTRA),
        ({"runtime": 61}, "61 minutes are more than partition batch allows (1:00:00)", "slurm.max_minutes"),
        ({"runtime": 61, "slurm_partition": None}, "more than partition batch allows", "slurm.max_minutes"),
    ],
)
def test_a_refusal_names_its_key(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str, keys: str
) -> None:
    """Each thing that a platform file can ask for in vain is told in Slurm's words, with the keys that ask for it."""
    use(slurm, monkeypatch)
    verdict = judge({**FITS, **change})
    assert verdict.taken is False
    assert words in verdict.said
    assert verdict.keys == keys


@pytest.mark.slurmdbd
@pytest.mark.parametrize(
    ("change", "words", "keys"),
    [
        ({"slurm_account": "others"}, "Invalid account or account/partition combination specified", "slurm.account"),
        ({"slurm_account": "nobody"}, "Invalid account or account/partition combination specified", "slurm.account"),
        ({"qos": "short"}, "Invalid qos specification", "slurm.qos"),
        ({"qos": "nothing"}, "Invalid qos specification", "slurm.qos"),
    ],
)
def test_a_refused_account_names_its_key(
    accounted: Slurm, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str, keys: str
) -> None:
    """An account or a quality of service that is not the user's is told before submission, and ours is taken."""
    use(accounted, monkeypatch)
    assert judge({**FITS, "slurm_account": "research", "qos": "normal"}).taken
    verdict = judge({**FITS, **change})
    assert (verdict.taken, verdict.said, verdict.keys) == (False, words, keys)


def test_nodes_that_are_down_are_no_refusal(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that only fits on nodes that are drained now would wait for them, and is not refused."""
    use(slurm, monkeypatch)
    nodes = slurm("sinfo", "--noheader", "--format=%N").strip()
    slurm("scontrol", "update", f"NodeName={nodes}", "State=drain", "Reason=test")
    try:
        verdict = judge(FITS)
        require_taken([("scout", FITS)], "config/platforms/hops.yaml")
    finally:
        slurm("scontrol", "update", f"NodeName={nodes}", "State=resume")
    assert verdict.taken is None
    assert f"these nodes are not up: {nodes}" in verdict.said
    wait_until(lambda: judge(FITS).taken, "the nodes take jobs again", 30)


def test_the_error_names_file_key_job_and_command(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is enough to correct the file, and to ask Slurm again by hand."""
    use(slurm, monkeypatch)
    before = slurm("squeue", "--noheader")
    with pytest.raises(BerthError) as caught:
        require_taken([("scout", FITS), ("dense", {**FITS, "gres": "gpu:9"})], "config/platforms/hops.yaml")
    told = str(caught.value)
    assert told.startswith("config/platforms/hops.yaml: accelerator.per_node, slurm.gpu_type: Slurm would refuse")
    assert "the job of dense: Requested node configuration is not available" in told
    assert "sbatch --test-only --wrap=true --nodes=2 --ntasks-per-node=2 --gres=gpu:9" in told
    assert slurm("squeue", "--noheader") == before


def test_time_left_as_squeue_tells_it_in_a_job(slurm: Slurm, tmp_path: Path) -> None:
    """Inside a job the time that is left is what the job was given, less what has passed."""
    script = "from berth.jobtime import seconds_left; print(seconds_left())"
    output = tmp_path / "output"
    slurm(
        "sbatch",
        "--wait",
        "--time=7",
        f"--output={output}",
        f"--wrap=env PYTHONPATH={SRC} {sys.executable} -c '{script}'",
    )
    assert 5 * 60 < float(output.read_text()) <= 7 * 60
