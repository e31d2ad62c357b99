"""Checks of the container runtime and of the accelerators on this node."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.checkup import Result, ask, fail, file_system, in_job, is_network, ok, warn
from berth.devices import accelerator_checks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MODULE = (
    "install it, or name the site's module in `modules` of the platform file; where only compute nodes have it, run "
    "doctor in a job"
)


def podman_checks(program: Sequence[str] = ("podman",), environ: Mapping[str, str] | None = None) -> Iterator[Result]:
    """Podman is there and works, on a local disk, with ids for rootless containers."""
    result, facts = podman_info(program, environ)
    yield result
    if not facts:
        return
    yield podman_storage(facts["store"]["graphRoot"], facts["store"]["graphDriverName"])
    if facts["host"].get("security", {}).get("rootless"):
        yield from subordinate_ids()


def podman_info(
    program: Sequence[str] = ("podman",), environ: Mapping[str, str] | None = None
) -> tuple[Result, dict[str, Any]]:
    """Whether Podman works for this user on this node, and what it says of itself; {} where it does not.

    `program` is Podman with its global options, and `environ` what it runs in: this process's environment where None.
    """
    version = ask(*program, "--version", environ=environ)
    if version.code is None:
        return fail("Podman: podman is not on PATH", _MODULE), {}
    info = ask(*program, "info", "--format=json", environ=environ)
    facts = _json(info.out)
    if not info.good or not facts:
        what = f"Podman: {' '.join(program)} info fails: {info.complaint}"
        return fail(what, "this command must work for this user on this node"), {}
    runtime = facts["host"].get("ociRuntime", {}).get("name", "unknown")
    return ok(f"Podman: {version.out.strip()}, OCI runtime {runtime}"), facts


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
            "set podman.storage in the platform file, or rootless_storage_path in storage.conf, to the node's own disk",
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


def skopeo_check(environ: Mapping[str, str] | None = None) -> Result:
    """Whether images can be copied and looked up here."""
    version = ask("skopeo", "--version", environ=environ)
    if not version.good:
        return fail("images: skopeo is not on PATH", _MODULE)
    return ok(f"images: {version.out.strip()}")


def apptainer_checks(environ: Mapping[str, str] | None = None) -> Iterator[Result]:
    """Apptainer is there, and may be root inside its containers."""
    result = apptainer_version(environ)
    yield result
    if result.status == "ok" and os.getuid() != 0:
        yield user_namespaces()
        yield from subordinate_ids()


def apptainer_version(environ: Mapping[str, str] | None = None) -> Result:
    """Whether Apptainer works for this user on this node; `environ` is this process's environment where None."""
    version = ask("apptainer", "--version", environ=environ)
    if version.code is None:
        return fail("Apptainer: apptainer is not on PATH", _MODULE)
    if not version.good:
        return fail(f"Apptainer: {version.complaint}", "apptainer --version must work for this user on this node")
    return ok(f"Apptainer: {version.out.strip()}")


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
    for result in accelerator_checks(runtime, accelerator):
        yield _here(result, local=local)


def _here(result: Result, *, local: bool) -> Result:
    if result.status != "FAIL" or local or in_job():
        return result
    return warn(
        f"{result.what} on this node ({socket.gethostname()})",
        f"right for a login node; on a compute node: {result.remedy}. Run doctor in a job to see",
    )
