"""LiteLLM before several served deployments: the recipe config/recipes/litellm.yaml with a list of backends.

It knows the key of each backend and has one of its own, and it routes by the model that a request names.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from berth import tunnel
from berth._render_server import server_script
from berth._render_stage import stage_script
from berth.access_target import ROUTER_PORT
from berth.config import Deployment, Model
from berth.recipe import File
from berth.rendering import Rendering
from berth.shelltext import comment, quote, script

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from berth.access_target import Target
    from berth.recipe import Recipe
    from berth.services import Service

FOLDER, NAME, BACKENDS = "litellm", "litellm.sh", "backends"
# Nothing listens there: LiteLLM takes it for a dead backend.
_NOWHERE = "http://127.0.0.1:9/v1"
_COOLDOWN_S = 10

_BODY = r"""
SEEN="$(mktemp)"
server=
finish() {
  [ -z "$server" ] || ! kill "$server" 2>/dev/null || wait "$server" || true
  rm -f "$SEEN"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

while true; do
  cp "$BACKENDS" "$SEEN"
  mapfile -t urls <"$SEEN"
  for index in "${!urls[@]}"; do
    export "BACKEND_$((index + 1))_URL=${urls[$index]}"
  done
  bash "$HERE/server.sh" &
  server=$!
  while kill -0 "$server" 2>/dev/null && cmp -s "$BACKENDS" "$SEEN"; do
    sleep "${INTERVAL_S:-5}" &
    wait $!
  done
  if cmp -s "$BACKENDS" "$SEEN"; then
    wait "$server" || true
    server=
    echo "LiteLLM has ended; its last lines say why." >&2
    exit 1
  fi
  echo "$(date '+%H:%M:%S') a server has moved; LiteLLM starts again"
  kill "$server" 2>/dev/null || true
  wait "$server" || true
done
"""


@dataclass(frozen=True)
class _Router(Rendering):
    place: Path

    @property
    def folder(self) -> Path:
        return self.place


def backends(services: Sequence[Service | None]) -> str:
    """Where each backend is now, one line each in the order of the members."""
    return "".join(f"{_url(service)}\n" for service in services)


def _url(service: Service | None) -> str:
    if service is None or not service.ready:
        return _NOWHERE
    if service.kubernetes:
        return f"{service.kubernetes.url.rstrip('/')}/v1" if service.kubernetes.url else _NOWHERE
    return f"http://{tunnel.reached(service).replace(' ', ':')}/v1"


def router_files(target: Target) -> dict[str, str]:
    """The files of a router by name: litellm.sh runs it and follows the backends, server.sh is what it starts.

    Raises:
        BerthError: the recipe has no image for the platform's accelerator.
    """
    rendering = _rendering(target)
    head = comment(f"What {NAME} starts: LiteLLM {rendering.deployment.version}, from config/recipes/litellm.yaml.")
    texts = {"server.sh": server_script(rendering, head), "stage.sh": stage_script(rendering), NAME: _script(target)}
    texts |= {file.path.relative_to(rendering.folder).as_posix(): file.text for file in rendering.server.files}
    return {f"{FOLDER}/{name}": text for name, text in texts.items()}


def _rendering(target: Target) -> Rendering:
    # NGINX or a tunnel is before it: it speaks HTTP, and only to this machine.
    platform = replace(target.platform, host="127.0.0.1", ports=(ROUTER_PORT, ROUTER_PORT))
    deployment = Deployment(
        # A container's name takes no plus sign.
        name=f"router-{target.name.replace('+', '-')}",
        model=target.models[0],
        recipe=target.router.name,
        platform=platform.name,
        version=list(target.router.versions)[-1],
    )
    return _Router(
        deployment=deployment,
        platform=platform,
        model=Model(name=target.models[0], source="generate", repo=target.models[0]),
        recipe=_recipe(target),
        uses=(),
        root=target.root,
        results=target.results,
        python=sys.version_info[:2],
        place=target.folder / FOLDER,
    )


def _recipe(target: Target) -> Recipe:
    file = target.router.files["config"]
    content: dict[str, Any] = {
        "model_list": [
            {
                "model_name": member.service.served_model,
                "litellm_params": {
                    "model": f"hosted_vllm/{member.service.served_model}",
                    "api_base": f"os.environ/BACKEND_{number}_URL",
                    "api_key": f"os.environ/BACKEND_{number}_KEY",
                },
            }
            for number, member in enumerate(target.members, start=1)
        ],
        "router_settings": {"num_retries": 2, "allowed_fails": 1, "cooldown_time": _COOLDOWN_S},
        "general_settings": file.content["general_settings"],
    }
    told = {f"BACKEND_{number}_{what}": "" for number in range(1, len(target.members) + 1) for what in ("URL", "KEY")}
    return replace(target.router, files={"config": File(file.target, content)}, inputs={}, further_secrets=told)


def _script(target: Target) -> str:
    keys = f"HERE={quote(str(target.folder / FOLDER))}\nBACKENDS={quote(str(target.folder / BACKENDS))}\n"
    own = target.router.server_key
    keys += comment("Each key stands in the environment alone.")
    keys += f'[ -n "${{{own}:-}}" ] || {own}="$(<{quote(target.router_key_file)})"\nexport {own}\n'
    for number, member in enumerate(target.members, start=1):
        value = f'"$(<{quote(member.service.key_file)})"' if member.key_variable else "none"
        keys += f"BACKEND_{number}_KEY={value}\nexport BACKEND_{number}_KEY\n"
    return script(
        comment(
            f"LiteLLM at http://127.0.0.1:{ROUTER_PORT}/v1 before {', '.join(m.name for m in target.members)}.",
            "",
            "    bash stage.sh image    once, where the runtime does not fetch the image by itself",
            "    bash litellm.sh        run it, and start it again when a server has moved; Ctrl-C ends it",
            "",
            "It runs on the node of NGINX, or where a tunnel leads to.",
        ),
        "set -euo pipefail\n",
        keys,
        _BODY.lstrip("\n"),
    )
