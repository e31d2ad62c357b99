"""ACCESS.md: every way into a served deployment, for the people who use it."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from berth import access_examples, access_litellm, nginx, nginx_script, tunnel
from berth.access_target import ROUTER_PORT
from berth.access_ways import has_tunnel, local_port, ways

if TYPE_CHECKING:
    from berth.access_settings import Login
    from berth.access_target import Target
    from berth.services import Service

NAME = "ACCESS.md"


def page(target: Target, base_url: str) -> str:
    """The page; `base_url` is the way in that the examples take unless told otherwise."""
    parts = [
        f"# Access to {target.name}\n",
        (
            f"Model: {', '.join(f'`{name}`' for name in target.models)}. Written by `snakemake access`; run it again "
            "after a change of the platform file, or to see which way works now.\n"
        ),
        "".join(f"- {_state(member.service)}\n" for member in target.members),
        _key(target),
        _nginx(target),
        *_kubernetes(target),
        _tunnel(target),
        _direct(target),
        _router(target),
        _examples(target, base_url),
    ]
    return "\n".join(part for part in parts if part)


def _state(service: Service) -> str:
    told = f"{service.deployment} on {service.platform}: {service.state}"
    if service.endpoint:
        told += f", now on {service.endpoint.host}, port {service.endpoint.port}"
    if service.until:
        told += f", until {time.strftime('%Y-%m-%d %H:%M', time.localtime(service.until))}"
    return told


def _key(target: Target) -> str:
    if not target.key_variable:
        return "## Key\n\nIts recipe has no API key: whoever reaches the server can use it.\n"
    return (
        "## Key\n\n"
        f"Every request needs it, as `Authorization: Bearer KEY`. It is in `{target.key_file}` (mode 0600, on the "
        f"node where the server was started). The examples read that file, or the variable `{target.key_variable}`. "
        "Hand it on as you would a password: not by mail, not on a command line.\n"
    )


def _nginx(target: Target) -> str:
    settings = target.platform.access.nginx
    if settings is None:
        return ""
    secure = (
        f"TLS with `{settings.certificate}` and its key on that node."
        if settings.tls
        else f"No TLS: it listens on {settings.bind} alone."
    )
    trust = f" Clients trust `{settings.ca_file}`." if settings.ca_file else ""
    return (
        f"## For many people: NGINX (Compute-as-Login)\n\n    {settings.base_url(target.name)}\n\n"
        f"{secure}{trust} It passes on `/v1/` and answers `/health`, and nothing else.\n\n"
        f"- As an ordinary user, on the node that people and compute nodes reach: `bash {nginx_script.NAME} run`. "
        "It follows the server to other nodes by itself.\n"
        f"- As an operator: `include {target.folder / nginx.SERVER};` in the http block. When the server moves, Berth "
        f"rewrites `{nginx.UPSTREAM}`, which holds `server` lines alone, and NGINX must be reloaded: "
        + (
            f"Berth runs `{shlex.join(target.platform.access.reload)}`.\n"
            if target.platform.access.reload
            else "no `access.reload` is configured, so that somebody has to.\n"
        )
        + "- 502 means that no server answers at the moment.\n"
        + ("- A replica that does not answer is left out for 10 s.\n" if len(target.members) > 1 else "")
    )


def _kubernetes(target: Target) -> list[str]:
    texts = []
    for member in target.members:
        place = member.service.kubernetes
        if place is None:
            continue
        words = ["kubectl", *(["--context", place.context] if place.context else [])]
        words += ["--namespace", place.namespace] if place.namespace else []
        words += ["port-forward", f"service/{place.service}", f"{local_port(target)}:{place.port}"]
        outside = f"    {place.url.rstrip('/')}/v1\n" if place.url else "None: `kubernetes.expose` is not configured.\n"
        texts.append(
            f"## {member.name} on Kubernetes\n\nRoute or Ingress:\n\n{outside}\n"
            "For yourself, with your own rights on the cluster:\n\n"
            f"    {shlex.join(words)}\n\n"
            f"and then `http://127.0.0.1:{local_port(target)}/v1`. It ends with the pod: start it again.\n"
        )
    return texts


def _tunnel(target: Target) -> str:
    login = target.platform.access.login
    if login is None or not has_tunnel(target):
        return ""
    now = next(filter(None, (tunnel.reached(member.service) for member in target.members)), "")
    port = local_port(target)
    once = f"\nWhile the server stays where it is, one command does:\n\n    {_joined(login, port, now)}\n"
    return (
        "## For yourself: an ssh tunnel\n\nOn your own machine:\n\n"
        f"    scp {tunnel.login_name(login)}:{target.folder / tunnel.NAME} .\n    bash {tunnel.NAME}\n\n"
        f"and then `http://127.0.0.1:{port}/v1`. It logs in once and follows the server to other nodes.\n"
        + (once if now else "")
    )


def _joined(login: Login, port: int, endpoint: str) -> str:
    return shlex.join(tunnel.tunnel_argv(login, port, endpoint))


def _direct(target: Target) -> str:
    lines = [f"    {way.base_url}    {way.whose}\n" for way in ways(target) if way.kind == "direct"]
    if not lines:
        return ""
    return (
        "## From the cluster's own network\n\n"
        + "".join(lines)
        + "\nHTTP, and only until the server moves: for programs on the cluster and for a look.\n"
    )


def _router(target: Target) -> str:
    if len(target.members) == 1 or target.platform.runtime == "kubernetes":
        return ""
    why = (
        f"It is needed here: {target.needs_router}. NGINX leads to it."
        if target.needs_router
        else ("Here NGINX alone is enough: all serve one model with one key.")
    )
    return (
        "## A router: LiteLLM\n\n"
        f"`bash {access_litellm.FOLDER}/{access_litellm.NAME}` runs it at `http://127.0.0.1:{ROUTER_PORT}/v1`, on the "
        f"node of NGINX. It chooses a server by the model that a request names, knows the key of each, and has one of "
        f"its own in `{target.router_key_file}`. A server that fails is left out for a while. {why}\n"
    )


def _examples(target: Target, base_url: str) -> str:
    others = dict.fromkeys(way.base_url for way in ways(target) if way.base_url != base_url)
    return (
        "## Examples\n\n"
        f"    bash {access_examples.CURL}\n    python {access_examples.OPENAI}\n\n"
        f"ask `{base_url}`; another way in is named by `BASE_URL`"
        + (", such as " + ", ".join(f"`{each}`" for each in others) if others else "")
        + f". Both are in `{Path(target.folder)}`.\n"
    )
