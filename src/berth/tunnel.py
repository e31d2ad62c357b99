"""ssh tunnels through a login node to a server on a compute node: one command, and a script that follows the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.shelltext import comment, quote, script

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from berth.access_settings import Login
    from berth.services import Service

NAME = "tunnel.sh"
# One line per ready deployment, ADDRESS PORT: what the script reads on the login node.
ENDPOINTS = "endpoint"
# What each connection is told: it ends when the other side has been silent for a minute, and where it cannot listen.
OPTIONS = ("ExitOnForwardFailure=yes", "ServerAliveInterval=15", "ServerAliveCountMax=4")

_BODY = r"""
PORT="${1:-$DEFAULT_PORT}"
# How ssh is called, such as BERTH_SSH="ssh -F my-config".
read -r -a SSH <<<"${BERTH_SSH:-ssh}"
# WAY may be empty, which the bash of macOS takes for unset.

if [ "$PORT" = --show ]; then
  found="$("${SSH[@]}" ${WAY[@]+"${WAY[@]}"} "$LOGIN" "cat $ENDPOINT" | head -n 1)"
  [ -n "$found" ] || {
    echo "no server is ready" >&2
    exit 1
  }
  echo "ssh -N -L 127.0.0.1:$DEFAULT_PORT:${found% *}:${found##* } ${WAY[*]-} $LOGIN"
  exit 0
fi

# A short path: sockets have about a hundred characters. One connection is made, so that one login is asked for.
FOLDER="$(mktemp -d /tmp/berth-tunnel.XXXXXX)"
master() { "${SSH[@]}" -o ControlPath="$FOLDER/ssh" "$@" "$LOGIN"; }
finish() {
  master -O exit 2>/dev/null || true
  rm -rf "$FOLDER"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

forwarded=
while true; do
  if ! master -O check 2>/dev/null; then
    forwarded=
    master ${WAY[@]+"${WAY[@]}"} "${OPTIONS[@]}" -o ControlMaster=yes -N -f || {
      echo "no connection to $LOGIN; the next attempt is in a minute" >&2
      sleep 60 &
      wait $!
      continue
    }
  fi
  # An answer that is lost leaves the tunnel as it is.
  if found="$("${SSH[@]}" -o ControlPath="$FOLDER/ssh" "$LOGIN" "cat $ENDPOINT" </dev/null | head -n 1)"; then
    now=
    [ -z "$found" ] || now="127.0.0.1:$PORT:${found% *}:${found##* }"
    if [ "$now" != "$forwarded" ]; then
      [ -z "$forwarded" ] || master -O cancel -L "$forwarded" 2>/dev/null || true
      forwarded=
      if [ -z "$now" ]; then
        echo "$(date '+%H:%M:%S') no server is ready; waiting for it"
      elif master -O forward -L "$now"; then
        forwarded="$now"
        echo "$(date '+%H:%M:%S') http://127.0.0.1:$PORT/v1 leads to $found"
      else
        echo "port $PORT of this machine is taken: bash tunnel.sh ANOTHER_PORT" >&2
        exit 1
      fi
    fi
  fi
  sleep "${INTERVAL_S:-15}" &
  wait $!
done
"""


def reached(service: Service | None) -> str:
    """ADDRESS PORT of the server that requests go to; "" where none is ready, or where it has an address outside."""
    if service is None or not service.ready or service.endpoint is None or service.kubernetes:
        return ""
    host = service.endpoint.address or service.endpoint.host
    return f"{f'[{host}]' if ':' in host else host} {service.endpoint.port}"


def endpoints(services: Sequence[Service | None]) -> str:
    """The file that the script reads: one line for each deployment that is ready."""
    return "".join(f"{line}\n" for service in services if (line := reached(service)))


def login_words(login: Login) -> list[str]:
    """The options of ssh that say how the login node is reached, without its name."""
    words = [f"-p{login.port}"] if login.port else []
    return [*words, *(["-J", login.jump] if login.jump else [])]


def login_name(login: Login) -> str:
    """[USER@]HOST, as ssh takes it."""
    return f"{login.user}@{login.host}" if login.user else login.host


def tunnel_argv(login: Login, local_port: int, endpoint: str) -> list[str]:
    """The command that opens a tunnel and stays in the foreground; `endpoint` is ADDRESS PORT of the server now."""
    way = f"127.0.0.1:{local_port}:{endpoint.replace(' ', ':')}"
    options = [word for option in OPTIONS for word in ("-o", option)]
    return ["ssh", "-N", "-L", way, *options, *login_words(login), login_name(login)]


def tunnel_script(login: Login, name: str, local_port: int, endpoint: Path) -> str:
    """tunnel.sh, for a machine of a person's own; nothing else of Berth has to be there."""
    options = [word for option in OPTIONS for word in ("-o", option)]
    return script(
        comment(
            f"An ssh tunnel to {name}, for your own machine: copy this file there.",
            "",
            f"    bash tunnel.sh [PORT]    http://127.0.0.1:PORT/v1 is then the server; without PORT {local_port}",
            "    bash tunnel.sh --show    print the one ssh command that would do, until the server moves",
            "",
            "It logs in once, follows the server when that moves to another node, and logs in again when the "
            "connection is lost. Ctrl-C ends it.",
        ),
        "set -euo pipefail\n",
        f"DEFAULT_PORT={local_port}\n"
        f"LOGIN={quote(login_name(login))}\n"
        f"WAY=({' '.join(map(quote, login_words(login)))})\n"
        f"OPTIONS=({' '.join(options)})\n"
        # The shell of the login node reads the path once more.
        f"ENDPOINT={quote(quote(str(endpoint)))}\n",
        _BODY.lstrip("\n"),
    )
