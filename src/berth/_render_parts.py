"""Parts that the rendered scripts share."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING

from berth.container import (
    PROCESS_KEEPS,
    SESSION_VARIABLES,
    Container,
    apptainer_argv,
    apptainer_env,
    apptainer_places,
    podman_argv,
    podman_devices,
    podman_program,
    process_argv,
    render_shell,
    stop_argvs,
)
from berth.gpus import ON_NODE, PODMAN_READS, VISIBLE
from berth.resources import accelerators_per_node
from berth.shelltext import comment, exports, must, quote, required

if TYPE_CHECKING:
    from pathlib import Path

    from berth.rendering import Rendering

# A word of stage.sh, what it brings where, and its commands.
Step = tuple[str, str, str]

# As a sweep asks by default (sweep.stop_grace_s).
_GRACE_S = 20.0
_MAKE_KEY = "is not set; export a key of your own, such as openssl rand -hex 32 prints"


def by_workflow(rendering: Rendering, target: Path) -> str:
    """The command that lets Berth make a file."""
    return f"cd {quote(str(rendering.root))}\n{rendering.workflow(target)}\n"


def environment(rendering: Rendering, container: Container) -> str:
    """What the caller's environment is turned into before the container starts."""
    if rendering.platform.runtime == "process":
        return _process_environment(rendering, container)
    if rendering.platform.runtime == "podman":
        return without_session()
    inside = apptainer_env(dataclasses.replace(container, secret_env=()), {})
    return without_session() + apptainer_folders(rendering) + exports(inside)


def without_session() -> str:
    """Drops what belongs to a login session."""
    text = comment("What belongs to a login session makes a container runtime fail inside a job.")
    return text + f"unset {' '.join(SESSION_VARIABLES)}\n"


def apptainer_folders(rendering: Rendering) -> str:
    """Where Apptainer unpacks."""
    places = apptainer_places(rendering.scratch)
    text = comment("Apptainer unpacks on the local disk, and not in the home directory or in memory.")
    return text + exports(places) + f"mkdir -p {' '.join(map(quote, places.values()))}\n"


def secrets(rendering: Rendering, container: Container) -> str:
    """Checks that the secrets are there, and hands them over by name."""
    names = container.secret_env
    if not names:
        return ""
    text = comment("Secrets come from the environment, and no value stands in a file or a command line.")
    text += required(names, _MAKE_KEY)
    return text + (handed_over({name: name for name in names}) if rendering.platform.runtime == "apptainer" else "")


def handed_over(names: dict[str, str]) -> str:
    """Secrets for a container of Apptainer: the name inside, and the variable of the script."""
    return "".join(f'export APPTAINERENV_{inside}="${{{here}}}"\n' for inside, here in names.items())


def _process_environment(rendering: Rendering, container: Container) -> str:
    kept = "|".join(dict.fromkeys((*PROCESS_KEEPS, "PATH", *container.secret_env)))
    return (
        comment("Nothing else of your environment reaches the process, PYTHONPATH least of all.")
        + f'for name in $(compgen -e); do\n  case "$name" in\n    {kept}) ;;\n    *) unset "$name" ;;\n  esac\ndone\n'
        + f'export PATH={quote(str(rendering.image_path))}"/bin:$PATH"\n'
        + exports(container.env)
    )


def beginning(rendering: Rendering) -> str:
    """The first commands of a script: the site's modules, and that every failure ends it."""
    modules = rendering.platform.modules
    text = ""
    if modules:
        text = comment("The site's modules; before bash becomes strict, because their functions are not.")
        text += "type module >/dev/null 2>&1 || . /etc/profile\n"
        text += f"module load {' '.join(map(quote, modules))} || exit 1\n"
    return text + "set -euo pipefail\n"


def podman(rendering: Rendering) -> tuple[str, ...]:
    """Podman with the platform's storage."""
    return podman_program(rendering.platform.container.storage)


def argv(rendering: Rendering, container: Container) -> list[str]:
    """The command of a container on this platform."""
    options = rendering.platform.container.options
    if rendering.platform.runtime == "podman":
        return podman_argv(container, program=podman(rendering), options=options)
    if rendering.platform.runtime == "apptainer":
        return apptainer_argv(container, rendering.image_path, options=options)
    return process_argv(container, rendering.image_path)


def command(rendering: Rendering, container: Container) -> str:
    """The command, one flag per line."""
    return render_shell(argv(rendering, container), quote)


def stop_trap(rendering: Rendering, container: Container) -> str:
    """Podman's containers outlive the command that started them, so that the end of the script ends them."""
    if rendering.platform.runtime != "podman":
        return ""
    lines = "".join(
        f"  {' '.join(map(quote, each))} >/dev/null 2>&1 || true\n"
        for each in stop_argvs(container, "podman", grace_s=_GRACE_S, program=podman(rendering))
    )
    return (
        comment("Whatever ends this script ends the container: it is asked, then killed, then removed.")
        + f"stop() {{\n{lines}}}\ntrap stop EXIT\ntrap 'exit 130' INT\ntrap 'exit 143' TERM\n"
    )


def container_name(rendering: Rendering) -> str:
    """The container's name, which carries the job (holder.JOB_ID_VARIABLES): two jobs on one node do not meet."""
    if rendering.platform.runtime != "podman":
        return ""
    return f'NAME="berth-{rendering.deployment.name}-${{SLURM_JOB_ID:-${{FLUX_JOB_ID:-${{FLUX_ENCLOSING_ID:-$$}}}}}}"\n'


def job_devices(rendering: Rendering, container: Container) -> str:
    """Names the job's own accelerators to the container, where the deployment leaves some of the node to others."""
    runtime = rendering.platform.runtime
    if container.accelerator == "none" or not rendering.shares_node or runtime == "process":
        return ""
    if runtime == "apptainer":
        return (
            comment("The job may own only some of the node's accelerators; --cleanenv would drop what says which.")
            + f"for name in {' '.join(VISIBLE)}; do\n"
            + '  [ -z "${!name:-}" ] || export "APPTAINERENV_$name=${!name}"\ndone\n'
        )
    text = comment(
        "The job may own only some of the node's accelerators, and Podman leaves the job's own limits, so that its own "
        "are named by their numbers on the node. Outside a job all are passed."
    )
    names = " ".join([*ON_NODE, *PODMAN_READS[container.accelerator]])
    text += f'NUMBERS=\nfor name in {names}; do\n  NUMBERS="${{NUMBERS:-${{!name:-}}}}"\ndone\n'
    text += f"DEVICES=({' '.join(podman_devices(container.accelerator))})\n"
    if container.accelerator == "rocm":
        return text + '[ -z "$NUMBERS" ] || DEVICES+=("--env=HIP_VISIBLE_DEVICES=$NUMBERS")\n'
    one = podman_devices("cuda", ("$number",))[0]
    return (
        text
        + '[ -z "$NUMBERS" ] || DEVICES=()\n'
        + f'for number in ${{NUMBERS//,/ }}; do\n  DEVICES+=("{one}")\ndone\n'
    )


def devices_there(rendering: Rendering, container: Container) -> str:
    """Checks that the accelerators can be passed in."""
    if rendering.platform.runtime == "podman" and container.accelerator == "cuda":
        return must(
            "compgen -G '/etc/cdi/*' >/dev/null || compgen -G '/var/run/cdi/*' >/dev/null",
            "no CDI specification on this node, so that nvidia.com/gpu=all means nothing here. As root: "
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        )
    if container.accelerator == "rocm":
        return "".join(
            must(f"[ -e {path} ]", f"no {path}: this node has no AMD accelerator, or its driver is not loaded")
            for path in ("/dev/kfd", "/dev/dri")
        )
    return ""


def staged(rendering: Rendering, *more: tuple[Path, str]) -> str:
    """Checks that what stage.sh brings is there; `more` are further paths and what makes each."""
    text = ""
    if rendering.recipe.expects.models_dir:
        step, folder = "node" if rendering.platform.node_models_dir else "model", rendering.served_dir
        text = must(f"[ -d {quote(str(folder))} ]", f"no model at {folder}: run stage.sh {step}")
    if rendering.platform.runtime != "podman":
        path = quote(str(rendering.image_path))
        text += must(f"[ -e {path} ]", f"no image at {rendering.image_path}: run stage.sh image")
    if rendering.platform.network and rendering.platform.network.ca_bundle:
        bundle = rendering.platform.network.ca_bundle
        text += must(f"[ -r {quote(bundle)} ]", f"no certificates at {bundle} on this node: network.ca_bundle names it")
    for path_, how in more:
        text += must(f"[ -e {quote(str(path_))} ]", f"{path_} is not there: {how}")
    return text


def allocation(rendering: Rendering) -> str:
    """How a person gets the nodes on which the scripts run; an empty text where no scheduler is asked."""
    platform, nodes = rendering.platform, rendering.deployment.job_nodes
    count = accelerators_per_node(rendering.deployment, platform)
    if platform.slurm:
        slurm = platform.slurm
        words = ["salloc", f"--nodes={nodes}"]
        if platform.accelerator.kind != "cpu" and slurm.gpus != "none":
            kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
            words.append(f"--gres=gpu:{kind}{count}" if slurm.gpus == "gres" else f"--gpus-per-node={kind}{count}")
        given = {"account": slurm.account, "partition": slurm.partition, "qos": slurm.qos}
        words += [f"--{key}={value}" for key, value in given.items() if value]
        words += ["--exclusive"] if slurm.exclusive else []
        return shlex.join([*words, *slurm.extra])
    if platform.flux:
        flux = platform.flux
        words = ["flux", "alloc", f"--nodes={nodes}"]
        words += [] if platform.accelerator.kind == "cpu" else [f"--gpus-per-node={count}"]
        words += [f"--{key}={value}" for key, value in {"queue": flux.queue, "bank": flux.bank}.items() if value]
        words += ["--exclusive"] if flux.exclusive else []
        return shlex.join([*words, *flux.extra])
    return ""
