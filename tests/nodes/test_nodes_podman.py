"""A server over several nodes whose parts, and whose client, are containers of the real Podman."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from standins import seen

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from container_runs import STANDIN, Podman, Run, make_run, podman_image, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hosts import Hosts

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1200)]

HERE = Path(__file__).resolve().parent
# The sweep's own process moves into the namespace from which all hosts are reached.
ENTER = "import ctypes, os\nctypes.CDLL(None).setns(os.open('/proc/{pid}/ns/net', os.O_RDONLY), 0x40000000)\n"


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with an image whose `vllm` is mounted into it."""
    with podman_image(tmp_path_factory.mktemp("image"), real=False) as podman:
        yield podman


def standin(folder: Path) -> Path:
    """The stand-in of several nodes under the name that the image knows; it leaves what it saw there."""
    place = folder / "standin"
    place.mkdir()
    shutil.copy(STANDIN, place / "one_node.py")
    text = (HERE / "standin_fleet.py").read_text().replace("from standin_vllm import", "from one_node import")
    (place / "standin_vllm.py").write_text(text)
    return place


def run_of(podman: Podman, hosts: Hosts, folder: Path) -> Run:
    """Three points of a server on two hosts, with the client on the third."""
    options = [f"--volume={source}:{target}:ro" for target, source in podman.mounts.items()]
    platform: dict[str, Any] = {
        "runtime": "podman",
        "accelerator": {"kind": "cpu", "name": "Dummy", "per_node": 1},
        "nodes": 3,
        "hosts": hosts.as_platform(),
        "server": {"host": "0.0.0.0", "ports": [20000, 29999]},
        "podman": {"options": [*options, f"--volume={standin(folder)}:/standin"]},
    }
    return make_run(
        folder,
        platform=platform,
        receipt=podman.receipt(),
        environ=podman.environ,
        levels=(1, 2, 4),
        prompts=8,
        real=False,
        deployment={"nodes": 2, "client_nodes": 1, "pipeline_parallel": 2},
    )


def test_containers_of_two_hosts_are_one_server(podman: Podman, hosts: Hosts, tmp_path: Path) -> None:
    """Each host has its container with its own place, and the key by name; the loss of one is told and survived."""
    run = run_of(podman, hosts, tmp_path)
    hold = run.hold()
    sweep = run.sweep(before=ENTER.format(pid=hosts.outside.pid))
    until(lambda: run.in_point() and len(podman.containers()) == 3, run, sweep)
    names = sorted(podman.containers())
    commands = [" ".join(process.cmdline()) for process in run.processes()]
    hosts.kill("b")
    until(lambda: "starting the server again" in run.log.read_text(), run, sweep)
    hold.unlink()
    assert sweep.wait() == 0, run.told()
    assert [name.rpartition("-")[2] for name in names] == ["client", "node0", "node1"]
    spaces = {name: str(Path(f"/proc/{hosts.holders[name].pid}/ns/net").readlink()) for name in ("a", "b", "c")}
    for rank, name in enumerate(("a", "b")):
        told = seen(tmp_path / "standin", f"rank{rank}")
        assert told["env"] == {"VLLM_HOST_IP": f"10.99.0.{rank + 1}", "GLOO_SOCKET_IFNAME": f"net{rank + 1}"}
        assert told["has_key"]
        assert told["net"] == spaces[name]
    assert seen(tmp_path / "standin", "client")["net"] == spaces["c"]
    assert not [command for command in commands if "VLLM_API_KEY=" in command]
    failure = json.loads(next((run.results / "failures").rglob("c2.json")).read_text())["failure"]
    assert failure["cause"].startswith("Node b (rank 1 of 2) was lost"), failure
    assert sorted(run.spooled()) == [1, 4]
    assert podman.containers() == []
    assert [hosts.processes(name) for name in ("a", "b", "c")] == [[], [], []]
