"""Tries each way into a served deployment that can be tried from here: one completion of one token."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from berth import services, tunnel
from berth.access_ways import ways
from berth.checkup import Result, fail, ok, warn
from berth.errors import BerthError
from berth.kubectl import Cluster
from berth.kubeforward import Forward
from berth.probe import ask
from berth.processes import new_token
from berth.sockets import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.access_settings import Login
    from berth.access_target import Member, Target
    from berth.access_ways import Way
    from berth.probe import Answer

_CONNECT_S = 5.0
_COMPLETION_S = 120.0
_LOGIN_S = 30.0
_NAMES = {
    "direct": "direct",
    "forward": "kubectl port-forward",
    "nginx": "NGINX",
    "route": "Route or Ingress",
    "tunnel": "ssh tunnel",
}
_ELSEWHERE = {
    "direct": "right outside the cluster's network: take another way in; inside it, ask for the server's node",
    "nginx": "start it on its node: bash nginx.sh run, or let operators include server.conf",
    "route": "right where the cluster cannot be reached; else see kubectl get route,ingress",
}


def probe(target: Target) -> Iterator[Result]:
    """What each way in answered. No secret is told."""
    for member in target.members:
        yield _state(member.service)
    try:
        key = _key(target)
    except BerthError as error:
        yield fail(f"API key: {error}", "no way in can be tried without it")
        return
    model = target.models[0]
    for way in ways(target):
        # A member of several has a key of its own, which a router before it knows.
        if way.kind in ("direct", "forward", "route") and target.needs_router:
            yield from _own(target, way)
        elif way.kind == "forward":
            yield _through_forward(_member(target, way), way, key, model)
        elif way.kind == "tunnel" and target.platform.access.login:
            yield _through_tunnel(target, target.platform.access.login, way, key, model)
        else:
            yield _tried(way, key, model)


def _state(service: services.Service) -> Result:
    told = f"{service.deployment} on {service.platform} is {service.state}"
    if service.ready:
        return ok(told)
    last = f"; its last end: {service.history[-1].cause}" if service.history else ""
    remedy = "serve it" if service.state == "ended" else f"wait, or read results/logs of its job{last}"
    return warn(told, remedy)


def _key(target: Target) -> str | None:
    if not target.key_variable:
        return None
    return services.key_in(Path(target.key_file))


def _own(target: Target, way: Way) -> Iterator[Result]:
    member = _member(target, way)
    try:
        key = services.key_in(Path(member.service.key_file)) if member.key_variable else None
    except BerthError as error:
        yield fail(f"API key of {member.name}: {error}", "its way in cannot be tried without it")
        return
    model = member.service.served_model
    yield _through_forward(member, way, key, model) if way.kind == "forward" else _tried(way, key, model)


def _member(target: Target, way: Way) -> Member:
    return next(member for member in target.members if member.name == way.whose)


def _tried(way: Way, key: str | None, model: str) -> Result:
    told = f"{_NAMES[way.kind]} {way.base_url} ({way.whose})"
    url = urlsplit(way.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    if problem := _unreachable(url.hostname or "", port):
        return warn(f"{told}: {problem}", _ELSEWHERE[way.kind])
    return _completed(told, way, key, model)


def _completed(told: str, way: Way, key: str | None, model: str) -> Result:
    url = urlsplit(way.base_url)
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}
    begin = time.monotonic()
    answer = ask(
        f"{url.scheme}://{url.netloc}",
        f"{url.path}/chat/completions",
        timeout_s=_COMPLETION_S,
        api_key=key,
        body=body,
        ca_file=way.ca_file,
    )
    if answer.status == 200:
        return ok(f"{told}: one token in {time.monotonic() - begin:.2f} s")
    return fail(f"{told}: {answer}", _remedy(answer))


def _remedy(answer: Answer) -> str:
    if answer.status in (401, 403):
        return "this key is not the server's: another server answers there, or it was started with another key"
    if answer.status == 404:
        return "the address is that of another service, or the model has another name there"
    if answer.status in (502, 503, 504):
        return "the server behind it does not answer: see its state; after a move reload NGINX"
    if "CERTIFICATE" in answer.text or "certificate" in answer.text:
        return "name the CA's file in access.nginx.ca_file (or network.ca_bundle), and the host as in the certificate"
    if answer.status:
        return "read the server's log"
    return "see that it is this service that listens there, and whether it speaks HTTPS"


def _unreachable(host: str, port: int) -> str | None:
    """Why no connection can be made; None where one can."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return None
    except OSError as error:
        return f"no connection from here ({error.strerror or error})"


def _through_tunnel(target: Target, login: Login, way: Way, key: str | None, model: str) -> Result:
    endpoint = next(filter(None, (tunnel.reached(member.service) for member in target.members)))
    told = f"{_NAMES['tunnel']} through {tunnel.login_name(login)} ({way.whose})"
    port = free_port("127.0.0.1", 20000, 29999)
    with _open_tunnel(login, port, endpoint) as problem:
        if problem:
            return warn(f"{told}: {problem}", "run tunnel.sh by hand: it may ask you for a password or a token")
        return _completed(told, replace(way, base_url=f"http://127.0.0.1:{port}/v1"), key, model)


def _through_forward(member: Member, way: Way, key: str | None, model: str) -> Result:
    place = member.service.kubernetes
    assert place
    told = f"{_NAMES['forward']} service/{place.service} ({way.whose})"
    cluster = Cluster(place.context, place.namespace)
    with tempfile.TemporaryDirectory(prefix="berth-forward-") as folder:
        log = Path(folder) / "log"
        forward = Forward(cluster, place.port, log_path=log, token=new_token())
        try:
            forward.to(f"service/{place.service}")
            port = forward.port()
            if not port:
                lines = log.read_text(errors="replace").strip().splitlines()
                return warn(
                    f"{told}: {lines[-1] if lines else 'no answer'}", "see kubectl get pods, and your own rights"
                )
            return _completed(told, replace(way, base_url=f"http://127.0.0.1:{port}/v1"), key, model)
        except BerthError as error:
            return warn(f"{told}: {error}", "put kubectl on PATH: tools/install-helm.sh")
        finally:
            forward.close()


@contextlib.contextmanager
def _open_tunnel(login: Login, port: int, endpoint: str) -> Iterator[str]:
    """A tunnel for the block, which gets why there is none, "" where there is one. Nobody is asked for anything."""
    program, *rest = tunnel.tunnel_argv(login, port, endpoint)
    argv = [
        *(os.environ.get("BERTH_SSH", program).split()),
        "-o",
        "BatchMode=yes",
        "-o",
        f"ConnectTimeout={_CONNECT_S:.0f}",
    ]
    try:
        process = subprocess.Popen(
            [*argv, *rest], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        yield f"{argv[0]}: {error.strerror}"
        return
    try:
        deadline = time.monotonic() + _LOGIN_S
        while process.poll() is None and _unreachable("127.0.0.1", port) and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is not None:
            lines = (process.stderr.read() if process.stderr else "").strip().splitlines()
            yield lines[-1] if lines else f"ssh ended with {process.returncode}"
        else:
            yield "no login in time" if _unreachable("127.0.0.1", port) else ""
    finally:
        process.terminate()
        process.wait()
        if process.stderr:
            process.stderr.close()
