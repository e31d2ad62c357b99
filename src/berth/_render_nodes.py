"""server.sh and node.sh: a server that spans several nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth import _render_parts as parts
from berth._render_server import ready_lines, title, working_folder
from berth.cluster import NODE_LINE, inside_argv, ray_containers
from berth.container import Container, render_shell
from berth.nodes import step_words
from berth.rendering import HEAD, NODE
from berth.resources import step_options
from berth.shelltext import comment, must, quote, script

if TYPE_CHECKING:
    from berth.recipe import MultiNode
    from berth.rendering import Rendering

# As a sweep waits by default (sweep.stall_s).
_JOIN_S = 600


def node_scripts(rendering: Rendering) -> dict[str, str]:
    """server.sh, which starts node.sh once on every node of the server, and node.sh.

    The containers are those that a sweep's agents start (berth.nodepart): both resolve them from the same recipe.
    """
    way = rendering.recipe.multi_node(rendering.deployment.version)
    return {"server.sh": _server(rendering), "node.sh": _node(rendering, way)}


def _server(rendering: Rendering) -> str:
    nodes = rendering.deployment.nodes
    step = _step(rendering)
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
        comment("Each node says at which address the others reach it, in the order of their ranks.")
        + f'ADDRESSES="$({step} address | sort -n | awk \'{{ print $2 }}\' | paste -sd " ")"\nexport ADDRESSES\n'
        + must(f'[ "$(wc -w <<<"$ADDRESSES")" -eq {nodes} ]', "not every node has told its address"),
        f"exec {_step(rendering, '--kill-on-bad-exit=1')}\n",
    )


def _hosts(rendering: Rendering) -> str:
    deployment = rendering.deployment
    if rendering.platform.scheduler == "slurm":
        inside, listing = "SLURM_JOB_ID", 'scontrol show hostnames "$SLURM_JOB_NODELIST"'
    else:
        # Inside `flux batch` and `flux alloc` FLUX_JOB_ID is not set: the job is the instance itself.
        inside, listing = "FLUX_URI", "flux hostlist --expand --delimiter='\\n' local"
    told = f"the job must have {deployment.job_nodes} nodes"
    if deployment.client_nodes:
        told += ", of which the last is for client.sh"
    return (
        must(f'[ -n "${{{inside}:-}}" ]', f"this is no job: {parts.allocation(rendering)}")
        + f"mapfile -t HOSTS < <({listing})\n"
        + must(f'[ "${{#HOSTS[@]}}" -eq {deployment.job_nodes} ]', told)
        + f'NODES="$(printf \'%s\\n\' "${{HOSTS[@]:0:{deployment.nodes}}}" | paste -sd ,)"\n'
    )


def _step(rendering: Rendering, *more: str) -> str:
    platform, deployment = rendering.platform, rendering.deployment
    words = step_words(platform.scheduler, deployment.nodes, step_options(deployment, platform))
    if platform.scheduler == "slurm":
        words += ['--nodelist="$NODES"', *more]
    else:
        words.append('--requires=host:"$NODES"')
    return f"{' '.join(words)} bash {quote(str(rendering.folder / 'node.sh'))}"


def _address(rendering: Rendering) -> str:
    """NODE_RANK, ADDRESSES, and HEAD_ADDRESS, NODE_ADDRESS and NODE_INTERFACE from them."""
    network = rendering.platform.interface
    if network:
        which = "to" if "/" in network else "dev"
        find = (
            f'ip -4 -oneline address show {which} {quote(network)} | awk \'NR == 1 {{ sub("/.*", "", $4); print $4 }}\''
        )
        told = f"this node has no IPv4 address on {network}, which is server.interface of {rendering.platform.name}"
    else:
        find = "getent ahostsv4 \"$(hostname)\" | awk 'NR == 1 { print $1 }'"
        told = "the name of this node has no IPv4 address"
    interface = "ip -4 -oneline address show to \"$NODE_ADDRESS\" | awk 'NR == 1 { print $2 }'"
    return (
        'NODE_RANK="${SLURM_PROCID:-${FLUX_TASK_RANK:?is not set; srun or flux run sets it}}"\n'
        f'NODE_ADDRESS="$({find})"\n'
        + must('[ -n "$NODE_ADDRESS" ]', told)
        + 'if [ "${1:-}" = address ]; then\n  echo "$NODE_RANK $NODE_ADDRESS"\n  exit\nfi\n'
        + ': "${ADDRESSES:?is not set; server.sh sets it}"\n'
        + 'HEAD_ADDRESS="${ADDRESSES%% *}"\n'
        + f'NODE_INTERFACE="$({interface})"\n'
    )


def _node(rendering: Rendering, way: MultiNode) -> str:
    first, other = rendering.server.container, rendering.node(1).container
    return script(
        comment(f"{rendering.deployment.name}: one of {rendering.deployment.nodes} nodes. server.sh starts it."),
        parts.beginning(rendering),
        _address(rendering),
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
    containers = ray_containers(way, first, values, rendering.recipe.file)
    check = _inside(rendering, containers.check).rstrip()
    return (
        comment(
            f"A Ray cluster first: one container per node. The first node then waits until all {nodes} have joined, "
            "and starts the server inside the cluster.",
        )
        + 'if [ "$NODE_RANK" -ne 0 ]; then\n'
        + f'  until (exec 3<>"/dev/tcp/$HEAD_ADDRESS/{port}") 2>/dev/null; do\n    sleep 1\n  done\n'
        + _indented(_background(parts.command(rendering, containers.worker)))
        + "  wait $!\n  exit\nfi\n"
        + _background(parts.command(rendering, containers.head))
        + "cluster=$!\n"
        + comment("Those of ADDRESSES that are no node of the cluster yet.")
        + f"missing() {{\n{_indented(check)[:-1]} 2>/dev/null | sed -n 's/^{NODE_LINE}//p' |\n"
        + "    grep -vxFf - <(tr ' ' '\\n' <<<\"$ADDRESSES\") | paste -sd ' ' || true\n}\n"
        + 'until absent="$(missing)" && [ -z "$absent" ]; do\n'
        + _indented(
            must('kill -0 "$cluster" 2>/dev/null', "the Ray cluster ended before all nodes had joined")
            + f'[ "$SECONDS" -lt {_JOIN_S} ] || {{\n'
            + f'  echo "not all of {nodes} nodes joined the Ray cluster within {_JOIN_S} s; missing: $absent" >&2\n'
            + "  exit 1\n}\nsleep 2\n"
        )
        + "done\n"
        + _background(_inside(rendering, first))
        + comment("Whichever ends first, the cluster or the server, ends this node, and with it the others.")
        + 'wait -n "$cluster" $!\n'
    )


def _inside(rendering: Rendering, container: Container) -> str:
    """A command in the container that keeps the cluster; for Apptainer, which shares the host, in one beside it."""
    argv = inside_argv(container, rendering.platform.runtime, parts.podman(rendering))
    return render_shell(argv, quote) if argv else parts.command(rendering, container)


def _background(command: str) -> str:
    return command.rstrip("\n") + " &\n"


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
