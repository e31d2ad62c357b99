"""What is known of a deployment that is kept up: state, endpoint and history in one file, and where its API key lies.

The file is results/services/{platform}/{deployment}.json. The key is never in it: only the path of a 0600 file.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from berth.errors import BerthError
from berth.fsio import write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
# Overrides the folder of key files.
KEYS_VARIABLE = "BERTH_KEYS"
_KEY_BYTES = 32
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

State = Literal["starting", "ready", "down", "ended"]
InstanceState = Literal["queued", "starting", "ready", "draining"]


@dataclass(frozen=True)
class Instance:
    """One server of a deployment that exists now; usually one, two while a successor takes over.

    `host` is its compute node's name and `address` the IP there ("" where the name is used). `since` and `ends` (by
    walltime; None without a limit) are seconds since the epoch.
    """

    id: str
    job_id: str
    state: InstanceState
    host: str = ""
    address: str = ""
    port: int = 0
    since: float = 0.0
    ends: float | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where requests go: the ready instance that was chosen. `base_url` ends in /v1."""

    host: str
    address: str
    port: int
    base_url: str


@dataclass(frozen=True)
class KubernetesPlace:
    """Where a deployment is on a cluster of Kubernetes; `url` is that of its Route or Ingress, or ""."""

    context: str
    namespace: str
    release: str
    service: str
    port: int
    url: str = ""


@dataclass(frozen=True)
class Event:
    """The end of an instance: when, of which job, why, and what to do.

    `outage_s` is seconds between the last answer of the old endpoint and the first of the next one: 0 where a
    successor had taken over, None as long as none is ready.
    """

    at: float
    job_id: str
    kind: str
    cause: str
    remedy: str = ""
    outage_s: float | None = None


@dataclass(frozen=True)
class Service:
    """A deployment as its users see it; "down" is one that should be up and is not."""

    deployment: str
    platform: str
    scheduler: str
    served_model: str
    state: State
    key_file: str
    instances: tuple[Instance, ...] = ()
    endpoint: Endpoint | None = None
    kubernetes: KubernetesPlace | None = None
    until: float | None = None
    restarts: int = 0
    history: tuple[Event, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.state == "ready" and (self.endpoint is not None or self.kubernetes is not None)

    def with_event(self, event: Event) -> Service:
        """The same with one more event at the end of its history."""
        return replace(self, history=(*self.history, event))


def path_of(results: Path, platform: str, deployment: str) -> Path:
    """The file of one deployment; the name of every file of it."""
    return results / "services" / platform / f"{deployment}.json"


def read(results: Path, platform: str, deployment: str) -> Service | None:
    """What is known of a deployment; None where it was never served.

    Raises:
        BerthError: the file is none of this version, or damaged.
    """
    path = path_of(results, platform, deployment)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    remedy = "`unserve` of this deployment and the removal of the file make room for a new one."
    try:
        value = json.loads(text)
        if value.pop("schema") != SCHEMA:
            raise BerthError(f"{path}: schema is not {SCHEMA}: it is of another version of Berth. {remedy}")
        return _parsed(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BerthError(f"{path}: not the file of a served deployment ({error}). {remedy}") from None


def read_all(results: Path, platform: str) -> tuple[Service, ...]:
    """Every deployment of a platform that is or was served, by name.

    Raises:
        BerthError: as read().
    """
    names = sorted(path.stem for path in (results / "services" / platform).glob("*.json"))
    return tuple(service for name in names if (service := read(results, platform, name)) is not None)


def write(results: Path, service: Service) -> None:
    """Write the file of a deployment: whole or not at all.

    Raises:
        OSError: as the file system says.
    """
    write_json(path_of(results, service.platform, service.deployment), {"schema": SCHEMA, **asdict(service)})


def base_url(host: str, port: int) -> str:
    """The address that an OpenAI client is given."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def endpoint_of(instance: Instance) -> Endpoint:
    """The endpoint that an instance is."""
    url = base_url(instance.address or instance.host, instance.port)
    return Endpoint(instance.host, instance.address, instance.port, url)


def key_path(platform: str, deployment: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where the API key of a deployment lies: outside results, in a folder that only its user can read."""
    environ = os.environ if environ is None else environ
    folder = environ.get(KEYS_VARIABLE)
    root = Path(folder) if folder else Path(environ.get("HOME") or Path.home()) / ".config/berth/keys"
    return root.absolute() / platform / deployment


def key_file(platform: str, deployment: str, variable: str = "", environ: Mapping[str, str] | None = None) -> Path:
    """The 0600 file with the API key of a deployment; it is made where there is none.

    Where `variable` (the name that the recipe's server expects its key under) is set in the environment, its value is
    the key, and the file is made to hold it.

    Raises:
        BerthError: others may read the file, it is empty, or it cannot be written.
    """
    environ = os.environ if environ is None else environ
    path = key_path(platform, deployment, environ)
    given = environ.get(variable, "") if variable else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (path.parent.parent, path.parent):
            # Parents that mkdir makes on the way get the mode of the umask.
            if folder.stat().st_uid == os.getuid():
                folder.chmod(0o700)
        if given or not path.exists():
            key = given or secrets.token_urlsafe(_KEY_BYTES)
            if not path.exists() or path.read_text().strip() != key:
                write_text(path, key + "\n", mode=0o600)
    except OSError as error:
        raise BerthError(
            f"{path}: the API key cannot be kept there ({error.strerror or error}). Set {KEYS_VARIABLE} to a folder of "
            "yours that compute nodes see too."
        ) from None
    key_in(path)
    return path


def key_in(path: Path) -> str:
    """The API key in a file.

    Raises:
        BerthError: others may read the file, it is not there, or it is empty.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text().strip()
    except OSError as error:
        raise BerthError(
            f"{path}: no API key can be read there ({error.strerror or error}). Keep keys where this node sees them: "
            f"{KEYS_VARIABLE} names the folder."
        ) from None
    if mode & _OTHERS:
        raise BerthError(f"{path}: others may read this API key (mode {stat.S_IMODE(mode):04o}). chmod 600 {path}")
    if not text or any(c.isspace() for c in text):
        raise BerthError(f"{path}: holds no API key on one line. Remove the file, and a new key is made.")
    return text


def _parsed(value: dict[str, Any]) -> Service:
    endpoint, place = value.pop("endpoint"), value.pop("kubernetes")
    return Service(
        **{key: each for key, each in value.items() if key not in ("instances", "history")},
        instances=tuple(Instance(**each) for each in value["instances"]),
        endpoint=Endpoint(**endpoint) if endpoint else None,
        kubernetes=KubernetesPlace(**place) if place else None,
        history=tuple(Event(**each) for each in value["history"]),
    )
