"""Whether the accelerators of this node can be passed into a container. Asked by `doctor` and by every sweep."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from berth.checkup import Result, fail, ok

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# As Podman looks for them, and as https://github.com/cncf-tags/container-device-interface says.
_CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
_CDI_KIND = "nvidia.com/gpu"


def accelerator_checks(runtime: str, accelerator: str, names: Sequence[str] = ("all",)) -> Iterator[Result]:
    """What a container of this runtime needs of this node for its accelerators: "cuda", "rocm", or one without any.

    `names` are the CDI devices that Podman is asked for.
    """
    if accelerator == "cuda":
        yield cdi_specification(names=names) if runtime == "podman" else _nvidia_driver()
    elif accelerator == "rocm":
        yield from (device_node(Path(device)) for device in ("/dev/kfd", "/dev/dri"))


def cdi_specification(folders: tuple[str, ...] = _CDI_FOLDERS, names: Sequence[str] = ("all",)) -> Result:
    """Whether `nvidia.com/gpu` means something to Podman here: a CDI specification of that kind with these devices."""
    wanted = f"{_CDI_KIND}={','.join(names)}"
    remedy = (
        "as root, and again after every update of the driver: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    )
    seen = []
    for folder in folders:
        for file in sorted(Path(folder).glob("*")):
            kind, found = _cdi_content(file)
            if kind == _CDI_KIND and set(names) <= set(found):
                return ok(f"CDI: {file} describes {wanted}")
            if kind == _CDI_KIND:
                missing = ", ".join(f"`{name}`" for name in names if name not in found)
                seen.append(f"; {file} has no device {missing} but {', '.join(found) or 'none'}")
    return fail(f"CDI: no specification of {wanted} in {' or '.join(folders)}{''.join(seen)}", remedy)


def _cdi_content(file: Path) -> tuple[str, list[str]]:
    """Kind and names of the devices of a CDI specification, which is YAML or JSON; nothing of a file that is none."""
    if file.suffix not in (".yaml", ".json"):
        return "", []
    try:
        value = yaml.safe_load(file.read_text())
        return str(value["kind"]), [str(device["name"]) for device in value["devices"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return "", []


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


def _nvidia_driver(device: Path = Path("/dev/nvidiactl")) -> Result:
    """Whether the driver that Apptainer passes in is loaded."""
    if device.exists():
        return ok(f"NVIDIA driver: {device} is there")
    return fail(
        f"NVIDIA driver: there is no {device}", "load the driver; on a node without GPUs this is as it should be"
    )
