"""A whole sweep under the real Podman: server and client in containers, and nothing left however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import psutil
import pytest
from container_runs import Podman, Run, end, ended_sweeps, make_run, podman_image, standin_folder, until

from berth.container import INSTANCE_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ended_sweeps"]
pytestmark = pytest.mark.timeout(1200)

CDI = Path("/etc/cdi/berth-test.yaml")
# A CDI device that is no GPU: what the flag asks for is passed in, and can be seen inside.
DUMMY = """cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: all
    containerEdits:
      env: [DUMMY_GPU=1]
      deviceNodes:
        - {path: /dev/dummy-gpu, hostPath: /dev/null}
"""


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with an image whose `vllm` is the stand-in of tests/slurm."""
    with podman_image(tmp_path_factory.mktemp("image"), real=False) as podman:
        yield podman


@pytest.fixture
def alone_with_cdi() -> Iterator[None]:
    """Podman's specifications of devices are the machine's: a test that makes one, or needs that there is none."""
    with filelock.FileLock(Path(tempfile.gettempdir()) / "berth-tests-cdi.lock"):
        yield


@pytest.fixture
def gpu(alone_with_cdi: None) -> Iterator[None]:
    """A CDI specification of nvidia.com/gpu=all with a dummy device."""
    if any(CDI.parent.glob("*")):
        pytest.skip(f"{CDI.parent} has specifications already; a second one of one name would break them")
    try:
        CDI.parent.mkdir(exist_ok=True)
        CDI.write_text(DUMMY)
    except OSError as error:
        pytest.skip(f"no right to write a CDI specification: {error}")
    yield
    CDI.unlink()


def run_of(podman: Podman, folder: Path, *, real: bool = False, **settings: Any) -> Run:
    """A run whose platform passes the host's folders in, and the stand-in where it is one."""
    options = [f"--volume={source}:{target}:ro" for target, source in podman.mounts.items()]
    if not real:
        options.append(f"--volume={standin_folder(folder)}:/standin:ro")
    given = {"levels": (1, 2), "prompts": 8, **settings}
    kind = given.pop("accelerator", "cpu")
    platform = {
        "runtime": "podman",
        "accelerator": {"kind": kind, "name": "Dummy", "per_node": 1},
        "podman": {"options": [*options, *given.pop("options", [])]},
    }
    environ = {**podman.environ, "XDG_RUNTIME_DIR": "/run/user/none", "SLURM_JOB_ID": "4711"}
    return make_run(folder, platform=platform, receipt=podman.receipt(), environ=environ, real=real, **given)


@pytest.mark.vllm
@pytest.mark.usefixtures("gpu")
def test_the_real_vllm_is_measured_in_its_container(tmp_path: Path) -> None:
    """Two points by the warm client; every flag of the command is honoured, and nothing is left."""
    (tmp_path / "image").mkdir()
    with podman_image(tmp_path / "image", real=True) as podman:
        (tmp_path / "run").mkdir()
        run = run_of(podman, tmp_path / "run", real=True, accelerator="cuda", prompts=16)
        sweep = run.sweep()
        until(lambda: run.log.exists() and "first_completion" in run.log.read_text(), run, sweep)
        name = next(each for each in podman.containers() if not each.endswith("-client"))
        pid = podman("inspect", "--format={{.State.Pid}}", name)
        for namespace in ("ipc", "net"):
            assert Path(f"/proc/{pid}/ns/{namespace}").readlink() == Path(f"/proc/self/ns/{namespace}").readlink()
        inside = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
        )
        assert inside["DUMMY_GPU"] == "1"
        assert Path(f"/proc/{pid}/root/dev/dummy-gpu").exists()
        assert inside["HF_HUB_OFFLINE"] == inside["OMP_NUM_THREADS"] == "1"
        assert inside["VLLM_CACHE_ROOT"].startswith("/root/.cache/")
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/vllm-workspace/models")
        assert inside["VLLM_API_KEY"] not in " ".join(word for process in run.processes() for word in process.cmdline())
        assert sweep.wait() == 0, run.told()
        records = run.spooled()
        assert sorted(records) == [1, 2]
        for record in records.values():
            assert (record["client"]["mode"], record["client"]["version"]) == ("warm", record["server"]["version"])
            assert record["validity"]["verdict"] == "accepted", record["validity"]
            assert record["result"]["completed"] == 16
            assert record["server"]["image"] == {"reference": podman.image, "digest": podman.digest}
            assert record["server"]["command"][:2] == ["podman", "run"]
            assert record["server_metrics"]["generation_tokens"] > 0
        assert run.processes() == []
        assert podman.containers() == []
        assert inside["VLLM_API_KEY"] not in run.told()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_sweep_leaves_no_container(standin: Podman, tmp_path: Path, number: int) -> None:
    """TERM or INT in a point: the finished point is kept, and server and client are gone with their containers."""
    run = run_of(standin, tmp_path)
    run.hold()
    sweep = run.sweep()
    until(run.in_point, run, sweep)
    names = until(lambda: len(found := standin.containers()) == 2 and found, run, sweep)
    assert all(name.startswith("berth-try-run1-4711-") for name in names)
    assert end(sweep, number) == 128 + number
    assert run.processes() == []
    assert standin.containers() == []
    assert sorted(run.spooled()) == [1]


def test_what_a_killed_job_leaves_is_ended_by_the_next_sweep_and_nothing_else(standin: Podman, tmp_path: Path) -> None:
    """SIGKILL to all that the job is leaves the container; the next sweep ends it, spares a stranger's, and goes on."""
    run = run_of(standin, tmp_path)
    held = run.hold()
    sweep = run.sweep()
    until(run.in_point, run, sweep)
    token = run.lease()["token"]
    stranger = standin(
        *("run", "--detach", "--rm", "--network=host", "--volume=/usr:/usr:ro", "--entrypoint=sleep"),
        *(f"--label={INSTANCE_LABEL}={'0' * 32}", standin.image, "600"),
    )
    try:
        # As a scheduler does: the sweep and every process that descends from it, at once. A container does not.
        for process in run.processes():
            # Some end by themselves meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "podman":
                    process.kill()
        end(sweep, signal.SIGKILL)
        left = standin("ps", "--quiet", f"--filter=label={INSTANCE_LABEL}={token}").split()
        assert len(left) >= 1
        held.unlink()
        log = run.finish()
        assert "ended what a dead sweep of this run had left: container berth-try-run1-4711-" in log
        assert sorted(run.spooled()) == [1, 2]
        assert standin("ps", "--all", "--quiet", f"--filter=label={INSTANCE_LABEL}={token}") == ""
        assert standin("inspect", "--format={{.State.Status}}", stranger) == "running"
    finally:
        standin("rm", "--force", "--time=0", stranger)
    assert standin.containers() == []


def test_a_sweep_that_is_killed_alone_takes_its_containers_along(standin: Podman, tmp_path: Path) -> None:
    """SIGKILL to the sweep's process: the kernel asks `podman run` to end, it asks the server."""
    run = run_of(standin, tmp_path)
    held = run.hold()
    sweep = run.sweep()
    until(run.in_point, run, sweep)
    until(lambda: len(standin.containers()) == 2, run, sweep)
    end(sweep, signal.SIGKILL)
    until(lambda: len(standin.containers()) <= 1, run)
    held.unlink()
    until(lambda: not standin.containers(), run)
    assert run.processes() == []


def test_a_server_that_is_killed_is_told_and_started_again(standin: Podman, tmp_path: Path) -> None:
    """SIGKILL to the process in the container, as the out-of-memory killer sends it, is told, and the run goes on."""
    run = run_of(standin, tmp_path, levels=(1, 2, 4))
    held = run.hold()
    sweep = run.sweep()
    until(run.in_point, run, sweep)
    name = next(each for each in standin.containers() if not each.endswith("-client"))
    standin("kill", "--signal=KILL", name)
    held.unlink()
    assert sweep.wait() == 0, run.told()
    assert sorted(run.spooled()) == [1, 4]
    assert "out-of-memory killer" in run.log.read_text()
    assert standin.containers() == []


@pytest.mark.usefixtures("alone_with_cdi")
@pytest.mark.parametrize(
    ("settings", "said", "remedy"),
    [
        ({"accelerator": "cuda"}, "no specification of nvidia.com/gpu=all", "nvidia-ctk cdi generate"),
        ({"accelerator": "rocm"}, "there is no /dev/kfd", "amdgpu"),
        ({"options": ["--volume=/no/such/folder:/data"]}, "not there on this node", "podman.options"),
        ({"options": ["--entrypoint=no-such-python"]}, "The image has no such program", "client.python"),
    ],
)
def test_what_is_missing_on_the_node_is_told_before_the_server(
    standin: Podman, tmp_path: Path, settings: dict[str, Any], said: str, remedy: str
) -> None:
    """No device, no mount, no program: an error with the remedy, no server, and nothing left."""
    run = run_of(standin, tmp_path, **settings)
    assert run.sweep().wait() == 1
    log = run.log.read_text()
    assert "ERROR" in log
    assert said in log
    assert remedy in log
    assert not list((run.results / "logs").rglob("server.log"))
    assert standin.containers() == []


def test_an_image_that_is_not_there_and_a_runtime_that_is_not_there_are_told(standin: Podman, tmp_path: Path) -> None:
    """Nothing is fetched while a server is waited for; and a node without Podman is named."""
    run = run_of(standin, tmp_path)
    receipt = Path(run.request["image_receipt"])
    absent = "sha256:" + "0" * 64
    receipt.write_text(receipt.read_text().replace(standin.digest, absent))
    run.request["definition"]["image"]["digest"] = absent
    assert run.sweep().wait() == 1
    assert "is no longer in Podman's storage" in run.log.read_text()
    assert run.sweep(PATH="/nowhere").wait() == 1
    assert "podman is not on PATH" in run.log.read_text()
    assert "`modules` of the platform file" in run.log.read_text()


def test_a_model_that_the_container_cannot_read_is_told_before_the_server(standin: Podman, tmp_path: Path) -> None:
    """A link that leads out of the model's folder is a file for the user and nothing inside."""
    run = run_of(standin, tmp_path)
    weights = tmp_path / "models/tiny/config.json"
    weights.rename(tmp_path / "elsewhere.json")
    weights.symlink_to(tmp_path / "elsewhere.json")
    assert run.sweep().wait() == 1
    log = run.log.read_text()
    assert "The container cannot read the model" in log
    assert "config.json: No such file or directory" in log
    assert standin.containers() == []


# The first port that is chosen is the one that somebody else takes before the server is up.
LISTEN = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
time.sleep(600)
"""
TAKEN = """
import berth.launch
choose, taken = berth.launch.free_port, [PORT]
berth.launch.free_port = lambda *given, **named: taken.pop() if taken else choose(*given, **named)
"""


def test_a_port_that_another_user_takes_leads_to_another_port(standin: Podman, tmp_path: Path) -> None:
    """The server ends because its port is taken between choice and start; it is started on another one."""
    run = run_of(standin, tmp_path)
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", LISTEN], stdout=subprocess.PIPE, text=True, cwd="/", **other_user()
    ) as other:
        assert other.stdout
        port = int(other.stdout.readline())
        assert run.sweep(before=TAKEN.replace("PORT", str(port))).wait() == 0, run.told()
        other.kill()
    assert f"Port {port} of 127.0.0.1 is used by another server" in run.log.read_text()
    assert sorted(run.spooled()) == [1, 2]


def other_user() -> dict[str, Any]:
    """How a process is started as somebody else, where this user may do that."""
    return {"user": 65534} if os.geteuid() == 0 else {}
