"""NGINX for Compute-as-Login: texts of its configuration. Directives are those of nginx.org/en/docs/http, 1.18 on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from berth.access_target import ROUTER_PORT
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.access_settings import Nginx
    from berth.access_target import Target
    from berth.services import Service

UPSTREAM, SERVER, CONF = "upstream.conf", "server.conf", "nginx.conf"
# One failed attempt takes a backend out for this long; its next request is the probe.
_FAIL_TIMEOUT_S = 10
_CONNECT_S = 5
# sun_path of unix(7), without its last byte.
_LONGEST_SOCKET = 107
# Of Debian and SUSE, and of Red Hat.
_SYSTEM_CAS = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def upstream(services: Sequence[Service | None], run_dir: Path, *, router: bool) -> str:
    """The servers of the upstream block, one line each; what the block includes and `refresh` writes anew.

    A deployment on Kubernetes is reached by its Route or Ingress, through a socket of NGINX's own. With `router` all
    requests go to LiteLLM on this machine.
    """
    head = "# Written by Berth whenever a server moves. Only lines of an upstream block can stand here.\n"
    if router:
        return head + f"server 127.0.0.1:{ROUTER_PORT};\n"
    limits = f"max_fails=1 fail_timeout={_FAIL_TIMEOUT_S}s"
    lines = []
    for service in services:
        if service is None or not service.ready:
            continue
        if service.kubernetes:
            if service.kubernetes.url:
                lines.append(f"server unix:{socket_of(run_dir, service.deployment)} {limits};\n")
        elif service.endpoint:
            endpoint = service.endpoint
            host = endpoint.address or endpoint.host
            lines.append(f"server {f'[{host}]' if ':' in host else host}:{endpoint.port} {limits};\n")
    # NGINX refuses an upstream without a server; one that is down makes it answer 502.
    return head + "".join(lines or ["server 127.0.0.1:9 down;\n"])


def socket_of(run_dir: Path, deployment: str) -> Path:
    """Where NGINX listens for itself, to speak HTTPS to a Route or Ingress beside servers that speak HTTP."""
    return run_dir / f"{deployment}.sock"


def server_block(target: Target, nginx: Nginx) -> str:
    """server.conf: what goes into the http block, an operator's or that of nginx.conf."""
    name = target.slug
    listen = f"[{nginx.bind}]" if ":" in nginx.bind else nginx.bind
    port = nginx.port_of(target.name)
    return (
        f"# {target.name} at {nginx.base_url(target.name)}. Written by Berth; `snakemake access` makes it anew.\n"
        "# It stands in the http block: of nginx.conf beside it, or of the site's own NGINX.\n"
        f"upstream {name} {{\n"
        "    # All workers know together which server has failed.\n"
        f"    zone {name} 64k;\n"
        "    # Nothing but servers can stand in an included file here, so that its writer gets no other right.\n"
        f"    include {target.folder / UPSTREAM};\n"
        "}\n\n"
        "server {\n"
        f"    listen {listen + ':' if listen else ''}{port}{' ssl' if nginx.tls else ''};\n"
        f"    server_name {nginx.name};\n"
        "    server_tokens off;\n"
        f"{_tls(nginx)}\n"
        f"    client_max_body_size {nginx.body_mib}m;\n"
        "    # Prompts stay in memory unless they are very large.\n"
        "    client_body_buffer_size 1m;\n"
        f"    send_timeout {nginx.timeout_s}s;\n"
        "\n"
        "    # The client's Authorization header goes through as it is: the server behind checks the key.\n"
        "    proxy_http_version 1.1;\n"
        "    # No connection is kept for the next request: one that the server is closing would lose it.\n"
        '    proxy_set_header Connection "";\n'
        "    proxy_set_header Host $host;\n"
        "    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
        "    proxy_set_header X-Forwarded-Proto $scheme;\n"
        "    # Tokens go on as they come.\n"
        "    proxy_buffering off;\n"
        "    gzip off;\n"
        f"    proxy_connect_timeout {_CONNECT_S}s;\n"
        f"    proxy_read_timeout {nginx.timeout_s}s;\n"
        f"    proxy_send_timeout {nginx.timeout_s}s;\n"
        "    # Another server is tried where one was not reached. A POST that was sent is never sent again: it may\n"
        "    # have been computed already (that would take non_idempotent).\n"
        "    proxy_next_upstream error timeout http_502 http_503 http_504;\n"
        "\n"
        "    # Nothing else: vLLM asks for its key below /v1/ alone, and would answer at /invocations without one.\n"
        "    location /v1/ {\n"
        f"        proxy_pass http://{name};\n"
        "    }\n"
        "    location = /health {\n"
        "        access_log off;\n"
        "        proxy_read_timeout 10s;\n"
        f"        proxy_pass http://{name}{target.health_path};\n"
        "    }\n"
        "    location / {\n"
        "        default_type application/json;\n"
        f"        return 404 '{_error('Only /v1/ and /health are here.', 'not_found')}';\n"
        "    }\n"
        f"{_down(target)}"
        "}\n"
    ) + _helpers(target, nginx)


def _tls(nginx: Nginx) -> str:
    if not nginx.tls:
        return ""
    return (
        f"\n    ssl_certificate {nginx.certificate};\n"
        f"    ssl_certificate_key {nginx.key};\n"
        "    ssl_protocols TLSv1.2 TLSv1.3;\n"
    )


def _down(target: Target) -> str:
    told = f"No server of {target.name} answers now: it starts, moves to another node, or is down. Try again later."
    return (
        "    error_page 502 504 = @down;\n"
        "    location @down {\n"
        "        default_type application/json;\n"
        f"        add_header Retry-After {_FAIL_TIMEOUT_S} always;\n"
        f"        return 502 '{_error(told, 'service_unavailable')}';\n"
        "    }\n"
    )


def _error(message: str, kind: str) -> str:
    # The form in which OpenAI's clients expect an error.
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": kind}})


def _helpers(target: Target, nginx: Nginx) -> str:
    """For each deployment on Kubernetes a server that speaks HTTPS to its Route or Ingress."""
    if target.needs_router:
        return ""
    text = ""
    for member in target.members:
        place = member.service.kubernetes
        if place is None or not place.url:
            continue
        url = urlsplit(place.url)
        trusted = member.platform.network.ca_bundle if member.platform.network else ""
        text += (
            f"\n# {member.name}: the way to its Route or Ingress.\n"
            "server {\n"
            f"    listen unix:{socket_of(target.run_dir, member.name)};\n"
            f"    client_max_body_size {nginx.body_mib}m;\n"
            "    location / {\n"
            "        proxy_http_version 1.1;\n"
            '        proxy_set_header Connection "";\n'
            f"        proxy_set_header Host {url.netloc};\n"
            "        proxy_buffering off;\n"
            f"        proxy_connect_timeout {_CONNECT_S}s;\n"
            f"        proxy_read_timeout {nginx.timeout_s}s;\n"
            f"        proxy_send_timeout {nginx.timeout_s}s;\n"
            f"{_verified(url.hostname or '', trusted) if url.scheme == 'https' else ''}"
            f"        proxy_pass {url.scheme}://{url.netloc};\n"
            "    }\n"
            "    # Only a connection that is closed is a failure of a POST. Routers answer 503 for absent pods.\n"
            "    proxy_intercept_errors on;\n"
            "    error_page 502 503 504 = @closed;\n"
            "    location @closed {\n"
            "        return 444;\n"
            "    }\n"
            "}\n"
        )
    return text


def _verified(host: str, trusted: str) -> str:
    return (
        "        proxy_ssl_server_name on;\n"
        f"        proxy_ssl_name {host};\n"
        "        proxy_ssl_verify on;\n"
        "        proxy_ssl_verify_depth 5;\n"
        f"        proxy_ssl_trusted_certificate {trusted or _system_cas()};\n"
    )


def _system_cas() -> str:
    # NGINX trusts nobody by itself.
    return next((path for path in _SYSTEM_CAS if Path(path).exists()), _SYSTEM_CAS[0])


def whole(target: Target) -> str:
    """nginx.conf: everything that an NGINX of an ordinary user needs."""
    run = target.run_dir
    temporary = "".join(
        f"    {kind}_temp_path {run}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"# An NGINX of one's own for {target.name}; nginx.sh starts it. Written by Berth.\n"
        "worker_processes 2;\n"
        f"pid {run}/nginx.pid;\n"
        f"error_log {run}/error.log warn;\n"
        "events {\n"
        "    # Two for each request.\n"
        "    worker_connections 4096;\n"
        "}\n"
        "http {\n"
        f"{temporary}"
        "    # Neither headers nor the text after a question mark: no key gets into a log.\n"
        "    log_format berth '$remote_addr [$time_iso8601] $request_method $uri $status $body_bytes_sent '\n"
        "                     '$request_time s to $upstream_addr $upstream_status';\n"
        f"    access_log {run}/access.log berth;\n"
        f"    include {target.folder / SERVER};\n"
        "}\n"
    )


def check_paths(target: Target) -> None:
    """Do nothing if NGINX can use the paths that its configuration would name.

    Raises:
        BerthError: a path holds a character that ends a word there, or is too long for a socket.
    """
    for member in target.members:
        path = socket_of(target.run_dir, member.name)
        if member.service.kubernetes and len(str(path)) > _LONGEST_SOCKET:
            raise BerthError(
                f"{path}: a socket's path has at most {_LONGEST_SOCKET} characters, and NGINX needs one to reach "
                f"{member.name}. Choose a shorter paths.scratch."
            )
    for path in (target.folder, target.run_dir):
        wrong = sorted(set(str(path)) & set(" ;{}\"'\\$#\n\t"))
        if wrong:
            raise BerthError(
                f"{path}: NGINX cannot read this path, because of {wrong[0]!r}. Choose another folder for results or "
                "paths.scratch."
            )
