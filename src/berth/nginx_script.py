"""nginx.sh: starts, reloads and stops an NGINX of one's own, and lets it follow the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.nginx import CONF, UPSTREAM
from berth.shelltext import comment, quote, script

if TYPE_CHECKING:
    from berth.access_target import Target

NAME = "nginx.sh"

_BODY = r"""
NGINX="$(PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx)" || {
  echo "nginx is not on PATH of this node. Install it (Debian: nginx-light), or load the site's module." >&2
  exit 1
}

prepare() {
  local each
  for each in "${RUN%/*}" "$RUN"; do
    mkdir -p "$each"
    [ -O "$each" ] || {
      echo "$each belongs to somebody else. Remove it, or choose another paths.scratch." >&2
      exit 1
    }
    # Logs say who asked and when, and large prompts pass through files.
    chmod 700 "$each"
  done
}

running() { [ -s "$RUN/nginx.pid" ] && kill -0 "$(<"$RUN/nginx.pid")" 2>/dev/null; }

# Root's workers would be another user, who cannot get into this folder.
AS=()
[ "$(id -u)" != 0 ] || AS=(-g "user root;")
nginx() { "$NGINX" -p "$RUN/" -c "$CONF" ${AS[@]+"${AS[@]}"} "$@"; }

# Copied before NGINX reads it: what changes meanwhile is then read again.
start() {
  cp "$UPSTREAM" "$RUN/following"
  nginx -q -t
  nginx "$@"
  mv "$RUN/following" "$RUN/followed"
  # It writes its number after it has gone into the background.
  for _ in {1..100}; do
    ! running || return 0
    sleep 0.1
  done
}

reload() { start -s reload; }

stop() { ! running || nginx -s quit; }

prepare
case "${1:-}" in
  test) nginx -t ;;
  start) start ;;
  reload) reload ;;
  stop) stop ;;
  run)
    running || start
    trap stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    while running; do
      # Not -nt: clocks of a file server and of this node differ.
      cmp -s "$UPSTREAM" "$RUN/followed" || {
        echo "$(date '+%H:%M:%S') the server has moved: $(grep '^server' "$UPSTREAM")"
        # A file that NGINX refuses is tried again; meanwhile it goes on as before.
        reload || true
      }
      sleep "${INTERVAL_S:-5}" &
      wait $!
    done
    echo "NGINX has ended; $RUN/error.log says why." >&2
    exit 1
    ;;
  *)
    echo "usage: bash nginx.sh test | start | run | reload | stop" >&2
    exit 2
    ;;
esac
"""


def nginx_script(target: Target) -> str:
    """The script, for the node that clients and compute nodes reach."""
    places = {"RUN": target.run_dir, "CONF": target.folder / CONF, "UPSTREAM": target.folder / UPSTREAM}
    return script(
        comment(
            f"An NGINX of your own for {target.name}; be an ordinary user, not root. Where operators run NGINX, they "
            "include server.conf instead.",
            "",
            "    bash nginx.sh run      start it, let it follow the server to other nodes, stop it with Ctrl-C",
            "    bash nginx.sh start    start it in the background; then `reload` when the server has moved, or `stop`",
            "    bash nginx.sh test     see whether NGINX takes the configuration",
        ),
        "set -euo pipefail\n",
        "".join(f"{name}={quote(str(path))}\n" for name, path in places.items()),
        _BODY.lstrip("\n"),
    )
