"""The nodes of a job: their names and addresses, and the commands that start a process on them."""

from __future__ import annotations

import ipaddress
import os
import shlex
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# What a process on a node is told by its environment: NAME=ADDRESS of every node in the order of their ranks, and its
# own rank where no scheduler says it.
NODES_VARIABLE = "BERTH_NODES"
RANK_VARIABLE = "BERTH_NODE_RANK"
_RANKS = ("SLURM_PROCID", "FLUX_TASK_RANK", RANK_VARIABLE)

_TIMEOUT_S = 30.0
# Some versions of srun take these for --cpus-per-task, and then give a step no other CPUs.
_NOT_FOR_STEPS = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_CPU_BIND", "SLURM_TRES_PER_TASK")


@dataclass(frozen=True)
class Node:
    """One node of a job: its name, its IPv4 address, and for the platform's `hosts` the command that runs there."""

    name: str
    address: str
    run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where one node of a server stands among the others."""

    rank: int
    head_address: str
    node_address: str
    node_interface: str
    cluster_port: int


@dataclass(frozen=True)
class Start:
    """A command, and what it needs in its environment beyond that of the caller."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def job_nodes(settings: Mapping[str, Any], count: int) -> tuple[Node, ...]:
    """The first nodes of this job, in the scheduler's order; `settings` are the platform's, as a sweep has them.

    Raises:
        BerthError: this is no job, it has too few nodes, or a node has no address that the others reach.
    """
    ask = {"slurm": _slurm_nodes, "flux": _flux_nodes}.get(settings["scheduler"])
    found = (
        ask() if ask else tuple(Node(each["name"], each["address"], tuple(each["run"])) for each in settings["hosts"])
    )
    if len(found) < count:
        raise BerthError(
            f"{count} nodes are needed, server and client together, but this job has {len(found)}: "
            f"{', '.join(node.name for node in found) or 'none'}. Ask for {count} nodes."
        )
    nodes = found[:count]
    loopback = [node for node in nodes if ipaddress.ip_address(node.address).is_loopback]
    # A cluster that is played by one machine has nothing else.
    if loopback and len(loopback) < len(nodes) and not settings["interface"]:
        raise BerthError(
            f"The name of node {loopback[0].name} means {loopback[0].address} here, at which other nodes do not reach "
            "it. Set server.interface in the platform's file to the interface that the nodes share, or to their "
            "network, as 10.0.0.0/16."
        )
    return nodes


def agent_starts(settings: Mapping[str, Any], nodes: Sequence[Node], argv: Sequence[str]) -> list[Start]:
    """Commands that together start one process on each node; what is written to their input reaches every process."""
    told = {NODES_VARIABLE: ",".join(f"{node.name}={node.address}" for node in nodes)}
    if settings["scheduler"] in ("slurm", "flux"):
        words = step_words(settings["scheduler"], len(nodes), settings["step_options"])
        words += _placed(settings["scheduler"], nodes)
        return [Start((*words, *argv), told)]
    return [Start((*node.run, *argv), {**told, RANK_VARIABLE: str(rank)}) for rank, node in enumerate(nodes)]


def step_words(scheduler: str, nodes: int, options: Sequence[str]) -> list[str]:
    """The command that starts one process on each of so many nodes of a job; `options` ask for accelerators."""
    if scheduler == "slurm":
        return ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *options]
    return ["flux", "run", f"--nodes={nodes}", "--tasks-per-node=1", "--exclusive"]


def client_start(settings: Mapping[str, Any], node: Node, scratch: str, names: Iterable[str]) -> tuple[str, ...]:
    """What goes before a command so that it runs on a node of this job, with input and output passed on.

    `names` are the variables of its environment that are handed on; there are no others, but for the scheduler's.
    """
    folders = " ".join(shlex.quote(f"{scratch}/{name}") for name in ("cache", "apptainer/cache", "apptainer/tmp"))
    # The other node has a disk of its own.
    there = ("sh", "-c", f'mkdir -p {folders} && exec "$@"', "client")
    scheduler = settings["scheduler"]
    if scheduler not in ("slurm", "flux"):
        return (*node.run, *there)
    # Exported functions of bash have names that no scheduler takes.
    handed = [name for name in names if name.isidentifier()]
    export = [f"--export={','.join(handed)}"] if scheduler == "slurm" else ["--env=-*", *(f"--env={n}" for n in handed)]
    words = step_words(scheduler, 1, settings["step_options"])
    return (*words, *_placed(scheduler, [node]), *export, *there)


def beside_server(settings: Mapping[str, Any], node: Node) -> tuple[str, ...]:
    """What goes before a short command so that it runs on a node of this job beside what runs there."""
    if settings["scheduler"] not in ("slurm", "flux"):
        return tuple(node.run)
    return (*step_words(settings["scheduler"], 1, ()), *_placed(settings["scheduler"], [node]))


def _placed(scheduler: str, nodes: Sequence[Node]) -> list[str]:
    names = ",".join(node.name for node in nodes)
    if scheduler == "flux":
        return [f"--requires=host:{names}"]
    return [
        f"--nodelist={names}",
        # All memory and CPUs of the job, and no wait for what the batch step is thought to use.
        *("--overlap", "--mem=0", "--cpu-bind=none", "--mpi=none"),
        # A node that fails is told, and ended, by the sweep: it knows which was the first.
        *("--kill-on-bad-exit=0", "--no-kill"),
    ]


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what would narrow a step of a job."""
    return {name: value for name, value in environ.items() if name not in _NOT_FOR_STEPS}


def scheduler_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a scheduler's commands need of a job's environment."""
    return {name: value for name, value in step_environment(environ).items() if name.startswith(("SLURM_", "FLUX_"))}


def own_rank(environ: Mapping[str, str]) -> int:
    """The number of this node among those of its server, from 0.

    Raises:
        BerthError: nobody said it.
    """
    for name in _RANKS:
        if name in environ:
            return int(environ[name])
    raise BerthError(f"This process does not know which node it is: none of {', '.join(_RANKS)} is set.")


def own_node(environ: Mapping[str, str], rank: int) -> Node:
    """The calling node as the sweep knows it.

    Raises:
        BerthError: the scheduler put this rank on another node than the sweep thinks.
    """
    name, _, address = environ[NODES_VARIABLE].split(",")[rank].partition("=")
    here = environ.get("SLURMD_NODENAME", name)
    if here != name:
        raise BerthError(f"Rank {rank} was to run on node {name}, but runs on {here}. Report this: it is an error.")
    return Node(name, address)


def own_address(node: Node, interface: str) -> tuple[str, str]:
    """(address, interface) at which the other nodes reach this one; `interface` is an interface, a network or "".

    Raises:
        BerthError: this machine has no such address.
    """
    here = [
        (entry.address, name)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    if "/" in interface:
        wanted = ipaddress.ip_network(interface, strict=False)
        fitting = [pair for pair in here if ipaddress.ip_address(pair[0]) in wanted]
    elif interface:
        fitting = [pair for pair in here if pair[1] == interface]
    else:
        address = ipaddress.ip_address(node.address)
        fitting = [pair for pair in here if pair[0] == node.address]
        # All of 127.0.0.0/8 is this machine, whatever its interface says.
        fitting += [(node.address, name) for _, name in here if address.is_loopback and name == "lo"]
    if fitting:
        return fitting[0]
    what = f"an address in server.interface, {interface}" if interface else f"the address {node.address} of its name"
    known = ", ".join(f"{address} ({name})" for address, name in here)
    raise BerthError(
        f"Node {node.name} does not have {what}. It has: {known}. Set server.interface in the platform's file to the "
        "interface or the network that all nodes share."
    )


def _slurm_nodes() -> tuple[Node, ...]:
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        raise BerthError("This is no job of Slurm (SLURM_JOB_ID is not set), and a job's nodes are needed.")
    # Snakemake's executor has taken SLURM_JOB_NODELIST out of the environment.
    listed = _fields(_printed("scontrol", "--oneliner", "show", "job", job)).get("NodeList", "")
    names = _printed("scontrol", "show", "hostnames", listed).split()
    nodes = []
    for name in names:
        # NodeAddr is what Slurm itself reaches the node by; it is the name unless the site says otherwise.
        told = _fields(_printed("scontrol", "--oneliner", "show", "node", name))
        nodes.append(Node(name, _address(told.get("NodeAddr", name), name)))
    return tuple(nodes)


def _fields(line: str) -> dict[str, str]:
    """NAME=VALUE words, as scontrol prints them."""
    return dict(word.partition("=")[::2] for word in line.split())


def _flux_nodes() -> tuple[Node, ...]:
    return tuple(Node(name, _address(name, name)) for name in _printed("flux", "hostlist", "--expand", "local").split())


def _printed(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout
    except FileNotFoundError:
        raise BerthError(f"{command[0]} is not on PATH of this job, and its nodes are asked of it.") from None
    except subprocess.TimeoutExpired:
        raise BerthError(f"{' '.join(command)} gave no answer in {_TIMEOUT_S:g} s.") from None
    except subprocess.CalledProcessError as error:
        raise BerthError(f"{' '.join(command)} failed: {error.stderr.strip()}") from None


def _address(host: str, name: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise BerthError(
            f"Node {name}: its name {host} has no IPv4 address here ({error}). Ask the site's staff: names of nodes "
            "must resolve on the nodes."
        ) from None
