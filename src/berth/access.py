"""`access`: the files by which people reach a served deployment, and what keeps them up to date when it moves."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import access_examples, access_litellm, access_page, nginx, nginx_script, services, tunnel
from berth.access_litellm import BACKENDS
from berth.access_probe import probe
from berth.access_target import ROUTER_PORT, target_of
from berth.access_ways import has_tunnel, local_port, ways
from berth.checkup import ask
from berth.errors import BerthError
from berth.filelocks import exclusive
from berth.fsio import write_json, write_text

if TYPE_CHECKING:
    from berth.access_target import Target
    from berth.config import Config

logger = logging.getLogger(__name__)

SCHEMA = 1
# What `refresh` reads: it knows no configuration.
RECORD = "access.json"
_RELOAD_S = 60.0
_LOCK_S = 120.0


@dataclass(frozen=True)
class _Followed:
    """One folder of files that follow servers."""

    folder: Path
    members: tuple[tuple[str, str], ...]
    run_dir: Path
    router: bool
    reload: tuple[str, ...]


def refresh(results: Path, platform: str, deployment: str) -> None:
    """Rewrite what follows the endpoint of a deployment, and run the site's reload command where that changed it.

    Nothing happens where no `access` was written for it. It never raises for what a site can do wrong: it logs.
    """
    for record in sorted((results / "access").glob(f"*/*/{RECORD}")):
        try:
            followed = _read(record)
            if (platform, deployment) in followed.members and _rewrite(results, followed):
                _reload(followed)
        except (BerthError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: what leads to %s was not brought up to date: %s", record.parent, deployment, error)


def _read(record: Path) -> _Followed:
    value = json.loads(record.read_text())
    return _Followed(
        folder=record.parent,
        members=tuple((platform, deployment) for platform, deployment in value["members"]),
        run_dir=Path(value["run_dir"]),
        router=value["router"],
        reload=tuple(value["reload"]),
    )


def _rewrite(results: Path, followed: _Followed) -> bool:
    """Write the files that follow; whether NGINX's is another one now."""
    # The state is read under the lock: whoever comes last has the newest.
    with exclusive(followed.folder / f".{RECORD}.lock", f"rewriting {followed.folder}", timeout_s=_LOCK_S):
        states = [services.read(results, *member) for member in followed.members]
        texts = {
            tunnel.ENDPOINTS: tunnel.endpoints(states),
            BACKENDS: access_litellm.backends(states),
            nginx.UPSTREAM: nginx.upstream(states, followed.run_dir, router=followed.router),
        }
        before = {name: _text(followed.folder / name) for name in texts}
        for name, text in texts.items():
            if before[name] != text:
                write_text(followed.folder / name, text)
    # An NGINX that was never told of it has nothing to read again.
    return before[nginx.UPSTREAM] not in (None, texts[nginx.UPSTREAM])


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text()
    return None


def _reload(followed: _Followed) -> None:
    if not followed.reload:
        return
    answer = ask(*followed.reload, timeout_s=_RELOAD_S)
    if answer.good:
        logger.info("%s: NGINX was reloaded", followed.folder)
    else:
        logger.warning(
            "access.reload: `%s` failed (%s): NGINX still leads to where %s was before. Run it by hand, and correct it "
            "in the platform file.",
            " ".join(followed.reload),
            answer.complaint,
            followed.folder.name,
        )


def texts_of(target: Target) -> dict[str, str]:
    """The files by name, without those that follow the server.

    Raises:
        BerthError: a path that NGINX cannot read, or several deployments that nothing here can stand before.
    """
    base_url, ca_file = _default_way(target)
    texts = {
        access_page.NAME: access_page.page(target, base_url),
        access_examples.CURL: access_examples.curl_example(target, base_url, ca_file),
        access_examples.OPENAI: access_examples.openai_example(target, base_url, ca_file),
    }
    access = target.platform.access
    if access.login and has_tunnel(target):
        endpoint = target.folder / tunnel.ENDPOINTS
        texts[tunnel.NAME] = tunnel.tunnel_script(access.login, target.name, local_port(target), endpoint)
    if access.nginx:
        nginx.check_paths(target)
        texts[nginx.SERVER] = nginx.server_block(target, access.nginx)
        texts[nginx.CONF] = nginx.whole(target)
        texts[nginx_script.NAME] = nginx_script.nginx_script(target)
    if len(target.members) > 1 and target.platform.runtime != "kubernetes":
        texts |= access_litellm.router_files(target)
    elif target.needs_router:
        raise BerthError(
            f"deployment: {target.name}: NGINX alone cannot stand before them, because {target.needs_router}. LiteLLM "
            "can, but not on Kubernetes: use the profile of another platform."
        )
    return texts


def _default_way(target: Target) -> tuple[str, str]:
    """The way in that the examples take, and the file of its CA."""
    found = ways(target)
    if target.needs_router and not (found and found[0].kind == "nginx"):
        return f"http://127.0.0.1:{ROUTER_PORT}/v1", ""
    if found:
        return found[0].base_url, found[0].ca_file
    return f"http://127.0.0.1:{local_port(target)}/v1", ""


def write_access(config: Config, root: Path) -> Target:
    """Write the files of the deployments that `deployment` names, into results/access/{platform}/{deployment}/.

    Raises:
        BerthError: nothing of that name was served, its port is another's, or as texts_of().
    """
    target = target_of(config, root, config.deployment)
    _check_port(target)
    texts = texts_of(target)
    if len(target.members) > 1:
        services.key_file(target.platform.name, target.name, target.router.server_key)
    for name, text in texts.items():
        mode = 0o755 if name.endswith(".sh") else 0o600 if "/files/" in name else 0o644
        write_text(target.folder / name, text, mode=mode)
    write_json(target.folder / RECORD, _record(target))
    for member in target.members:
        refresh(target.results, member.service.platform, member.name)
    logger.info("%s: %s says how it is reached", target.name, target.folder / access_page.NAME)
    return target


def _record(target: Target) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "members": [[member.service.platform, member.name] for member in target.members],
        "run_dir": str(target.run_dir),
        "router": bool(target.needs_router),
        "reload": list(target.platform.access.reload),
        "port": target.platform.access.nginx.port_of(target.name) if target.platform.access.nginx else None,
    }


def _check_port(target: Target) -> None:
    settings = target.platform.access.nginx
    if settings is None:
        return
    port = settings.port_of(target.name)
    for record in sorted(target.folder.parent.glob(f"*/{RECORD}")):
        if record.parent != target.folder and json.loads(record.read_text()).get("port") == port:
            other = record.parent.name
            raise BerthError(
                f"config/platforms/{target.platform.name}.yaml: access.nginx.ports: {port} is the port of {other} "
                f"already. Give {target.name} one of its own under ports, or remove {record.parent}."
            )


def access(config: Config, root: Path, report: Path) -> None:
    """Write the files, try each way in that can be tried from here, and tell what was found, also in `report`.

    Raises:
        BerthError: as write_access(); or a way in fails, or none works from here.
    """
    target = write_access(config, root)
    found = []
    lines = []
    for result in probe(target):
        found.append(result)
        lines.append(result.line)
        print(result.line, flush=True)
    write_text(report, "".join(f"{line}\n" for line in lines))
    failed = [result for result in found if result.status == "FAIL"]
    if failed:
        raise BerthError(f"{len(failed)} way(s) into {target.name} failed; {report} has the report.")
    # The first results are the states.
    if not any(result.status == "ok" for result in found[len(target.members) :]):
        raise BerthError(
            f"No way into {target.name} works from here; {report} has the report, {target.folder} the files."
        )
