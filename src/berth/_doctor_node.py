"""Checks of this node: ports, versions, proxies."""

from __future__ import annotations

import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from packaging.version import Version

from berth.checkup import Result, fail, ok, warn
from berth.errors import BerthError
from berth.network import check_certificates
from berth.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# As the Snakefile demands.
SNAKEMAKE = "9.27"
PYTHON = (3, 11)


def port_check(host: str, ports: tuple[int, int], platform: str) -> Result:
    """Whether a server could listen on one port of the range, on this node."""
    try:
        free_port(host, *ports, key=f"config/platforms/{platform}.yaml: server.ports")
    except BerthError as error:
        return fail(f"ports: {error}", "this node is asked, and nodes of jobs may have other ports in use")
    return ok(f"ports: one of {ports[0]} to {ports[1]} is free at {host} on this node")


def version_checks(found: Mapping[str, str] | None = None, python: tuple[int, ...] | None = None) -> Iterator[Result]:
    """Python and the packages that matter; `found` are versions by package, looked up where None."""
    python = sys.version_info[:3] if python is None else python
    text = ".".join(map(str, python))
    if python[:2] < PYTHON:
        yield fail(f"Python {text}", f"make the environment of Berth with Python {PYTHON[0]}.{PYTHON[1]} or later")
    else:
        yield ok(f"Python {text}, {sys.executable}")
    versions = {name: installed(name) for name in ("berth", "snakemake")} if found is None else found
    if not versions["snakemake"] or Version(versions["snakemake"]) < Version(SNAKEMAKE):
        yield fail(f"Snakemake {versions['snakemake'] or 'is not installed'}", f"pip install 'snakemake>={SNAKEMAKE}'")
    else:
        yield ok(f"Snakemake {versions['snakemake']}, Berth {versions['berth'] or 'from the checkout'}")


def installed(package: str) -> str:
    """The version of an installed package, "" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def proxy_checks(environ: Mapping[str, str], store_url: str) -> Iterator[Result]:
    """What proxies this environment sets, and whether they would stand between Berth and what is near.

    A proxy is told by its host; what may stand before it in its address is not.
    """
    proxies = {name: environ.get(name) or environ.get(name.upper()) for name in ("http_proxy", "https_proxy")}
    set_ = {name: value for name, value in proxies.items() if value}
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        small, large = environ.get(name), environ.get(name.upper())
        if small and large and small != large:
            yield warn(
                f"proxy: {name} and {name.upper()} differ", "programs read one or the other; give both one value"
            )
    if not set_:
        yield ok("proxy: none is set")
        return
    hosts = ", ".join(f"{name} is {_host(value)}" for name, value in sorted(set_.items()))
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    near = [host for host in ("localhost", "127.0.0.1") if not _bypassed(host, exempt)]
    if near:
        yield warn(
            f"proxy: {hosts}, and no_proxy leaves out {' and '.join(near)}",
            f"export no_proxy={','.join(filter(None, [exempt, *near]))} and NO_PROXY with the same value",
        )
    else:
        yield ok(f"proxy: {hosts}; no_proxy has localhost")
    store = urlsplit(store_url).hostname if store_url else None
    if store:
        way = (
            "reached without it" if _bypassed(store, exempt) else "reached through it; add it to no_proxy if it is near"
        )
        yield ok(f"proxy: the object store {store} is {way}")


def certificate_checks(ca_bundle: str, platform: str) -> Iterator[Result]:
    """Whether the site's own certificates can be read on this node; nothing where the platform names none."""
    if not ca_bundle:
        return
    try:
        count = check_certificates(ca_bundle, f"config/platforms/{platform}.yaml")
    except BerthError as error:
        yield fail(f"certificates: {error}", "containers would not start without the file, and downloads would fail")
        return
    yield ok(f"certificates: {ca_bundle} has {count}")


def _host(address: str) -> str:
    try:
        return urlsplit(address if "://" in address else f"http://{address}").hostname or "no address"
    except ValueError:
        return "no address"


def _bypassed(host: str, exempt: str) -> bool:
    return bool(urllib.request.proxy_bypass_environment(host, {"no": exempt}))  # type: ignore[attr-defined]
