"""server.sh and node.sh: a server that spans several nodes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from berth import _render_parts as parts
from berth._render_server import ready_lines, title, working_folder
from berth.container import Container, render_shell
from berth.recipe import fill
from berth.rendering import HEAD, NAME, NODE
from berth.resources import accelerators_per_node
from berth.shelltext import comment, must, quote, script

if TYPE_CHECKING:
    from berth.recipe import MultiNode
    from berth.rendering import Rendering

_ADDRESS = """address() {
  getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }'
}
"""


def node_scripts(rendering: Rendering) -> dict[str, str]:
    """server.sh, which starts node.sh once on every node of the job, and node.sh."""
    way = rendering.recipe.multi_node(rendering.deployment.version)
    return {"server.sh": _server(rendering), "node.sh": _node(rendering, way)}


def _server(rendering: Rendering) -> str:
    nodes = rendering.deployment.nodes
    return script(
        comment(
            title(rendering),
            "",
            f"Starts node.sh on each of {nodes} nodes. Stage model and image before it (stage.sh). settings.md says "
            "where each setting comes from, and why.",
            "",
            "Run it on the first node of a job:",
            f"    {parts.allocation(rendering)}",
            "",
            *ready_lines(rendering),
        ),
        "set -euo pipefail\n",
        parts.secrets(rendering, rendering.server.container),
        _hosts(rendering),
        _ADDRESS
        + 'HEAD_ADDRESS="$(address "${HOSTS[0]}")"\nexport HEAD_ADDRESS\n'
        + must('[ -n "$HEAD_ADDRESS" ]', "the name of the first node has no IPv4 address"),
        _everywhere(rendering),
    )


def _hosts(rendering: Rendering) -> str:
    nodes = rendering.deployment.nodes
    if rendering.platform.scheduler == "slurm":
        inside, listing = "SLURM_JOB_ID", 'scontrol show hostnames "$SLURM_JOB_NODELIST"'
    else:
        # Inside `flux batch` and `flux alloc` FLUX_JOB_ID is not set: the job is the instance itself.
        inside, listing = "FLUX_URI", "flux hostlist --expand --delimiter='\\n' local"
    return (
        must(f'[ -n "${{{inside}:-}}" ]', f"this is no job: {parts.allocation(rendering)}")
        + f"mapfile -t HOSTS < <({listing})\n"
        + must(f'[ "${{#HOSTS[@]}}" -eq {nodes} ]', f"the job must have {nodes} nodes")
    )


def _everywhere(rendering: Rendering) -> str:
    nodes, platform = rendering.deployment.nodes, rendering.platform
    count = accelerators_per_node(rendering.deployment, platform)
    script_ = quote(str(rendering.folder / "node.sh"))
    if platform.slurm:
        words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        if platform.accelerator.kind != "cpu" and platform.slurm.gpus != "none":
            words.append(f"--gres=gpu:{count}" if platform.slurm.gpus == "gres" else f"--gpus-per-node={count}")
        # One node that fails ends the server.
        words.append("--kill-on-bad-exit=1")
    else:
        words = ["flux", "run", f"--nodes={nodes}", "--tasks-per-node=1", "--exclusive"]
    return f"exec {' '.join(words)} bash {script_}\n"


def _node(rendering: Rendering, way: MultiNode) -> str:
    first, other = rendering.server.container, rendering.node(1).container
    return script(
        comment(f"{rendering.deployment.name}: one of {rendering.deployment.nodes} nodes. server.sh starts it."),
        parts.beginning(rendering),
        ': "${HEAD_ADDRESS:?is not set; server.sh sets it}"\n'
        'NODE_RANK="${SLURM_PROCID:-${FLUX_TASK_RANK:?is not set; srun or flux run sets it}}"\n'
        + _ADDRESS
        + 'NODE_ADDRESS="$(address "$(hostname)")"\n'
        + must('[ -n "$NODE_ADDRESS" ]', "the name of this node has no IPv4 address"),
        parts.secrets(rendering, first),
        parts.environment(rendering, first),
        parts.staged(rendering) + parts.devices_there(rendering, first),
        parts.job_devices(rendering, first),
        working_folder(rendering),
        parts.container_name(rendering) + parts.stop_trap(rendering, first),
        _ray(rendering, way, first) if way.kind == "ray" else _native(rendering, first, other),
    )


def _native(rendering: Rendering, first: Container, other: Container) -> str:
    return (
        comment("The first node answers requests; the others work for it.")
        + f'if [ "$NODE_RANK" -eq 0 ]; then\n{_indented(_background(parts.command(rendering, first)))}'
        + f"else\n{_indented(_background(parts.command(rendering, other)))}fi\n"
        + "wait $!\n"
    )


def _ray(rendering: Rendering, way: MultiNode, first: Container) -> str:
    nodes, port = rendering.deployment.nodes, rendering.cluster_port
    values = {"head_address": HEAD, "node_address": NODE, "cluster_port": str(port)}
    filled = {
        part: [fill(word, values, rendering.recipe.file) for word in getattr(way, part)]
        for part in ("head", "worker", "check")
    }
    head, worker = (
        dataclasses.replace(first, entrypoint=filled[part][0], args=tuple(filled[part][1:]))
        for part in ("head", "worker")
    )
    check = dataclasses.replace(first, entrypoint=filled["check"][0], args=tuple(filled["check"][1:]))
    return (
        comment(
            f"A Ray cluster first: one container per node. The first node then waits until all {nodes} have joined, "
            "and starts the server inside the cluster.",
        )
        + 'if [ "$NODE_RANK" -ne 0 ]; then\n'
        + f'  until (exec 3<>"/dev/tcp/$HEAD_ADDRESS/{port}") 2>/dev/null; do\n    sleep 1\n  done\n'
        + _indented(_background(parts.command(rendering, worker)))
        + "  wait $!\n  exit\nfi\n"
        + _background(parts.command(rendering, head))
        + "cluster=$!\n"
        + f"joined() {{\n{_indented(_inside(rendering, check).rstrip() + ' 2>/dev/null | grep -c node_ || true')}}}\n"
        + f'until [ "$(joined)" -ge {nodes} ]; do\n'
        + _indented(
            must('kill -0 "$cluster" 2>/dev/null', "the Ray cluster ended before all nodes had joined") + "sleep 2\n"
        )
        + "done\n"
        + _background(_inside(rendering, first))
        + comment("Whichever ends first, the cluster or the server, ends this node, and with it the others.")
        + 'wait -n "$cluster" $!\n'
    )


def _inside(rendering: Rendering, container: Container) -> str:
    """A command in the container that keeps the cluster; for Apptainer, which shares the host, in one beside it."""
    if rendering.platform.runtime == "podman":
        return render_shell([*parts.podman(rendering), "exec", NAME, container.entrypoint, *container.args], quote)
    return parts.command(rendering, container)


def _background(command: str) -> str:
    return command.rstrip("\n") + " &\n"


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
