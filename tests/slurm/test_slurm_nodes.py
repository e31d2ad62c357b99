"""Servers over several nodes on a real Slurm: what srun starts where, a node that dies, and what is rendered.

In the place of vLLM is the stand-in of tests/nodes, whose nodes need each other as vLLM's do.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from slurm_cluster import Slurm, SlurmWorkspace, wait_until
from workspace import words_of

from berth.image import environment_folder
from berth.pins import read_lock
from berth.spec import LOCKS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nodes"))

from standins import LOCK, seen, use_standin_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]

LEVELS = [1, 2, 4]


@pytest.fixture
def workspace(slurm: Slurm, tmp_path: Path) -> Iterator[SlurmWorkspace]:
    """One run of three points of a server on two nodes with four GPUs each, and a third node for its client."""
    workspace = SlurmWorkspace.on(slurm, tmp_path / "workspace")
    # All nodes are this machine, whose loopback has room for an address of each.
    workspace.change_platform(server={"host": "127.0.0.11", "ports": [18000, 18999]})
    use_standin_fleet(workspace, LEVELS, platform="hops")
    deployment = {"nodes": 2, "client_nodes": 1, "tensor_parallel": 4, "pipeline_parallel": 2}
    workspace.configure(lambda config: config["deployments"]["tiny-local"].update(deployment))
    yield workspace
    for process in workspace.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def programs(workspace: SlurmWorkspace) -> Path:
    return workspace.path / "standin/bin"


@contextlib.contextmanager
def in_second_point(workspace: SlurmWorkspace) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake in the background, with a sweep whose second point does not end by itself."""
    hold = programs(workspace) / "hold-run1"
    hold.touch()
    running = workspace.start("points")
    try:
        wait_until(lambda: "concurrency 2: point 2 of 3" in log(workspace) or running.poll() is not None, "point 2")
        assert running.poll() is None, workspace.output()[-6000:]
        yield running
    except BaseException:
        print(log(workspace)[-6000:], workspace.output()[-6000:])
        raise
    finally:
        hold.unlink()
        running.kill()
        running.wait()


def log(workspace: SlurmWorkspace) -> str:
    return "".join(path.read_text() for path in sorted(workspace.path.glob("results/logs/sweep/**/*.log")))


def records(paths: dict[str, Path]) -> dict[int, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in paths.values()]
    return {record["point"]["concurrency"]: record for record in found}


def environment(process: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return process.environ()
    return {}


def of_node(workspace: SlurmWorkspace, rank: int) -> list[psutil.Process]:
    """What runs on a node of the server: its agent and everything below."""
    agents = [
        process
        for process in workspace.processes()
        if "berth.node_agent" in words_of(process) and environment(process).get("SLURM_PROCID") == str(rank)
    ]
    return [*agents, *(child for agent in agents for child in agent.children(recursive=True))]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def servers(workspace: SlurmWorkspace) -> list[list[str]]:
    found = []
    for process in workspace.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "srun" not in process.name():
                found.append(process.cmdline())
    return found


def test_one_process_per_node_and_a_lost_one_is_named(workspace: SlurmWorkspace) -> None:
    """Of a job's three nodes two have a part of the server, each with its rank and address, and the third the client.

    When everything on the second dies in a point, the crash names it, and the server starts again for the later point.
    """
    assert workspace.cluster
    with in_second_point(workspace) as running:
        (job,) = workspace.cluster.jobs().values()
        shown = workspace.cluster("scontrol", "show", "job", job)
        names = workspace.cluster("scontrol", "show", "hostnames", workspace.cluster.node_of(job)).split()
        told = [seen(programs(workspace), f"rank{rank}") for rank in (0, 1)]
        kill(of_node(workspace, 1))
        assert running.wait() == 1
    assert re.search(r"NumNodes=3(-3)? ", shown)
    assert [(each["slurm_node"], each["slurm_rank"]) for each in told] == [(names[0], "0"), (names[1], "1")]
    addresses = [f"127.0.0.{10 + int(name.rpartition('n')[2])}" for name in names]
    for rank, each in enumerate(told):
        assert each["env"] == {"VLLM_HOST_IP": addresses[rank], "GLOO_SOCKET_IFNAME": "lo"}
        assert {"--nnodes=2", f"--node-rank={rank}", f"--master-addr={addresses[0]}"} <= set(each["argv"])
        assert each["gpus"] == "0,1,2,3"
        assert each["has_key"]
    failure = records(workspace.failures())[2]["failure"]
    assert failure["cause"].startswith(f"Node {names[1]} (rank 1 of 2) was lost"), failure
    measured = records(workspace.points())
    assert {level: record["server"]["instance"] for level, record in measured.items()} == {1: 1, 4: 2}
    assert measured[4]["server"]["nodes"] == [
        {"name": name, "address": address} for name, address in zip(names[:2], addresses[:2], strict=True)
    ]
    assert measured[4]["client"]["node"] == names[2]
    assert f"--nodelist={names[2]}" in measured[4]["client"]["command"]
    assert servers(workspace) == []
    workspace.run("points")
    assert sorted(records(workspace.points())) == LEVELS


def test_node_that_fails_is_named_by_the_sweep(workspace: SlurmWorkspace) -> None:
    """When Slurm itself loses a node, the sweep still records which one, ends, and leaves nothing.

    With the node back, the next call measures what is missing.
    """
    cluster = workspace.cluster
    assert cluster
    with in_second_point(workspace) as running:
        (job,) = cluster.jobs().values()
        name = cluster("scontrol", "show", "hostnames", cluster.node_of(job)).split()[1]
        there = of_node(workspace, 1)
        step = there[0].parent()
        assert step is not None
        daemon = psutil.Process(int((cluster.path / "pid" / f"slurmd-{name}").read_text()))
        kill([daemon, step, *there])
        assert running.wait() == 1
    failure = records(workspace.failures())[2]["failure"]
    assert failure["cause"].startswith(f"Node {name} (rank 1 of 2) was lost"), failure
    assert 1 in records({**workspace.points(), **workspace.spooled()})
    wait_until(lambda: not cluster.jobs(), "no job is left")
    wait_until(lambda: servers(workspace) == [], "no server is left", 60)
    cluster.revive_node(name)
    workspace.run("points")
    assert sorted(records(workspace.points())) == LEVELS


def test_cancelled_job_leaves_nothing_on_any_node(workspace: SlurmWorkspace) -> None:
    """After scancel no process of the server or the client runs on any node, and the finished point is kept."""
    assert workspace.cluster
    with in_second_point(workspace) as running:
        (job,) = workspace.cluster.jobs().values()
        assert of_node(workspace, 0)
        assert of_node(workspace, 1)
        workspace.cluster("scancel", job)
        assert running.wait() == 1
    wait_until(lambda: servers(workspace) == [], "no server is left", 60)
    assert "asked to end by SIGTERM; every finished point is kept" in log(workspace)
    assert sorted(records({**workspace.points(), **workspace.spooled()})) == [1]


def test_what_is_rendered_is_what_runs(workspace: SlurmWorkspace) -> None:
    """The rendered server.sh, run by hand in a job, starts on each node what a sweep starts there; ports differ."""
    assert workspace.cluster
    workspace.configure(lambda config: config["benchmarks"]["demo"].update(concurrency=[1]))
    workspace.run("points")
    swept = [seen(programs(workspace), f"rank{rank}") for rank in (0, 1)]
    for path in programs(workspace).glob("seen-*"):
        path.unlink()
    # By hand there is no receipt: image and model are where the platform's file says.
    images = workspace.path / "images"
    folder = environment_folder(read_lock(LOCKS / LOCK), "vllm-cpu", images, sys.version_info[:2])
    folder.parent.mkdir(parents=True)
    folder.symlink_to(workspace.path / "standin")
    (workspace.path / "results/staged/berth/tiny-llama").mkdir(parents=True)
    models = {"models": "results/staged", "scratch": "results/scratch", "images": str(images)}
    workspace.change_platform(paths=models)
    workspace.run("render")
    script = workspace.path / "results/render/hops/tiny-local/server.sh"
    options = ["--nodes=3", "--ntasks-per-node=2", "--gres=gpu:4", "--exclusive", f"--chdir={workspace.path}"]
    environment = {**workspace.environment(), "VLLM_API_KEY": "a-key"}
    submitted = subprocess.run(
        [str(workspace.cluster.path / "bin/sbatch"), "--parsable", *options, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    try:
        found = [programs(workspace) / f"seen-rank{rank}.json" for rank in (0, 1)]
        wait_until(lambda: all(path.exists() and path.stat().st_size for path in found), "both nodes", 60)
    finally:
        workspace.cluster("scancel", submitted.stdout.strip())
    rendered = [seen(programs(workspace), f"rank{rank}") for rank in (0, 1)]
    for by_hand, by_sweep in zip(rendered, swept, strict=True):
        assert placeless(by_hand["argv"]) == placeless(by_sweep["argv"])
        assert by_hand["slurm_node"] == by_sweep["slurm_node"]
        assert by_hand["gpus"] == by_sweep["gpus"]
        assert by_hand["env"].keys() == by_sweep["env"].keys()
        assert by_hand["has_key"]
    wait_until(lambda: servers(workspace) == [], "no server is left", 60)


def placeless(argv: list[str]) -> list[str]:
    """Arguments without the values that a job chooses: ports, the first node's address, where the model was staged."""
    return [re.sub(r"^(--port|--master-port|--master-addr)=.*|^/.*", r"\1", word) for word in argv]
