"""How people reach a served deployment: the section `access` of a platform file."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from berth.errors import BerthError


@dataclass(frozen=True)
class Login:
    """The login node that ssh tunnels go through; empty texts and None leave the choice to ssh's own configuration."""

    host: str
    user: str = ""
    port: int | None = None
    jump: str = ""


@dataclass(frozen=True)
class Nginx:
    """The NGINX of Compute-as-Login, at `name`:`port`.

    `ports` has those of further deployments. `bind` is the address that it listens on, "" for every one. Without
    `certificate` and `key` it speaks HTTP, which only a loopback address may. `ca_file` is what clients trust, "" for
    the system's. `timeout_s` is how long a request may be silent, `body_mib` how large it may be.
    """

    name: str
    port: int
    ports: dict[str, int] = field(default_factory=dict)
    bind: str = ""
    certificate: str = ""
    key: str = ""
    ca_file: str = ""
    timeout_s: int = 3600
    body_mib: int = 64

    @property
    def tls(self) -> bool:
        """Whether it speaks HTTPS."""
        return bool(self.certificate)

    def port_of(self, target: str) -> int:
        """The port of a deployment, or of several behind one address."""
        return self.ports.get(target, self.port)

    def base_url(self, target: str) -> str:
        """The address that an OpenAI client is given."""
        host = f"[{self.name}]" if ":" in self.name else self.name
        return f"{'https' if self.tls else 'http'}://{host}:{self.port_of(target)}/v1"


@dataclass(frozen=True)
class Access:
    """The ways into a platform from outside. `reload` is the command that makes NGINX read its upstream again."""

    login: Login | None = None
    nginx: Nginx | None = None
    reload: tuple[str, ...] = ()


def settings_of(platform: dict[str, Any], file: str) -> Access:
    """The settings of a platform file whose schema was checked; no way in where it has none.

    Raises:
        BerthError: keys of the file do not go together.
    """
    value = platform.get("access", {})
    access = Access(
        login=Login(**value["login"]) if "login" in value else None,
        nginx=Nginx(**value["nginx"]) if "nginx" in value else None,
        reload=tuple(value.get("reload", ())),
    )
    if access.reload and access.nginx is None:
        raise BerthError(
            f"{file}: access.reload: there is no access.nginx that it would reload. Add it, or remove this."
        )
    if access.nginx:
        _check_tls(access.nginx, file)
    return access


def _check_tls(nginx: Nginx, file: str) -> None:
    where = f"{file}: access.nginx"
    if bool(nginx.certificate) != bool(nginx.key):
        there, missing = ("certificate", "key") if nginx.certificate else ("key", "certificate")
        raise BerthError(f"{where}.{missing}: it is missing, and {there} is there. TLS takes both: add it.")
    if not nginx.tls and not _loopback(nginx.bind):
        raise BerthError(
            f"{where}: without certificate and key it speaks HTTP, and on {nginx.bind or 'every address'} API keys and "
            "prompts would leave this machine in the clear. Add both, or set bind to 127.0.0.1."
        )
    taken: dict[int, str] = {}
    for name, port in nginx.ports.items():
        if port in taken or port == nginx.port:
            other = f"ports.{taken[port]}" if port in taken else "port"
            raise BerthError(f"{where}.ports.{name}: {port} is that of access.nginx.{other} too. Give each its own.")
        taken[port] = name


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
