"""A server image that is made on the spot: vLLM's environment for the CPU with what it needs of this machine.

It is made once and kept in a registry's folder, because three gigabytes take a minute. Pods pull it from that registry.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from container_runs import STANDIN, environment
from registry_server import RegistryServer, need_registry

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PATH = "/opt/bin:/usr/bin:/bin"
NAME = "berth/vllm-cpu"
# Goes up with whatever changes the image: it takes minutes to make and to pull.
MADE = 2
PROGRAMS = ("dash", "cat", "mkdir", "rm", "sleep", "ls", "env", "uname", "lscpu")


def kept_registry() -> RegistryServer:
    """The registry with the image, on a free port of loopback; its folder outlives it."""
    need_registry()
    cache = os.environ.get("BERTH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "berth"
    folder = Path(cache) / "kubernetes" / "registry"
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    registry = RegistryServer(folder, port)
    registry.start()
    return registry


def have_image(registry: RegistryServer) -> tuple[str, str]:
    """Reference and digest of the image, which is made where the registry has none of this environment."""
    home = environment()
    tag = hashlib.sha256(f"{home.name} {MADE}".encode()).hexdigest()[:12]
    digest = registry.digest_of(NAME, tag, MANIFEST)
    if digest is None:
        with tempfile.TemporaryDirectory(prefix="berth-image-", dir=registry.folder) as place:
            digest = _make(Path(place) / "image", home)
            registry.push(Path(place) / "image", f"{NAME}:{tag}")
    return f"{registry.host}/{NAME}:{tag}", digest


def have_standin(registry: RegistryServer) -> str:
    """Reference of the same image with the stand-in of tests/slurm as `vllm`; its point at concurrency 2 never ends.

    One small layer more: a node that has the image has this one at once.
    """
    reference, _ = have_image(registry)
    tag = reference.rpartition(":")[2]
    base = registry.manifest(NAME, tag, MANIFEST)
    config = json.loads(registry.blob(NAME, base["config"]["digest"]))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _folders(tar, ("opt/standin",))
        tar.add(STANDIN, "opt/standin/standin_vllm.py", filter=_for_everybody)
        _text(tar, "opt/standin/hold-no-run", "")
        python = "/opt/vllm/bin/python"
        _text(tar, "opt/bin/vllm", f'#!/bin/sh\nexec {python} -u /opt/standin/standin_vllm.py "$@"\n', 0o755)
        # The warm worker finds no vLLM in it, and one process for each point follows.
        _text(tar, "opt/bin/python3", f'#!/bin/sh\nexec {python} -IS "$@"\n', 0o755)
    layer = buffer.getvalue()
    config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
    texts = {"config": json.dumps(config).encode(), "layer": layer}
    entries = {
        name: {**entry, "digest": registry.put_blob(NAME, texts[name]), "size": len(texts[name])}
        for name, entry in (("config", base["config"]), ("layer", base["layers"][0]))
    }
    manifest = {**base, "config": entries["config"], "layers": [*base["layers"], entries["layer"]]}
    registry.put_manifest(NAME, f"{tag}-standin", manifest, MANIFEST)
    return f"{reference}-standin"


def _for_everybody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode |= 0o444
    return entry


def _make(folder: Path, home: Path) -> str:
    """Write the image as a folder (skopeo's dir:); its digest."""
    folder.mkdir()
    layer = folder / "layer"
    base = Path(re.findall(r"^home = (.+)$", (home / "pyvenv.cfg").read_text(), re.MULTILINE)[0]).parent
    with tarfile.open(layer, "w") as tar:
        _folders(tar, ("tmp", "root", "proc", "sys", "dev", "etc", "var", "opt", "opt/bin", "usr", "usr/bin", "data"))
        for name in ("bin", "lib", "lib64"):
            _link(tar, name, f"usr/{name}")
        _text(tar, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        _text(tar, "etc/group", "root:x:0:\n")
        python = "/opt/vllm/bin/python"
        for name, command in (("vllm", f"{python} -m vllm.entrypoints.cli.main"), ("python3", python)):
            _text(tar, f"opt/bin/{name}", f'#!/bin/sh\nexec {command} "$@"\n', 0o755)
        programs = [Path(shutil.which(name) or "").resolve() for name in PROGRAMS]
        for program, name in zip(programs, PROGRAMS, strict=True):
            tar.add(program, f"usr/bin/{name}")
        _link(tar, "usr/bin/sh", "dash")
        tar.add(home, "opt/vllm")
        if not base.is_relative_to("/usr"):
            tar.add(base, str(base)[1:], filter=_without_tests)
        binaries = [*home.rglob("*.so*"), *base.rglob("lib/**/*.so*"), base / "bin/python3", *programs]
        for library in _libraries(binaries, (home, base)):
            tar.add(library.resolve(), f"usr{library}" if not library.is_relative_to("/usr") else str(library)[1:])
    digest = _digest(layer)
    layer.rename(folder / digest)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": [f"PATH={PATH}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    blobs = {
        "config": ("application/vnd.oci.image.config.v1+json", hashlib.sha256(config).hexdigest(), len(config)),
        "layer": ("application/vnd.oci.image.layer.v1.tar", digest, (folder / digest).stat().st_size),
    }
    (folder / blobs["config"][1]).write_bytes(config)
    entries = {
        name: {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}
        for name, (kind, digest, size) in blobs.items()
    }
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entries["config"], "layers": [entries["layer"]]}
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "version").write_text("Directory Transport Version: 1.1\n")
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _folders(tar: tarfile.TarFile, names: Iterable[str]) -> None:
    for name in names:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        tar.addfile(entry)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text), mode
    tar.addfile(entry, io.BytesIO(text.encode()))


def _without_tests(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "/lib/python3.11/test/" in entry.name or "/share/" in entry.name else entry


def _libraries(binaries: list[Path], own: tuple[Path, ...]) -> list[Path]:
    """Libraries of this machine that programs need, as their loader finds them."""
    found = set()
    files = [str(each) for each in binaries if each.is_file() and not each.is_symlink()]
    for start in range(0, len(files), 100):
        said = subprocess.run(["ldd", *files[start : start + 100]], capture_output=True, text=True, check=False).stdout
        found |= {Path(needed) for needed in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}
    return sorted(each for each in found if not any(each.is_relative_to(folder) for folder in own))


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
