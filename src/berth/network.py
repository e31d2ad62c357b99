"""A site's way to the outside: its proxies, what lies this side of them, and the certificates that it trusts.

No request to a server that Berth started goes through a proxy: `no_proxy` always has the loopback and the server's
host. Programs read the variables in small or in capital letters, so that both are set. A name in `no_proxy` stands for
itself and for what ends in it; networks such as 10.0.0.0/8 are known to programs in Go only.
"""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from berth.container import Mount
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.config import Network
    from berth.decide import Site

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  # Addresses to compare with.
_PROXIES = ("http_proxy", "https_proxy")
_EXEMPT = "no_proxy"
# OpenSSL and httpx; requests; curl and git; botocore.
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
# Berth builds environments with pip, which no container has a use for.
_OWN_CERTIFICATES = (*_CERTIFICATES, "PIP_CERT")


def network_env(network: Network) -> dict[str, str]:
    """The variables of a container, or of a script, on this site; none where the platform says nothing."""
    env: dict[str, str] = {}
    for name, value in zip(_PROXIES, (network.http_proxy, network.https_proxy), strict=True):
        if value:
            env |= {name: value, name.upper(): value}
    if env or network.no_proxy:
        env = exempt({**env, _EXEMPT: ",".join(network.no_proxy), _EXEMPT.upper(): ""}, *LOOPBACK)
    if network.ca_bundle:
        env |= dict.fromkeys(_CERTIFICATES, network.ca_bundle)
    return env


def exempt(env: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """An environment whose `no_proxy` has these hosts too; without the variable it is left as it is."""
    listed = env.get(_EXEMPT) or env.get(_EXEMPT.upper())
    if _EXEMPT not in env and _EXEMPT.upper() not in env:
        return dict(env)
    words = [word.strip() for word in (listed or "").split(",")]
    joined = ",".join(dict.fromkeys(word for word in (*words, *hosts) if word not in _EVERYWHERE))
    return {**env, _EXEMPT: joined, _EXEMPT.upper(): joined}


def client_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a benchmark client: it asks its server and nobody else, wherever that is."""
    if _EXEMPT not in env:
        return dict(env)
    return {**env, _EXEMPT: "*", _EXEMPT.upper(): "*"}


def at_site(site: Site, network: Network) -> Site:
    """What a platform adds to every container, with its network: variables, and the certificates at their own path."""
    ca = network.ca_bundle
    return replace(site, common_env=network_env(network), mounts=(Mount(ca, ca, read_only=True),) if ca else ())


def own_env(network: Network, environ: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """What is added to the environment of Berth's own processes: downloads, the store, registries, pip.

    A proxy or a certificate that its user has set already stays. `hosts` and the loopback come to the `no_proxy` of
    whoever set it. A bundle that is not on this machine is left out; check_certificates tells of it.
    """
    wanted = network_env(network)
    if Path(network.ca_bundle).is_file():
        wanted |= dict.fromkeys(_OWN_CERTIFICATES, network.ca_bundle)
    else:
        wanted = {name: value for name, value in wanted.items() if name not in _CERTIFICATES}
    added = {name: value for name, value in wanted.items() if not _set(name, environ)}
    if not any(_set(name, {**environ, **added}) for name in _PROXIES):
        return added
    words = [environ.get(_EXEMPT) or environ.get(_EXEMPT.upper()) or "", wanted.get(_EXEMPT, "")]
    return added | exempt({_EXEMPT: ",".join(words)}, *LOOPBACK, *hosts)


def _set(name: str, environ: Mapping[str, str]) -> bool:
    return bool(environ.get(name) or environ.get(name.lower()) or environ.get(name.upper()))


def check_certificates(ca_bundle: str, where: str) -> int:
    """The number of certificates in a bundle, 0 for ""; `where` is the file that names it.

    Raises:
        BerthError: it is not on this machine, or holds no certificate.
    """
    if not ca_bundle:
        return 0
    at = f"{where}: network.ca_bundle: {ca_bundle}"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca_bundle)
    except ssl.SSLError as error:
        raise BerthError(f"{at}: no bundle of certificates in PEM ({error}). Name the site's own, in full.") from None
    except OSError as error:
        raise BerthError(
            f"{at}: cannot be read on this machine ({error.strerror}). Every node needs it at this path; correct the "
            "path, or have the file installed."
        ) from None
    return len(context.get_ca_certs())
