"""What a sweep needs of its node, looked at before its server is started: runtime, accelerators, a readable model."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from berth._doctor_runtime import apptainer_version, podman_info
from berth.devices import accelerator_checks
from berth.errors import BerthError
from berth.gpus import cdi_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from berth.checkup import Result
    from berth.container import Container
    from berth.runtime import Host


def check_node(host: Host, container: Container, model_dir: Path, *, platform: str) -> None:
    """Return when the server can be started on this node, as far as can be seen from outside of its container.

    Raises:
        BerthError: the container runtime or a device is missing, or a file of the model cannot be read.
    """
    if host.runtime != "process":
        _require([_runtime(host)], f"config/platforms/{platform}.yaml: runtime")
        checks = accelerator_checks(host.runtime, container.accelerator, cdi_names(container.device_flags))
        _require(checks, f"config/platforms/{platform}.yaml: accelerator")
    check_readable(model_dir)


def _runtime(host: Host) -> Result:
    # Without the token in its environment: what Podman keeps running for this user is not of this server.
    return podman_info(host.podman, host.environ)[0] if host.runtime == "podman" else apptainer_version(host.environ)


def _require(results: Iterable[Result], where: str) -> None:
    failed = [result for result in results if result.status == "FAIL"]
    if failed:
        told = ". ".join(f"{result.what}. What to do: {result.remedy}" for result in failed)
        raise BerthError(f"{where}: on the node {socket.gethostname()}: {told}.")


def check_readable(folder: Path) -> None:
    """Return when this user can read every file of a staged model.

    Raises:
        BerthError: it names the first file or folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise BerthError(
            f"{error.filename}: cannot be read on {socket.gethostname()}: {error.strerror}. The server would fail: let "
            f"its owner give you the right to read (chmod -R a+rX {folder}), or stage the model where you can read it."
        )

    for where, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            try:
                with Path(where, name).open("rb"):
                    pass
            except OSError as error:
                refuse(error)
