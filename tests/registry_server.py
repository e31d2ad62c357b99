"""A real registry of container images (Debian's docker-registry) on loopback, and small images for it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from http.client import HTTPResponse

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
# The user "berth" with the password "of-the-test", as htpasswd -B writes it.
HTPASSWD = "berth:$2b$04$1qzOK9hk/Gzi1Kfl6tglluI3Kuptp9Y2rHdCKrcrE1BC/19twyflC\n"
LOGIN = ("berth", "of-the-test")


def need_registry() -> None:
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {program}")


@dataclass
class RegistryServer:
    """One registry with its own folder; it can be stopped and started again on its port."""

    folder: Path
    port: int
    auth: bool = False
    certificate: tuple[Path, Path] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None)

    @classmethod
    def start_new(
        cls, folder: Path, *, auth: bool = False, certificate: tuple[Path, Path] | None = None
    ) -> RegistryServer:
        need_registry()
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self = cls(folder, port, auth, certificate)
        self.start()
        return self

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        http: dict[str, object] = {"addr": self.host}
        if self.certificate:
            http["tls"] = {"certificate": str(self.certificate[0]), "key": str(self.certificate[1])}
        settings: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}, "delete": {"enabled": True}},
            "http": http,
        }
        if self.auth:
            (self.folder / "htpasswd").write_text(HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(self.folder / "htpasswd")}}
        # JSON is YAML.
        (self.folder / "config.yml").write_text(json.dumps(settings))
        with (self.folder / "log").open("ab") as log:
            command = ["docker-registry", "serve", str(self.folder / "config.yml")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def push(self, image: Path, name: str, *options: str) -> str:
        """Push an image of make_image as NAME:TAG; its reference."""
        reference = f"{self.host}/{name}"
        command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", *options]
        subprocess.run([*command, f"dir:{image}", f"docker://{reference}"], check=True)
        return reference

    def push_index(self, name: str, tag: str, digests: dict[str, str]) -> str:
        """Push a list of images that are there already, by architecture; the digest of the list."""
        entries = []
        for architecture, digest in digests.items():
            with self._open("GET", f"{name}/manifests/{digest}", accept=MANIFEST) as answer:
                size = len(answer.read())
            entry = {"mediaType": MANIFEST, "size": size, "digest": digest}
            entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        with self._open("PUT", f"{name}/manifests/{tag}", body=body, kind=INDEX):
            return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def digest_of(self, name: str, tag: str, kind: str = MANIFEST) -> str | None:
        """What the registry has under a tag; `kind` is the media type of its manifest."""
        try:
            with self._open("GET", f"{name}/manifests/{tag}", accept=kind) as answer:
                return f"sha256:{hashlib.sha256(answer.read()).hexdigest()}"
        except urllib.error.HTTPError:
            return None

    def manifest(self, name: str, tag: str, kind: str) -> dict[str, Any]:
        """The manifest of a tag."""
        with self._open("GET", f"{name}/manifests/{tag}", accept=kind) as answer:
            value: dict[str, Any] = json.loads(answer.read())
        return value

    def put_manifest(self, name: str, tag: str, manifest: dict[str, Any], kind: str) -> None:
        """Push a manifest whose blobs are there."""
        self._open("PUT", f"{name}/manifests/{tag}", body=json.dumps(manifest).encode(), kind=kind).close()

    def blob(self, name: str, digest: str) -> bytes:
        """A small blob."""
        with self._open("GET", f"{name}/blobs/{digest}") as answer:
            return answer.read()

    def put_blob(self, name: str, data: bytes) -> str:
        """Push a small blob; its digest."""
        digest = f"sha256:{_sha256(data)}"
        with self._open("POST", f"{name}/blobs/uploads/", body=b"") as answer:
            place = answer.headers["Location"].split("/v2/", 1)[1]
        mark = "&" if "?" in place else "?"
        self._open("PUT", f"{place}{mark}digest={digest}", body=data, kind="application/octet-stream").close()
        return digest

    def _open(
        self, method: str, path: str, *, body: bytes | None = None, accept: str = "", kind: str = ""
    ) -> HTTPResponse:
        headers = {key: value for key, value in (("Accept", accept), ("Content-Type", kind)) if value}
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", data=body, method=method, headers=headers)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)


def make_image(
    folder: Path,
    says: str,
    *,
    architecture: str = "amd64",
    padding: bytes = b"",
    tree: Path | None = None,
    path: str = "/bin",
) -> str:
    """Write an image as a folder (skopeo's dir:) with the file /says in it; its digest.

    Beside that it has a shell, or the files of `tree`.
    """
    folder.mkdir(parents=True)
    raw = _layer({"says": says.encode(), "padding": padding}, tree)
    layer = gzip.compress(raw, compresslevel=1, mtime=0)
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": [f"PATH={path}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(raw)}"]},
        }
    ).encode()
    kinds = ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    blobs = [
        {"mediaType": kind, "size": len(blob), "digest": f"sha256:{_sha256(blob)}"}
        for kind, blob in zip(kinds, (config, layer), strict=True)
    ]
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": blobs[0], "layers": [blobs[1]]}
    ).encode()
    (folder / "version").write_text("Directory Transport Version: 1.1\n")
    (folder / "manifest.json").write_bytes(manifest)
    for blob in (config, layer):
        (folder / _sha256(blob)).write_bytes(blob)
    return f"sha256:{_sha256(manifest)}"


def _layer(files: dict[str, bytes], tree: Path | None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if tree is not None:
            tar.add(tree, arcname=".")
        else:
            _add_shell(tar)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _add_shell(tar: tarfile.TarFile) -> None:
    for name in ("bin", "tmp", "root", "proc", "sys", "dev", "etc", "usr", "var"):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    copied: dict[str, Path] = {}
    for program in ("sh", "cat"):
        binary = Path(shutil.which(program) or "").resolve()
        said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
        copied |= {needed[1:]: Path(needed).resolve() for needed in re.findall(r"(/\S+)", said)}
        copied[f"bin/{program}"] = binary
    for name, path in copied.items():
        tar.add(path, arcname=name)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
