"""A whole sweep under the real Apptainer: server and client in containers, and nothing left however it ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from container_runs import (
    Apptainer,
    Run,
    apptainer_image,
    end,
    ended_sweeps,
    image_receipt,
    make_run,
    standin_folder,
    until,
)

from berth.processes import start_ticks

__all__ = ["ended_sweeps"]
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Apptainer:
    """Apptainer with a SIF whose `vllm` is the stand-in of tests/slurm."""
    return apptainer_image(tmp_path_factory.mktemp("image"), real=False)


def run_of(apptainer: Apptainer, folder: Path, *, real: bool = False, **settings: Any) -> Run:
    """A run whose platform binds the host's folders, and the stand-in where it is one."""
    options = [f"--bind={source}:{target}:ro" for target, source in apptainer.mounts.items()]
    if not real:
        options.append(f"--bind={standin_folder(folder)}:/standin:ro")
    given = {"levels": (1, 2), "prompts": 8, **settings}
    platform = {
        "runtime": "apptainer",
        "accelerator": {"kind": given.pop("accelerator", "cpu"), "name": "Dummy", "per_node": 1},
        "apptainer": {"options": [*options, *given.pop("options", [])]},
    }
    sha256 = hashlib.sha256(apptainer.sif.read_bytes()).hexdigest()
    receipt = image_receipt(
        "apptainer",
        "localhost/berth/test:1",
        f"sha256:{sha256}",
        path=str(apptainer.sif),
        sha256=sha256,
        size_bytes=apptainer.sif.stat().st_size,
    )
    environ = {**apptainer.environ, "XDG_RUNTIME_DIR": "/run/user/none", "SLURM_JOB_ID": "4711"}
    return make_run(folder, platform=platform, receipt=receipt, environ=environ, real=real, **given)


def in_the_image(apptainer: Apptainer) -> list[psutil.Process]:
    """Living processes whose command names the SIF, and the helpers that hold it open."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        opened = []
        with contextlib.suppress(OSError):
            opened = [str(entry.readlink()) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        named = str(apptainer.sif) in [*(process.info["cmdline"] or []), *opened]
        if named and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def server_inside(run: Run) -> psutil.Process:
    """The server's process in the container, which is neither Apptainer's nor the guard's in front of it."""
    return next(
        process for process in run.processes() if "serve" in process.cmdline() and "--fakeroot" not in process.cmdline()
    )


@pytest.mark.vllm
def test_the_real_vllm_is_measured_in_its_sif(tmp_path: Path) -> None:
    """Two points by the warm client, as root inside with a writable cache and a read-only model; nothing is left."""
    (tmp_path / "image").mkdir()
    (tmp_path / "run").mkdir()
    apptainer = apptainer_image(tmp_path / "image", real=True)
    run = run_of(apptainer, tmp_path / "run", real=True, prompts=16)
    sweep = run.sweep()
    until(lambda: run.log.exists() and "first_completion" in run.log.read_text(), run, sweep)
    server = server_inside(run)
    inside = server.environ()
    # Nothing of the caller's environment, and none of its home, gets in.
    assert "SLURM_JOB_ID" not in inside
    assert "PYTHONPATH" not in inside
    assert inside["HF_HUB_OFFLINE"] == "1"
    assert inside["VLLM_CACHE_ROOT"].startswith("/root/.cache/")
    assert server.cwd() == "/vllm-workspace/models"
    assert inside["VLLM_API_KEY"] not in " ".join(word for process in run.processes() for word in process.cmdline())
    assert sweep.wait() == 0, run.told()
    records = run.spooled()
    assert sorted(records) == [1, 2]
    for record in records.values():
        assert (record["client"]["mode"], record["client"]["version"]) == ("warm", record["server"]["version"])
        assert record["validity"]["verdict"] == "accepted", record["validity"]
        assert record["result"]["completed"] == 16
        assert record["server"]["command"][:3] == ["apptainer", "exec", "--fakeroot"]
    assert run.processes() == []
    assert in_the_image(apptainer) == []
    assert inside["VLLM_API_KEY"] not in run.told()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_sweep_leaves_no_process(standin: Apptainer, tmp_path: Path, number: int) -> None:
    """TERM or INT in a point: the finished point is kept, and everything of server and client is gone."""
    run = run_of(standin, tmp_path)
    run.hold()
    sweep = run.sweep()
    until(run.in_point, run, sweep)
    until(lambda: len(run.processes()) >= 2, run, sweep)
    assert end(sweep, number) == 128 + number
    assert run.processes() == []
    assert in_the_image(standin) == []
    assert sorted(run.spooled()) == [1]


def test_a_killed_sweep_leaves_what_the_next_one_ends(standin: Apptainer, tmp_path: Path) -> None:
    """SIGKILL to a sweep whose server hangs; the next sweep ends it, and goes on after the finished point."""
    run = run_of(standin, tmp_path)
    held = run.hold()
    sweep = run.sweep()
    until(run.in_point, run, sweep)
    server = server_inside(run)
    # It hangs, so that neither the kernel's TERM nor the runtime's end reaches it.
    for process in [server, *server.parents()]:
        if process.pid == sweep.pid:
            break
        process.suspend()
    end(sweep, signal.SIGKILL)
    assert server.is_running()
    held.unlink()
    log = run.finish()
    assert "ended what a dead sweep of this run had left" in log
    assert sorted(run.spooled()) == [1, 2]
    assert start_ticks(server.pid) is None
    assert in_the_image(standin) == []


@pytest.mark.parametrize(
    ("settings", "said", "remedy"),
    [
        ({"accelerator": "cuda"}, "there is no /dev/nvidiactl", "load the driver"),
        ({"options": ["--bind=/no/such/folder:/data"]}, "not there on this node", "apptainer.options"),
    ],
)
def test_what_is_missing_on_the_node_is_told_before_the_server(
    standin: Apptainer, tmp_path: Path, settings: dict[str, Any], said: str, remedy: str
) -> None:
    """No device, no folder to bind: an error with the remedy, no server, and nothing left."""
    run = run_of(standin, tmp_path, **settings)
    assert run.sweep().wait() == 1
    log = run.log.read_text()
    assert said in log
    assert remedy in log
    assert not list((run.results / "logs").rglob("server.log"))
    assert in_the_image(standin) == []


def test_a_half_written_sif_and_a_runtime_that_is_not_there_are_told(standin: Apptainer, tmp_path: Path) -> None:
    """A SIF that a killed build left is no image; and a node without Apptainer is named."""
    half = tmp_path / "half.sif"
    half.write_bytes(standin.sif.read_bytes()[: standin.sif.stat().st_size // 2])
    run = run_of(standin, tmp_path)
    receipt = Path(run.request["image_receipt"])
    receipt.write_text(receipt.read_text().replace(str(standin.sif), str(half)))
    assert run.sweep().wait() == 1
    assert "is not the image that was staged there" in run.log.read_text()
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "size_bytes": half.stat().st_size}))
    assert run.sweep().wait() == 1
    assert "The SIF is missing or damaged" in run.log.read_text()
    assert run.sweep(PATH="/nowhere").wait() == 1
    assert "apptainer is not on PATH" in run.log.read_text()
