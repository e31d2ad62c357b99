"""client.sh: the benchmark client, one point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth import _render_parts as parts
from berth._render_server import working_folder
from berth.coordinates import plain_rate
from berth.mode import mode_of, point_seed
from berth.shelltext import comment, exports, script

if TYPE_CHECKING:
    from berth.rendering import Rendering, Use


def client_scripts(rendering: Rendering) -> dict[str, str]:
    """client.sh; or one client-EXPERIMENT.sh each, where several experiments ask different things of the deployment."""
    if not rendering.recipe.clients:
        return {}
    texts = {use.experiment.name: _client(rendering, use) for use in rendering.uses}
    if len(set(texts.values())) == 1:
        return {"client.sh": next(iter(texts.values()))}
    return {f"client-{name}.sh": text for name, text in texts.items()}


def _client(rendering: Rendering, use: Use) -> str:
    container = rendering.client(use)
    how = f"in {rendering.root} run {rendering.workflow(use.dataset.with_name('receipt.json'))}"
    return script(
        _head(rendering, use),
        parts.beginning(rendering),
        _settings(rendering, use),
        _secrets(rendering),
        parts.environment(rendering, container)
        + comment("The server is never behind a proxy.")
        + exports({"no_proxy": "*", "NO_PROXY": "*"}),
        parts.staged(rendering, (use.dataset, how)) + parts.devices_there(rendering, container),
        parts.job_devices(rendering, container),
        working_folder(rendering),
        parts.container_name(rendering),
        parts.command(rendering, container),
        f'echo "the client\'s own result: {rendering.scratch}/{"q" if use.by_rate else "c"}${use.variable}.json"\n',
    )


def _head(rendering: Rendering, use: Use) -> str:
    levels = " ".join(plain_rate(level) for level in use.levels)
    lines = [
        f"One point of {use.experiment.name}: {use.benchmark['num_prompts']} prompts to {rendering.deployment.name}.",
        "",
        f"    {use.variable}=16 bash client.sh",
        "",
        f"The levels of the experiment: {levels}. {_where(rendering)}",
        "",
        "Berth measures with the same arguments, in one warm process for all points where the version allows it.",
    ]
    if use.benchmark["warm_up_prompts"]:
        lines.append(
            f"It sends {use.benchmark['warm_up_prompts']} prompts of seed {use.benchmark['seed'] + 1} before the first "
            "point, which are not measured."
        )
    if mode_of(use.benchmark) == "clean":
        lines.append(
            "In mode clean it sends them before every point too, waits until the server has no other work, and empties "
            "the prefix cache where it is on: docs/method.md."
        )
    return comment(*lines)


def _where(rendering: Rendering) -> str:
    if rendering.deployment.client_nodes:
        return (
            "It has a node of its own, the last of the server's job. BASE_URL must say where the server is, such as "
            f"http://ADDRESS:{rendering.port} with the address of the job's first node."
        )
    return "BASE_URL says where the server is, if not on this node."


def _settings(rendering: Rendering, use: Use) -> str:
    base_url = f'BASE_URL="${{BASE_URL:-http://{rendering.near_host}:{rendering.port}}}"\n'
    if rendering.deployment.client_nodes:
        base_url = ': "${BASE_URL:?is not set; export the address of the server, which is on another node}"\n'
    level = f'{use.variable}="${{{use.variable}:-1}}"\n'
    names = f"{use.variable} BASE_URL"
    if use.benchmark["seed_per_point"]:
        first = point_seed(use.benchmark, 0)
        level += (
            f'SEED="$(awk -v rate="$REQUEST_RATE" \'BEGIN {{ printf "%d", {first} + 1000 * rate + 0.5 }}\')"\n'
            if use.by_rate
            else f'SEED="$(({first} + CONCURRENCY))"\n'
        )
        names += " SEED"
    # None is for the client's own environment.
    return f"{level}{base_url}export -n {names}\n"


def _secrets(rendering: Rendering) -> str:
    server, client = rendering.recipe.server_key, rendering.recipe.client_key
    if not server or not client:
        return ""
    text = comment("The key of the server, under the name in which the client looks for it.")
    text += f'export {client}="${{{server}:?is not set; export the key that the server was started with}}"\n'
    return text + (parts.handed_over({client: client}) if rendering.platform.runtime == "apptainer" else "")
