"""Registries of container images, through skopeo: which image a name means, and copies that keep its digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform as machine
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.programs import ProgramFailed, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from berth.references import Reference

_LOOK_LIMIT = "--command-timeout=90s"
_LOOPBACK = ("127.", "localhost", "[::1]")
# What `uname -m` says -> what images say (GOARCH).
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_OTHERS_MAY_READ = 0o077


class ImageMissing(BerthError):  # noqa: N818  # What is the matter.
    """The registry answers, and has no such image."""


class RegistryDown(BerthError):  # noqa: N818  # What is the matter.
    """The registry does not answer."""


@dataclass(frozen=True)
class Access:
    """How a registry is spoken to. `key` is what a person edits; paths are "" where nothing is set."""

    key: str
    tls_verify: bool = True
    ca_file: str = ""
    auth_file: str = ""


@dataclass(frozen=True)
class Found:
    """An image of a registry: the manifest for this machine, the list that it stands in ("" for none), its bytes there.

    `platform` is such as linux/amd64.
    """

    digest: str
    index_digest: str
    size_bytes: int
    platform: str

    def is_(self, digest: str) -> bool:
        """Whether a digest means this image."""
        return digest in (self.digest, self.index_digest)


def access_to(host: str, registry: Mapping[str, Any] | None, platform: str, recipe: str) -> Access:
    """How a registry is spoken to: as the platform says for its own (`registry`, the fields of config.Registry).

    Any other one is spoken to with the login that `skopeo login` or REGISTRY_AUTH_FILE gave; one on this machine
    without TLS, as Docker does.

    Raises:
        BerthError: a file that the platform names is not there, or others may read the one with the logins.
    """
    if registry is None or host != registry["host"]:
        key = f"config/recipes/{recipe}.yaml: images: reference"
        return Access(key, tls_verify=not on_this_machine(host), auth_file=_own_logins())
    access = site_access(registry, platform)
    if access.ca_file and not Path(access.ca_file).is_file():
        raise BerthError(
            f"{access.key}.ca_file: {access.ca_file} is not there. Put the site's CA certificate (PEM) there."
        )
    logins = access.auth_file
    if logins and not Path(logins).is_file():
        raise BerthError(
            f"{access.key}.auth_file: {logins} is not there. Write it: skopeo login --authfile={logins} {host}"
        )
    if logins and Path(logins).stat().st_mode & _OTHERS_MAY_READ:
        raise BerthError(f"{access.key}.auth_file: others may read {logins}, which holds a login. chmod 600 {logins}")
    return access


def site_access(registry: Mapping[str, Any], platform: str) -> Access:
    """How the site's registry is spoken to, by the fields of config.Registry. Nothing is looked at."""
    ca_file, auth_file = (
        str(Path(registry[name]).expanduser().absolute()) if registry[name] else "" for name in ("ca_file", "auth_file")
    )
    return Access(f"config/platforms/{platform}.yaml: registry", registry["tls_verify"], ca_file, auth_file)


def on_this_machine(host: str) -> bool:
    """Whether a registry is on a loopback address, where it needs no TLS."""
    return host.startswith(_LOOPBACK)


def _own_logins() -> str:
    """The file of this user's logins, said aloud because Podman in a job and Apptainer would not find it."""
    if given := os.environ.get("REGISTRY_AUTH_FILE"):
        return given
    session = os.environ.get("XDG_RUNTIME_DIR")
    default = Path(session) / "containers" / "auth.json" if session else None
    return str(default) if default and default.is_file() else ""


@contextlib.contextmanager
def options(access: Access, prefix: str = "--") -> Iterator[list[str]]:
    """The options with which skopeo and Podman speak to a registry; `prefix` is --src- or --dest- where there are two.

    Files that they name live as long as the block.
    """
    if not access.ca_file:
        yield option_words(access, prefix)
        return
    with tempfile.TemporaryDirectory(prefix="berth-ca-") as folder:
        shutil.copy(access.ca_file, Path(folder) / "ca.crt")
        yield option_words(access, prefix, folder)


def option_words(access: Access, prefix: str = "--", certs: str = "") -> list[str]:
    """As options(); `certs` is a folder with the CA file as ca.crt in it."""
    words = [] if access.tls_verify else [f"{prefix}tls-verify=false"]
    if access.auth_file:
        words.append(f"{prefix}authfile={access.auth_file}")
    return [*words, f"{prefix}cert-dir={certs}"] if access.ca_file else words


def find(reference: Reference, access: Access, digest: str = "") -> Found:
    """The image that a tag means now, or a digest.

    Raises:
        ImageMissing: the registry has no such image.
        RegistryDown: it does not answer.
        BerthError: the image is for other machines, the registry wants a login, its certificate is not trusted, or
            skopeo is not there.
    """
    raw = _manifest(reference, access, digest)
    manifest, index_digest = json.loads(raw), ""
    here = f"linux/{_ARCHITECTURES.get(machine.machine(), machine.machine())}"
    if "manifests" in manifest:
        index_digest = _digest_of(raw)
        each = {_platform(entry.get("platform", {})): entry["digest"] for entry in reversed(manifest["manifests"])}
        if here not in each:
            raise _wrong_machine(reference, access, ", ".join(sorted(each)), here)
        raw = _manifest(reference, access, each[here])
        manifest, found = json.loads(raw), here
    else:
        found = _platform(json.loads(_inspect(reference, access, _digest_of(raw), "--config")))
        if found != here:
            raise _wrong_machine(reference, access, found, here)
    sizes = [manifest["config"]["size"], *(layer["size"] for layer in manifest["layers"])]
    return Found(_digest_of(raw), index_digest, sum(sizes), found)


def find_pinned(reference: Reference, access: Access, digest: str) -> Found:
    """The image with the digest of the recipe, after a look at what its tag means now; "" takes what the tag means.

    A tag that is gone does no harm as long as the registry has the digest.

    Raises:
        BerthError: the tag means another image; and as find().
    """
    try:
        found = find(reference, access)
    except ImageMissing:
        if not digest:
            raise
        return find(reference, access, digest)
    if digest and not found.is_(digest):
        raise BerthError(
            f"{access.key}: {reference} is {found.index_digest or found.digest} now, and the recipe says {digest}: "
            "somebody moved the tag. Nothing was copied. Put the new digest into the recipe to measure the new image "
            "(its points are another spec), or ask the image's owners for a tag that stays."
        )
    return found


def copy(source: str, destination: str, source_access: Access, destination_access: Access | None) -> None:
    """Copy one image, byte for byte: NAME@DIGEST of a registry to another registry's NAME:TAG, or to `dir:PATH`.

    Raises:
        BerthError: as find(); no room at the destination.
    """
    argv = ["skopeo", "copy", "--quiet", "--preserve-digests", "--retry-times=3"]
    with contextlib.ExitStack() as stack:
        argv += stack.enter_context(options(source_access, "--src-"))
        if destination_access is not None:
            argv += stack.enter_context(options(destination_access, "--dest-"))
            destination = f"docker://{destination}"
        try:
            run([*argv, f"docker://{source}", destination])
        except ProgramFailed as failed:
            told = f"copying {source} to {destination.removeprefix('docker://')}"
            key = source_access.key if destination_access is None else destination_access.key
            raise explained(failed, told, key) from None


def explained(failed: ProgramFailed, doing: str, key: str) -> BerthError:
    """What a program's failure with a registry means, and what to do; `key` is what a person edits.

    The texts are those of the library that skopeo, Podman and Apptainer share (containers/image).
    """
    said = failed.said.lower()
    for texts, kind, cause in _CAUSES:
        if any(text in said for text in texts):
            return kind(f"{key}: {doing}: {cause} {failed.name} said: {_last(failed.said)}")
    return BerthError(f"{key}: {doing}: {failed}")


_LOGIN = (
    "Log in with `skopeo login --authfile=FILE REGISTRY`, and name FILE in registry.auth_file of the platform, or in "
    "the environment variable REGISTRY_AUTH_FILE for a registry that is not the site's."
)
_CAUSES: tuple[tuple[tuple[str, ...], type[BerthError], str], ...] = (
    (("no space left", "disk quota"), BerthError, "the disk is full. Free some room, and run again."),
    (
        ("server gave http response to https",),
        BerthError,
        "the registry speaks HTTP without TLS. If that is meant, set registry.tls_verify: false.",
    ),
    (
        ("x509:", "certificate"),
        BerthError,
        "the registry's certificate is not trusted. Set registry.ca_file to the site's CA certificate.",
    ),
    (("toomanyrequests", "rate limit"), BerthError, f"the registry asks for fewer requests. {_LOGIN} Or wait."),
    (
        ("unauthorized", "authentication required", "denied", "invalid username/password"),
        BerthError,
        f"the registry wants a login that may do this, or has no such image. {_LOGIN}",
    ),
    (
        ("manifest unknown", "name unknown", "not found", "name_unknown", "manifest_unknown"),
        ImageMissing,
        "the registry has no such image. Correct the name, tag or digest, or push the image.",
    ),
    (
        (
            *("connection refused", "no such host", "i/o timeout", "no route to host", "network is unreachable"),
            *("context deadline exceeded", "connection reset", "tls handshake timeout", "proxyconnect", "eof"),
        ),
        RegistryDown,
        "the registry does not answer. See that it runs and that this node reaches it (proxy variables, no_proxy).",
    ),
)


def _last(said: str) -> str:
    return said.splitlines()[-1] if said else "nothing"


def _manifest(reference: Reference, access: Access, digest: str) -> bytes:
    return _inspect(reference, access, digest, "--raw")


def _inspect(reference: Reference, access: Access, digest: str, what: str) -> bytes:
    place = reference.at(digest)
    with options(access) as words:
        try:
            return run(["skopeo", _LOOK_LIMIT, "inspect", what, *words, f"docker://{place}"])
        except ProgramFailed as failed:
            raise explained(failed, f"looking for {place}", access.key) from None


def _digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _platform(value: Mapping[str, Any]) -> str:
    return f"{value.get('os', 'unknown')}/{value.get('architecture', 'unknown')}"


def _wrong_machine(reference: Reference, access: Access, has: str, here: str) -> BerthError:
    return BerthError(
        f"{access.key}: {reference} is for {has}, and this machine is {here}. Use an image for {here}, or stage it on "
        "a node like those that will run it."
    )
