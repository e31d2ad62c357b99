"""Which nodes a job has, what starts on them, and which of them a server died of."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from test_render import all_of, configured

from berth.agent_lines import Decoder, encode
from berth.blame import NodeState, blame
from berth.cluster import ClusterIncomplete, joined_of
from berth.errors import BerthError
from berth.nodes import Node, agent_starts, client_start, job_nodes, own_address, own_node, own_rank, step_environment
from berth.parse import load_config
from berth.render import render_files
from berth.resources import sweep_resources
from berth.spec import define

if TYPE_CHECKING:
    from pathlib import Path

NODES = (Node("n1", "10.0.0.1"), Node("n2", "10.0.0.2"))
SLURM: dict[str, Any] = {"scheduler": "slurm", "interface": "", "hosts": [], "step_options": ["--gres=gpu:4"]}
FLUX = {**SLURM, "scheduler": "flux", "step_options": []}


def local(*hosts: tuple[str, str]) -> dict[str, Any]:
    listed = [{"name": name, "address": address, "run": ["ip", "netns", "exec", name]} for name, address in hosts]
    return {**SLURM, "scheduler": "local", "hosts": listed}


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_slurm_starts_one_agent_on_each_of_the_first_nodes() -> None:
    """One srun has all of them, shares the job's CPUs and memory, and leaves it to the sweep to end a failing node."""
    (start,) = agent_starts(SLURM, NODES, ["agent"])
    assert start.argv[0] == "srun"
    assert start.argv[-1] == "agent"
    wanted = {"--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2", "--gres=gpu:4", "--overlap", "--mem=0"}
    assert wanted | {"--kill-on-bad-exit=0", "--no-kill"} <= set(start.argv)
    assert start.env == {"BERTH_NODES": "n1=10.0.0.1,n2=10.0.0.2"}


def test_flux_starts_one_agent_on_each_of_the_first_nodes() -> None:
    """The same through `flux run`, whose constraint names the hosts."""
    (start,) = agent_starts(FLUX, NODES, ["agent"])
    assert start.argv == (
        *("flux", "run", "--nodes=2", "--tasks-per-node=1", "--exclusive", "--requires=host:n1,n2"),
        "agent",
    )


def test_hosts_are_entered_one_by_one() -> None:
    """Without a scheduler there is one command for each host, which is told its rank."""
    nodes = job_nodes(local(("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")), 2)
    starts = agent_starts(local(), nodes, ["agent"])
    assert [start.argv for start in starts] == [("ip", "netns", "exec", name, "agent") for name in ("a", "b")]
    assert [start.env["BERTH_NODE_RANK"] for start in starts] == ["0", "1"]


def test_client_gets_the_variables_of_its_command_and_no_others() -> None:
    """A scheduler would hand on the whole environment of the sweep, Berth's own PYTHONPATH with it."""
    slurm = client_start(SLURM, Node("n3", "10.0.0.3"), "/scratch", ["HOME", "OPENAI_API_KEY", "BASH_FUNC_module%%"])
    assert "--export=HOME,OPENAI_API_KEY" in slurm
    assert "--nodelist=n3" in slurm
    flux = client_start(FLUX, Node("n3", "10.0.0.3"), "/scratch", ["HOME"])
    assert [word for word in flux if word.startswith("--env")] == ["--env=-*", "--env=HOME"]


def test_client_finds_its_folders_on_its_own_node(tmp_path: Path) -> None:
    """What stands before the client's command makes the folders of the other node's disk, and passes input on."""
    start = client_start(local(), Node("here", "10.0.0.1"), f"{tmp_path}/a b", [])
    done = subprocess.run([*start, "cat"], input="text", capture_output=True, text=True, check=True)
    assert done.stdout == "text"
    assert (tmp_path / "a b/cache").is_dir()


def test_slurm_is_asked_for_names_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's nodes in Slurm's order, at the address by which Slurm reaches each."""
    program(
        tmp_path,
        "scontrol",
        'case "$*" in\n'
        '*"show job 7") echo "JobId=7 NodeList=n[1-2] NumNodes=2" ;;\n'
        '"show hostnames n[1-2]") printf "n1\\nn2\\n" ;;\n'
        '*"show node n1") echo "NodeName=n1 NodeAddr=127.0.0.11 NodeHostName=h" ;;\n'
        '*"show node n2") echo "NodeName=n2 NodeAddr=127.0.0.12 NodeHostName=h" ;;\n'
        "*) exit 1 ;;\nesac",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert job_nodes(SLURM, 2) == (Node("n1", "127.0.0.11"), Node("n2", "127.0.0.12"))
    with pytest.raises(BerthError, match=r"3 nodes are needed, .* but this job has 2: n1, n2"):
        job_nodes(SLURM, 3)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(BerthError, match="This is no job of Slurm"):
        job_nodes(SLURM, 2)


def test_a_loopback_address_among_others_is_refused() -> None:
    """A host's own name often means its loopback interface, at which no other node reaches it."""
    with pytest.raises(BerthError, match=r"node b means 127\.0\.1\.1 here.*server\.interface"):
        job_nodes(local(("a", "10.0.0.1"), ("b", "127.0.1.1")), 2)
    assert job_nodes({**local(("a", "10.0.0.1"), ("b", "127.0.1.1")), "interface": "hsn0"}, 2)


@pytest.mark.parametrize("interface", ["", "lo", "127.0.0.0/8"])
def test_a_node_knows_its_address_and_interface(interface: str) -> None:
    """By the address of its name, by interface, and by network."""
    assert own_address(Node("n", "127.0.0.1"), interface) == ("127.0.0.1", "lo")


def test_an_address_of_another_machine_is_told_with_those_of_this_one() -> None:
    """The error says what the node has, and which key chooses."""
    with pytest.raises(BerthError, match=r"Node n1 does not have the address 192\.0\.2\.1.*127\.0\.0\.1 \(lo\)"):
        own_address(Node("n1", "192.0.2.1"), "")
    with pytest.raises(BerthError, match=r"server\.interface, nosuch0"):
        own_address(Node("n1", "192.0.2.1"), "nosuch0")


def test_rank_and_node_must_agree() -> None:
    """A rank that the scheduler put on another node than the sweep thinks would take its neighbour's address."""
    environ = {"BERTH_NODES": "n1=10.0.0.1,n2=10.0.0.2", "SLURM_PROCID": "1", "SLURMD_NODENAME": "n2"}
    assert own_rank(environ) == 1
    assert own_node(environ, 1) == NODES[1]
    with pytest.raises(BerthError, match="Rank 1 was to run on node n2, but runs on n1"):
        own_node({**environ, "SLURMD_NODENAME": "n1"}, 1)
    with pytest.raises(BerthError, match="which node it is"):
        own_rank({})


def test_steps_are_not_narrowed_by_the_batch_step() -> None:
    """Some versions of srun take the batch step's CPUs per task for the step's, and others of the job are idle."""
    assert step_environment({"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "7"}) == {"SLURM_JOB_ID": "7"}


def test_messages_survive_srun() -> None:
    """Long messages in short lines, mixed with those of other nodes and with what others print."""
    long, short = {"tail": "x y\n" * 1000}, {"event": "beat"}
    lines = encode(1, long).splitlines(keepends=True)
    assert max(map(len, lines)) < 1024
    decoder = Decoder()
    mixed = ["srun: a warning\n", lines[0], encode(0, short), "BERTH 1\n", *lines[1:]]
    assert [found for line in mixed if (found := decoder.feed(line))] == [(0, short), (1, long)]


def states(*died: dict[str, Any] | None) -> list[NodeState]:
    found = [NodeState(f"n{rank}", 0.0) for rank in range(len(died))]
    for order, (state, how) in enumerate(zip(found, died, strict=True)):
        if how:
            state.died, state.died_at = how, how.get("at", float(order))
    return found


OWN, SIGNAL = {"signalled": False}, {"signalled": True}


def test_the_node_that_died_first_is_blamed() -> None:
    """A lost node before all that tell of their end, one that was killed before one that gave up, else the first."""
    assert blame(states(None, None), []) is None
    assert blame(states({**OWN, "at": 2.0}, {**OWN, "at": 1.0}), []) == 1
    assert blame(states(OWN, None, SIGNAL), []) == 2
    assert blame(states(OWN, None, SIGNAL), [1]) == 1
    gone = states(OWN, None)
    gone[1].gone = True
    assert blame(gone, []) == 1


def test_missing_nodes_of_a_cluster_are_named() -> None:
    """How many of how many joined, and the name and address of each that has not."""
    joined = joined_of("some log\nnode 10.0.0.1\nnode 10.0.0.1\n")
    assert joined == ["10.0.0.1"]
    error = ClusterIncomplete(joined, {"n1": "10.0.0.1", "n2": "10.0.0.2"}, 600)
    assert str(error).startswith("1 of 2 nodes joined the Ray cluster within 600 s. Missing: n2 (10.0.0.2).")


def test_client_node_is_asked_for_and_part_of_the_spec() -> None:
    """The job has one node more, survives the loss of one, and its points are filed under another definition."""
    config = configured("hops")
    alone = config.deployments["scout-hops"]
    apart = dataclasses.replace(alone, client_nodes=1)
    platform = config.platforms["hops"]
    assert sweep_resources(apart, platform, 60)["nodes"] == 2
    assert "--no-kill" in str(sweep_resources(apart, platform, 60)["slurm_extra"])
    assert "--no-kill" not in str(sweep_resources(alone, platform, 60)["slurm_extra"])
    benchmark = config.benchmarks["sharegpt-1000"]
    root = all_of("hops")["scout-hops"].root
    one, two = (define(config, each, benchmark, root) for each in (alone, apart))
    assert one.id != two.id
    assert two.full["benchmark"]["client_nodes"] == 1
    assert "client_nodes" not in one.full["benchmark"]


def test_client_on_its_own_node_is_rendered() -> None:
    """The job has a node for it, and client.sh must be told where the server is."""
    rendering = all_of("hops")["scout-hops"]
    deployment = dataclasses.replace(rendering.deployment, client_nodes=1)
    texts = render_files(dataclasses.replace(rendering, deployment=deployment))
    assert "salloc --nodes=2 " in texts["server.sh"]
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run([bash, "-c", texts["client.sh"]], env={}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "BASE_URL: is not set; export the address of the server" in done.stderr


def test_nodes_that_a_platform_does_not_have_are_refused(tmp_path: Path) -> None:
    """Each error names the deployment and what the platform gives."""
    config = configured("hops")
    root = all_of("hops")["scout-hops"].root
    raw = yaml.safe_load((root / "config/config.yaml").read_text())
    raw["deployments"]["llama31-405b-hops"]["client_nodes"] = 1
    limit = config.platforms["hops"].nodes
    if limit < 5:
        with pytest.raises(BerthError, match=rf"4 nodes and 1 for the client, but platform hops gives .* {limit}"):
            load_config(raw, root)
    raw["deployments"]["llama31-405b-hops"]["client_nodes"] = 0
    raw["deployments"]["tiny-local"]["client_nodes"] = 1
    with pytest.raises(BerthError, match="1 nodes and 1 for the client, but platform local gives a job at most 1"):
        load_config(raw, root)
