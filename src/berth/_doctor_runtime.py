"""Checks of the container runtime and of the accelerators on this node."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.checkup import Result, ask, fail, file_system, in_job, is_network, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

_CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
_CDI_KIND = re.compile(r"""^\s*["']?kind["']?\s*:\s*["']?([^"',\s]+)""", re.MULTILINE)
_MODULE = "install it, or load the site's module; where only compute nodes have it, run doctor in a job"


def podman_checks() -> Iterator[Result]:
    """Podman is there and works, on a local disk, with ids for rootless containers."""
    version = ask("podman", "--version")
    if version.code is None:
        yield fail("Podman: podman is not on PATH", _MODULE)
        return
    info = ask("podman", "info", "--format=json")
    facts = _json(info.out)
    if not info.good or not facts:
        yield fail(f"Podman: podman info fails: {info.complaint}", "podman info must work for this user on this node")
        return
    yield ok(f"Podman: {version.out.strip()}, OCI runtime {facts['host'].get('ociRuntime', {}).get('name', 'unknown')}")
    yield podman_storage(facts["store"]["graphRoot"], facts["store"]["graphDriverName"])
    if facts["host"].get("security", {}).get("rootless"):
        yield from subordinate_ids()


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and {"host", "store"} <= set(value) else {}


def podman_storage(root: str, driver: str, kind: str | None = None) -> Result:
    """Whether images can be unpacked where Podman does it; `kind` is the file system, found out where None."""
    kind = file_system(Path(root)) if kind is None else kind
    where = f"Podman: storage {root} ({driver} on {kind or 'an unknown file system'})"
    if is_network(kind):
        return fail(
            where + " is not on a local disk; containers fail or crawl there",
            "set rootless_storage_path in ~/.config/containers/storage.conf to a folder on the node's own disk",
        )
    if driver == "vfs":
        return warn(
            where + " copies every layer", "use the driver overlay in storage.conf (fuse-overlayfs, or a newer kernel)"
        )
    return ok(where)


def subordinate_ids(folder: Path = Path("/etc"), user: str | None = None, uid: int | None = None) -> Iterator[Result]:
    """Whether a rootless container can have more than one user id: subuid(5), subgid(5), or getsubids(1)."""
    user, uid = user or getpass.getuser(), os.getuid() if uid is None else uid
    for name, option in (("subuid", []), ("subgid", ["-g"])):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            lines = []
        if any(line.split(":")[0] in (user, str(uid)) for line in lines) or ask("getsubids", *option, user).good:
            yield ok(f"{name}: {user} has a range of ids")
        else:
            yield fail(
                f"{name}: {user} has no range of ids, so that images with more than one user cannot be unpacked",
                f"as root: usermod --add-{name}s 100000-165535 {user}",
            )
    if shutil.which("newuidmap") is None:
        yield fail("newuidmap is not on PATH", "as root: install the package uidmap (shadow-utils)")


def skopeo_check() -> Result:
    """Whether images can be copied and looked up here."""
    version = ask("skopeo", "--version")
    if not version.good:
        return fail("images: skopeo is not on PATH", _MODULE)
    return ok(f"images: {version.out.strip()}")


def apptainer_checks() -> Iterator[Result]:
    """Apptainer is there, and may be root inside its containers."""
    version = ask("apptainer", "--version")
    if version.code is None:
        yield fail("Apptainer: apptainer is not on PATH", _MODULE)
        return
    if not version.good:
        yield fail(f"Apptainer: {version.complaint}", "apptainer --version must work for this user on this node")
        return
    yield ok(f"Apptainer: {version.out.strip()}")
    if os.getuid() != 0:
        yield user_namespaces()
        yield from subordinate_ids()


def user_namespaces(limit_file: Path = Path("/proc/sys/user/max_user_namespaces")) -> Result:
    """Whether this kernel lets a user be root in a container (--fakeroot)."""
    try:
        limit = int(limit_file.read_text())
    except (OSError, ValueError):
        return warn("user namespaces: the kernel does not tell", "apptainer exec --fakeroot must work on compute nodes")
    if limit == 0:
        return fail(
            "user namespaces are off, so that --fakeroot cannot work",
            f"as root: sysctl user.max_user_namespaces=65536 ({limit_file})",
        )
    return ok("user namespaces are on")


def device_checks(runtime: str, accelerator: str, *, local: bool) -> Iterator[Result]:
    """Whether accelerators can be passed into a container on this node.

    Without a scheduler (`local`), or inside a job, they must be here; a login node has none.
    """
    if accelerator == "cuda" and runtime == "podman":
        yield _here(cdi_specification(), local=local)
    elif accelerator == "cuda":
        found = Path("/dev/nvidiactl").exists()
        yield _here(ok("NVIDIA driver: /dev/nvidiactl is there") if found else _no_nvidia(), local=local)
    elif accelerator == "rocm":
        for device in ("/dev/kfd", "/dev/dri"):
            yield _here(device_node(Path(device)), local=local)


def cdi_specification(folders: tuple[str, ...] = _CDI_FOLDERS) -> Result:
    """Whether `nvidia.com/gpu` means something to Podman here: a CDI specification of that kind."""
    files = [file for folder in folders for file in sorted(Path(folder).glob("*")) if file.suffix in (".yaml", ".json")]
    for file in files:
        try:
            kinds = _CDI_KIND.findall(file.read_text())
        except OSError:
            continue
        if "nvidia.com/gpu" in kinds:
            return ok(f"CDI: {file} describes nvidia.com/gpu")
    return fail(
        f"CDI: no specification of nvidia.com/gpu in {' or '.join(folders)}",
        "as root, and again after every update of the driver: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    )


def device_node(path: Path) -> Result:
    """Whether a device of ROCm is there and may be used by this user."""
    if not path.exists():
        return fail(
            f"ROCm: there is no {path}",
            "load the driver amdgpu; on a node without accelerators this is as it should be",
        )
    if not os.access(path, os.R_OK | (0 if path.is_dir() else os.W_OK)):
        return fail(f"ROCm: {path} may not be used by {getpass.getuser()}", "join the groups video and render")
    return ok(f"ROCm: {path} is there")


def _no_nvidia() -> Result:
    return fail(
        "NVIDIA driver: there is no /dev/nvidiactl", "load the driver; on a node without GPUs this is as it should be"
    )


def _here(result: Result, *, local: bool) -> Result:
    if result.status != "FAIL" or local or in_job():
        return result
    return warn(
        f"{result.what} on this node ({socket.gethostname()})",
        f"right for a login node; on a compute node: {result.remedy}. Run doctor in a job to see",
    )
