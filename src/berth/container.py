"""What is started, said once, and the command lines that start it under Podman, Apptainer and as a plain process.

Everything here is pure: values in, list[str] out. Secrets are names, never values.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from berth.recipe import Expectations

Runtime = Literal["podman", "apptainer", "process"]

_SITE = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_SITE_CA = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# What of the caller's environment a plain process gets, as patterns of a shell; the rest is the recipe's.
PROCESS_KEEPS = (
    *("LANG", "LANGUAGE", "TMPDIR", "TZ", "TERM", "LC_*"),
    *_SITE,
    *(name.upper() for name in _SITE),
    *_SITE_CA,
    # A job may own only some of the node's accelerators.
    "*_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)
# Variables of a login session that is over, or is another node's, when a job runs.
SESSION_VARIABLES = (
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "XDG_SESSION_TYPE",
    "XDG_SESSION_CLASS",
    "DBUS_SESSION_BUS_ADDRESS",
)
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
# A container carries the token of its server in this label, so that a later sweep finds what is its own.
INSTANCE_LABEL = "berth.instance"


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host and where it is seen inside."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Container:
    """One service or client, ready to be started.

    `kind` is "container" for an image, with `image` its reference and `digest` "sha256:..." or "", and "environment"
    for a plain process in an environment whose lock is `image`. `accelerator` is the devices that are passed in,
    `device_flags` Podman's for a job that owns only some of them (berth.gpus).
    """

    name: str
    kind: Literal["container", "environment"]
    image: str
    digest: str
    entrypoint: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    expects: Expectations
    accelerator: Literal["cuda", "rocm", "none"] = "none"
    secret_env: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = field(default=())
    device_flags: tuple[str, ...] = ()

    @property
    def pinned_image(self) -> str:
        """NAME@DIGEST where the digest is known, else NAME:TAG."""
        if not self.digest:
            return self.image
        folder, _, last = self.image.rpartition("/")
        return f"{folder}/{last.partition('@')[0].partition(':')[0]}@{self.digest}"


def podman_program(storage: str) -> tuple[str, ...]:
    """Podman with its images and containers in the folder `storage`, or where the site has them for ""."""
    return ("podman", f"--root={storage}/storage", f"--runroot={storage}/run") if storage else ("podman",)


def is_podman(program: Sequence[str]) -> bool:
    """Whether a command that was read from a file is what podman_program() makes, or ()."""
    options = ("--root=", "--runroot=")
    return not program or (program[0] == "podman" and all(word.startswith(options) for word in program[1:]))


def podman_argv(
    container: Container, *, program: Sequence[str] = ("podman",), options: Sequence[str] = ()
) -> list[str]:
    """`podman run` of a container; the values of its secrets come from the environment of this command.

    `options` are further ones of `podman run`. No terminal is asked for: a batch job has none. What the container
    prints goes to this command's output alone: a copy in Podman's storage would fill the node's disk.
    """
    _need("podman", container)
    expects = container.expects
    argv = [*program, "run", "--rm", f"--name={container.name}", "--log-driver=none"]
    argv += [f"--network={expects.network}", f"--ipc={expects.ipc}"]
    if expects.shm_gib and expects.ipc != "host":
        argv.append(f"--shm-size={expects.shm_gib}g")
    argv.append(f"--entrypoint={container.entrypoint}")
    argv += (container.device_flags if container.accelerator != "none" else ()) or podman_devices(container.accelerator)
    argv += [f"--env={name}={value}" for name, value in container.env.items()]
    argv += [f"--env={name}" for name in container.secret_env]
    argv += [f"--volume={_bind(mount)}" for mount in container.mounts]
    return [*argv, *options, f"--workdir={expects.workdir}", container.pinned_image, *container.args]


def podman_devices(accelerator: str, numbers: Sequence[str] = ()) -> tuple[str, ...]:
    """Podman's flags for all accelerators of the node, or for those with these numbers."""
    every = tuple(_PODMAN_DEVICES[accelerator])
    if not numbers:
        return every
    if accelerator == "cuda":
        return tuple(f"--device=nvidia.com/gpu={number}" for number in numbers)
    # Ray refuses ROCR_VISIBLE_DEVICES, and vLLM sets this one for its own workers.
    return (*every, f"--env=HIP_VISIBLE_DEVICES={','.join(numbers)}")


def apptainer_argv(container: Container, sif: str | Path, *, options: Sequence[str] = ()) -> list[str]:
    """`apptainer exec` of a container from its SIF, with the semantics that an image made for Podman expects.

    `options` are further ones of `apptainer exec`. Its secrets, and values that --env cannot carry, come from the
    environment: see apptainer_env.
    """
    _need("apptainer", container)
    argv = ["apptainer", "exec"]
    if container.expects.user == "root":
        argv.append("--fakeroot")
    argv += ["--writable-tmpfs", "--cleanenv", "--no-home"]
    argv += _APPTAINER_DEVICES[container.accelerator]
    argv += [f"--env={name}={value}" for name, value in container.env.items() if not _awkward(value)]
    argv += [f"--bind={_bind(mount)}" for mount in container.mounts]
    return [*argv, *options, f"--cwd={container.expects.workdir}", str(sif), container.entrypoint, *container.args]


def apptainer_env(container: Container, secrets: Mapping[str, str]) -> dict[str, str]:
    """APPTAINERENV_NAME=value for each secret, and for each value that --env would split or refuse."""
    values = {name: value for name, value in container.env.items() if _awkward(value)}
    values |= {name: secrets[name] for name in container.secret_env if name in secrets}
    return {f"APPTAINERENV_{name}": value for name, value in values.items()}


def apptainer_places(scratch: str | Path) -> dict[str, str]:
    """Where Apptainer unpacks and caches: on the node's local disk, and not in the home directory or in memory."""
    return {f"APPTAINER_{name}DIR": f"{scratch}/apptainer/{name.lower()}" for name in ("CACHE", "TMP")}


def process_argv(container: Container, prefix: str | Path) -> list[str]:
    """The command of a plain process in the environment at `prefix`."""
    if container.kind != "environment":
        raise BerthError(
            f"{container.name}: {container.image} is a container image, but the platform's runtime is `process`. "
            "Use runtime podman or apptainer, or a version whose image is an environment."
        )
    return [f"{prefix}/bin/{container.entrypoint}", *container.args]


def process_env(
    container: Container, prefix: str | Path, environ: Mapping[str, str], *, keep: Iterable[str] = ()
) -> dict[str, str]:
    """The whole environment of a plain process, without its secrets.

    PATH with the environment first, locale, proxies and certificates, the names in `keep`, and what the recipe sets.
    Nothing else of `environ` gets in, PYTHONPATH least of all.
    """
    patterns = (*PROCESS_KEEPS, *keep)
    env = {name: value for name, value in environ.items() if any(fnmatchcase(name, each) for each in patterns)}
    env["PATH"] = f"{prefix}/bin:{environ.get('PATH', _SYSTEM_PATH)}"
    return {**env, **container.env}


def without_login_session(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what belongs to a login session: Podman fails on it inside a job."""
    return {name: value for name, value in environ.items() if name not in SESSION_VARIABLES}


def stop_argvs(
    container: Container, runtime: Runtime, *, grace_s: float, program: Sequence[str] = ("podman",)
) -> tuple[tuple[str, ...], ...]:
    """Commands that end a container, in order: ask, kill, remove.

    None for Apptainer and processes: those end with their processes.
    """
    return podman_stop(program, container.name, grace_s) if runtime == "podman" else ()


def podman_stop(program: Sequence[str], name: str, grace_s: float) -> tuple[tuple[str, ...], ...]:
    """Commands that end a container of Podman, in order: ask, kill, remove. The second fails where it is gone."""
    return (
        (*program, "stop", "--ignore", f"--time={max(1, round(grace_s))}", name),
        (*program, "kill", name),
        (*program, "rm", "--force", "--ignore", name),
    )


def podman_remove(program: Sequence[str], name: str) -> tuple[str, ...]:
    """The command that ends a container of Podman at once."""
    return (*program, "rm", "--force", "--ignore", "--time=0", name)


def render_shell(argv: Iterable[str], quote: Callable[[str], str] = shlex.quote) -> str:
    """A command for people to read and run: quoted, one flag per line with its value."""
    lines: list[list[str]] = [[]]
    after_flag = False
    for index, token in enumerate(argv):
        is_flag = token.startswith("-")
        if index and (is_flag or after_flag):
            lines.append([])
        lines[-1].append(quote(token))
        after_flag = is_flag and "=" in token
    return " \\\n  ".join(" ".join(line) for line in lines) + "\n"


_PODMAN_DEVICES: dict[str, list[str]] = {
    "none": [],
    "cuda": ["--device=nvidia.com/gpu=all"],
    "rocm": [
        "--group-add=video",
        "--cap-add=SYS_PTRACE",
        "--security-opt=seccomp=unconfined",
        "--device=/dev/kfd",
        "--device=/dev/dri",
    ],
}
_APPTAINER_DEVICES: dict[str, list[str]] = {"none": [], "cuda": ["--nv"], "rocm": ["--rocm"]}


def _need(runtime: str, container: Container) -> None:
    if container.kind != "container":
        raise BerthError(
            f"{container.name}: the image {container.image} is an environment, which {runtime} cannot run. "
            "Use runtime process, or a version that has a container image for this accelerator."
        )


def _bind(mount: Mount) -> str:
    for path in (mount.source, mount.target):
        if ":" in path or "," in path:
            raise BerthError(
                f"{path}: a path with a colon or a comma cannot be mounted; the runtimes split there. Rename it."
            )
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")


def _awkward(value: str) -> bool:
    # apptainer reads --env as a list of NAME=VALUE in CSV as soon as it sees a comma, a quote or a second equals sign.
    return any(character in value for character in ',"=\n')
