"""settings.md: every setting of a deployment, where it comes from, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.coordinates import plain_rate
from berth.shelltext import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from berth.container import Container
    from berth.decide import Explanation
    from berth.rendering import Rendering


LAYERS = (
    "## Arguments\n\nA later layer replaces an earlier one: recipe, version, accelerator, version on that accelerator, "
    "several nodes, device, platform, deployment.\n\n"
)
_BEYOND = (
    "It chooses a free port of the range, makes a key of its own, waits until the server is ready (and says why, if it "
    "does not get ready), measures the levels that are missing, starts a server that died again, and takes everything "
    "down at its end."
)


def settings_page(rendering: Rendering, warnings: Sequence[str]) -> str:
    """The page, in Markdown."""
    deployment, platform = rendering.deployment, rendering.platform
    sections = [
        f"# {deployment.name}\n\n{rendering.recipe.description}: {rendering.model.repo} on {platform.label}.",
        *(f"**Warning:** {warning}" for warning in warnings),
        "## What and where\n\n" + table(("what", "value"), facts(rendering)),
        LAYERS + table(("argument", "from", "why", "in place of"), arguments(rendering)),
        "## Environment of the server\n\n" + table(("variable", "from", "why", "in place of"), environment(rendering)),
        "## Secrets\n\n" + _secrets(rendering),
        "## Folders\n\n" + _folders(rendering),
        "## Client\n\n" + _client(rendering) if rendering.recipe.clients else "",
        "## What a job of Berth does beyond these scripts\n\n" + _BEYOND,
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def facts(rendering: Rendering) -> list[tuple[str, str]]:
    """What runs, in which size, and what measures it."""
    deployment, platform, model = rendering.deployment, rendering.platform, rendering.model
    container = rendering.server.container
    uses = ", ".join(
        f"{use.experiment.name} ({'no id yet' if rendering.unpinned else use.definition.id})" for use in rendering.uses
    )
    return [
        ("recipe", f"{rendering.recipe.name} {deployment.version}"),
        ("model", f"{model.repo} at {model.revision or ('no revision' if model.source == 'hub' else 'its seed')}"),
        ("image", container.image),
        ("digest", container.digest or ("the lock's" if container.kind == "environment" else "none: the tag may move")),
        ("accelerators", f"{platform.accelerator.per_node} x {platform.accelerator.name} in a node"),
        ("nodes", str(deployment.nodes)),
        ("tensor x pipeline parallel", f"{deployment.tensor_parallel} x {deployment.pipeline_parallel}"),
        ("scheduler, runtime", f"{platform.scheduler}, {platform.runtime}"),
        ("listens on", f"{platform.host}, port {rendering.port} (a job takes a free one up to {platform.ports[1]})"),
        ("experiments (spec)", uses),
    ]


def arguments(rendering: Rendering) -> list[tuple[str, ...]]:
    """Each argument, the layer that decided it, its reason, and the layers before."""
    container = rendering.server.container
    told = [each for each in rendering.server.explanations if each.part == "arg"]
    return [(_spelled(container, each.name), *_origin(each)) for each in told]


def _spelled(container: Container, name: str) -> str:
    """The argument as it stands on the command line."""
    flags = (f"--{name}", f"--no-{name}")
    words = list(container.args)
    for index, word in enumerate(words):
        if word in flags or word.startswith(f"--{name}="):
            end = index + 1
            while word == f"--{name}" and end < len(words) and not words[end].startswith("-"):
                end += 1
            return code(" ".join(words[index:end]))
    return f"{code(flags[0])}, left out"


def environment(rendering: Rendering) -> list[tuple[str, ...]]:
    """The same of each variable of the server."""
    container = rendering.server.container
    told = {each.name: each for each in rendering.server.explanations if each.part == "env"}
    rows: list[tuple[str, ...]] = [
        (code(f"{name}={container.env[name]}") if name in container.env else f"{code(name)}, removed", *_origin(each))
        for name, each in told.items()
    ]
    site = rendering.platform.name
    caches = set(rendering.recipe.expects.cache_env) | {"HOME"}
    for name, value in container.env.items():
        if name not in told:
            why = (
                "A cache of the service, in its writable folder." if name in caches else "The site sets it everywhere."
            )
            rows.append((code(f"{name}={value}"), "recipe" if name in caches else f"platform {site}", why, ""))
    return rows


def _origin(each: Explanation) -> tuple[str, str, str]:
    return each.source, each.reason or "the configuration gives no reason", ", ".join(each.replaced)


def _secrets(rendering: Rendering) -> str:
    names = rendering.server.container.secret_env
    if not names:
        return "None."
    ways = {
        "podman": "Podman gets the name alone (`--env=NAME`) and reads the value from its own environment.",
        "apptainer": "Apptainer gets the value as `APPTAINERENV_NAME` in its environment.",
        "process": "The process gets the variable.",
    }
    return f"{', '.join(map(code, names))}, from the environment. {ways[rendering.platform.runtime]}"


def _folders(rendering: Rendering) -> str:
    container = rendering.server.container
    if not container.mounts:
        rows = [(str(rendering.served_dir), "the model"), (str(rendering.scratch), "everything that is written")]
        return table(("here", "what"), ((code(path), what) for path, what in rows))
    return table(
        ("here", "inside", ""),
        ((code(m.source), code(m.target), "read only" if m.read_only else "writable") for m in container.mounts),
    )


def _client(rendering: Rendering) -> str:
    client = rendering.recipe.client(rendering.deployment.version)
    devices = ", ".join(client.needs_devices)
    lines = [f"`{' '.join(client.command)}` of the same image, with `--{client.backend_flag}` for the protocol."]
    if rendering.platform.accelerator.kind in client.needs_devices:
        lines.append(f"It gets the accelerators passed in, because it initialises them ({devices}).")
    if client.reason:
        lines.append(client.reason)
    for use in rendering.uses:
        levels = ", ".join(plain_rate(level) for level in use.levels)
        lines.append(
            f"{use.experiment.name}, {use.experiment.runs[rendering.deployment.name]} run(s): "
            f"{use.benchmark['num_prompts']} prompts of {use.benchmark['dataset']}, seed {use.benchmark['seed']}, at "
            + (f"request rates of {levels} per second." if use.by_rate else f"concurrency {levels}.")
        )
    return "\n".join(f"- {line}" for line in lines)


def code(text: str) -> str:
    """A text as code."""
    return f"`{shown(text)}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
