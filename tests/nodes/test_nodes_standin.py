"""Servers over several nodes in sweeps on network namespaces: what starts where, and what is told when a node dies.

Snakemake, the agents, the network and Ray are real. In the place of vLLM is standin_fleet.py, whose nodes need each
other as vLLM's do; test_nodes_vllm.py has the real one.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from hosts import Hosts, HostsWorkspace, enter, run, wait_until
from ray_env import RayMissingError, ray_environment
from standins import seen, use_standin_fleet
from workspace import words_of

from berth.manifest import build_manifest, write_manifest
from berth.staging import staged_manifest

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.workflow, pytest.mark.nodes]

LEVELS = [1, 2, 4]
FORMS = {"native": "0.32.0", "ray": "0.9.1"}
# It gives a node 30 s, which nothing changes (2.60, _private/node.py): too short, at times, among many other tests.
RAY_GAVE_UP = "The current node timed out during startup"


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """The two ways over several nodes: without Ray, and with it."""
    return str(request.param)


def prepared(hosts: Hosts, path: Path, form: str, **deployment: Any) -> tuple[HostsWorkspace, Path]:
    """A workspace with the stand-in on two nodes, and the folder of the stand-in."""
    python = None
    if form == "ray":
        try:
            python = ray_environment() / "bin/python"
        except RayMissingError as error:
            pytest.skip(str(error))
    workspace = HostsWorkspace.on(hosts, path, LEVELS, nodes=2, tensor_parallel=1, pipeline_parallel=2, **deployment)
    return workspace, use_standin_fleet(workspace, LEVELS, version=FORMS[form], python=python)


def use_node_models(workspace: HostsWorkspace, folder: Path) -> int:
    """Let nodes copy the staged model to their own disk; its bytes."""
    file = workspace.path / "config/platforms/local.yaml"
    platform = yaml.safe_load(file.read_text())
    platform["paths"]["node_models"] = str(folder)
    file.write_text(yaml.safe_dump(platform, sort_keys=False))
    receipt = json.loads((workspace.path / "results/staged/local/tiny-llama.json").read_text())
    model = Path(receipt["dest"])
    (model / "config.json").write_text("{}")
    manifest = build_manifest(model, receipt["source"])
    write_manifest(staged_manifest(model), manifest)
    return manifest.total_bytes


def records(paths: dict[str, Path]) -> dict[int, dict[str, Any]]:
    """Records by level."""
    found = [json.loads(path.read_text()) for path in paths.values()]
    return {record["point"]["concurrency"]: record for record in found}


def left(hosts: Hosts) -> list[list[str]]:
    """Command lines of what runs on the hosts."""
    found = []
    for name in hosts.holders:
        for process in hosts.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(process.cmdline())
    return found


def start_to(text: str, workspace: HostsWorkspace) -> subprocess.Popen[bytes]:
    """The workflow, whose sweep has told this; started again where Ray gave up its own start."""
    tries_left = 2
    while True:
        running = workspace.start("points")
        try:
            workspace.wait_for(text, running)
        except BaseException:
            running.kill()
            running.wait()
            if RAY_GAVE_UP not in (workspace.path / "run.log").read_text() or not tries_left:
                raise
            tries_left -= 1
        else:
            return running


def test_node_that_dies_is_named_and_later_points_are_measured(hosts: Hosts, tmp_path: Path, form: str) -> None:
    """A node is lost in the middle of a point: the crash names it, the server starts again, and the sweep goes on.

    The next call measures the point that was lost, and no other.
    """
    workspace, folder = prepared(hosts, tmp_path / "workspace", form)
    hold = folder / "hold-run1"
    hold.touch()
    running = start_to("concurrency 2: point 2 of 3 starts", workspace)
    try:
        first = {name: [process.pid for process in hosts.processes(name)] for name in ("a", "b")}
        hosts.kill("b")
        assert running.wait() == 1
    finally:
        running.kill()
    failure = records(workspace.failures())[2]["failure"]
    assert failure["cause"].startswith("Node b (rank 1 of 2) was lost"), failure
    assert failure["log"].endswith("server.node1.log")
    measured = records(workspace.points())
    assert sorted(measured) == [1, 4]
    assert [measured[level]["server"]["instance"] for level in (1, 4)] == [1, 2]
    nodes = [{"name": "a", "address": "10.99.0.1"}, {"name": "b", "address": "10.99.0.2"}]
    assert measured[4]["server"]["nodes"] == nodes
    events = [entry["event"] for entry in measured[1]["server"]["timeline"]]
    assert ("cluster_formed" in events) == (form == "ray")
    assert all(first.values())
    assert left(hosts) == []

    hold.unlink()
    assert workspace.planned("points")["point"] == 1
    workspace.run("points")
    assert sorted(records(workspace.points())) == LEVELS
    assert left(hosts) == []


def test_each_node_is_told_its_own_place(hosts: Hosts, tmp_path: Path) -> None:
    """Rank, addresses and interface differ by node as they must, and the key is in the environment alone.

    The client has the third host for itself. Each node serves the model from its own disk; these two are one disk, so
    that one node copies, and the other waits and finds it.
    """
    workspace, folder = prepared(hosts, tmp_path / "workspace", "native", client_nodes=1)
    total_bytes = use_node_models(workspace, tmp_path / "node")
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(concurrency=[1]))
    workspace.run("points")
    spaces = {name: open_net(hosts, name) for name in ("a", "b", "c")}
    for rank, name in enumerate(("a", "b")):
        told = seen(folder, f"rank{rank}")
        assert told["env"] == {"VLLM_HOST_IP": f"10.99.0.{rank + 1}", "GLOO_SOCKET_IFNAME": f"net{rank + 1}"}
        assert {"--nnodes=2", f"--node-rank={rank}", "--master-addr=10.99.0.1"} <= set(told["argv"])
        assert ("--headless" in told["argv"]) == (rank > 0)
        assert told["has_key"]
        assert str(tmp_path / "node/berth/tiny-llama") in told["argv"]
        assert told["net"] == spaces[name]
    assert seen(folder, "client")["net"] == spaces["c"]
    record = records(workspace.points())[1]
    assert record["client"]["node"] == "c"
    assert "http://10.99.0.1:" in " ".join(record["client"]["command"])
    assert record["spec"]["benchmark"]["client_nodes"] == 1
    assert record["custody"]["model"]["copy"] == "node"
    assert record["custody"]["model"]["copied_bytes"] == total_bytes
    events = [entry["event"] for entry in record["server"]["timeline"]]
    assert {"node0_model_ready", "node1_model_ready"} <= set(events[: events.index("nodes_ready")])
    # The client's node has no copy.
    assert f"{workspace.path}/results/staged/tiny-llama" in " ".join(record["client"]["command"])


def test_cluster_that_is_too_small_is_no_server(hosts: Hosts, tmp_path: Path) -> None:
    """No server starts before all nodes have joined; the error says how many of how many, and which is missing."""
    workspace, folder = prepared(hosts, tmp_path / "workspace", "ray")
    workspace.configure(lambda config: config["sweep"].update(stall_s=40))
    cut = [*enter(hosts.holders["b"].pid), "ip", "route"]
    run(*cut, "add", "blackhole", "10.99.0.1")
    try:
        output = workspace.run("points", code=1)
    finally:
        run(*cut, "delete", "blackhole", "10.99.0.1")
    assert "1 of 2 nodes joined the Ray cluster within 40 s. Missing: b (10.99.0.2)." in output
    assert not (folder / "seen-rank0.json").exists()
    assert left(hosts) == []


def test_sweep_that_is_killed_leaves_nothing_on_any_node(hosts: Hosts, tmp_path: Path, form: str) -> None:
    """After SIGKILL of Snakemake and of the sweep, every node ends its part by itself."""
    workspace, folder = prepared(hosts, tmp_path / "workspace", form)
    (folder / "hold-run1").touch()
    running = start_to("concurrency 2: point 2 of 3 starts", workspace)
    try:
        for process in workspace.processes():
            if "sweep.py" in " ".join(words_of(process)) or process.pid == running.pid:
                process.kill()
    finally:
        running.kill()
        running.wait()
    wait_until(lambda: left(hosts) == [], "every node is empty", 60)


def open_net(hosts: Hosts, name: str) -> str:
    """The network namespace of a host, as a process in it sees it."""
    return str(Path(f"/proc/{hosts.holders[name].pid}/ns/net").readlink())
