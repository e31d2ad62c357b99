"""What `render` writes for Kubernetes: values for the chart, and the scripts that install and remove a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from berth._render_kubernetes_settings import kubernetes_page
from berth._render_server import title
from berth._render_stage import push_script
from berth.chartvalues import Pod, chart_values, in_pod
from berth.container import render_shell
from berth.helm import install_argv, namespace_words
from berth.kubernetes import api_key_secret
from berth.shelltext import comment, quote, script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from berth.rendering import Rendering

VALUES = "values.yaml"
_MAKE_KEY = "a key of your own, such as openssl rand -hex 32 prints"
_STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# Values go through a pipe, because arguments can be seen by everybody on the machine.
_MAKER = """secret() {
  local name=$1 hint=$2 key
  shift 2
  for key in "$@"; do
    if [ -z "${!key:-}" ]; then
      kubectl "${CLUSTER[@]}" get secret "$name" --output=name && return
      echo "$key is not set, and there is no secret $name yet: export $hint" >&2
      exit 1
    fi
  done
  for key in "$@"; do
    printf '%s=%s\\n' "$key" "${!key}"
  done |
    kubectl "${CLUSTER[@]}" create secret generic "$name" --from-env-file=/dev/stdin --dry-run=client --output=yaml |
    kubectl "${CLUSTER[@]}" apply --server-side --force-conflicts --filename=-
}
"""


def kubernetes_files(rendering: Rendering, warnings: Sequence[str]) -> dict[str, str]:
    """The files of one deployment by name: values.yaml, install.sh, uninstall.sh, stage.sh and settings.md."""
    pod = in_pod(rendering)
    return {
        VALUES: values_file(pod),
        "install.sh": _install(pod),
        "uninstall.sh": _uninstall(pod),
        "stage.sh": push_script(rendering),
        "settings.md": kubernetes_page(pod, warnings),
    }


def values_file(pod: Pod) -> str:
    """The values as YAML."""
    head = comment(
        title(pod.rendering),
        f"Values of {'the chart workflow/charts/vllm of Berth' if pod.settings.own_chart else pod.settings.chart}. "
        "settings.md says where each setting comes from, and why. Secrets are names.",
    )
    return head + yaml.safe_dump(chart_values(pod), sort_keys=False, width=120, allow_unicode=True)


def _cluster(pod: Pod) -> str:
    words = [word.replace("--kube-context", "--context") for word in namespace_words(pod.settings)]
    return f"CLUSTER=({' '.join(map(quote, words))})\n"


def _install(pod: Pod) -> str:
    values = str(pod.rendering.folder / VALUES)
    keys = pod.container.secret_env
    secrets = comment("Temporary keys have a third part.") + f"STORE_KEYS=({' '.join(_STORE_KEYS)})\n"
    secrets += '[ -z "${AWS_SESSION_TOKEN:-}" ] || STORE_KEYS+=(AWS_SESSION_TOKEN)\n'
    secrets += f'secret {pod.settings.store_secret} {quote("the credentials of the store")} "${{STORE_KEYS[@]}}"\n'
    if keys:
        secrets += f"secret {api_key_secret(pod.release)} {quote(_MAKE_KEY)} {' '.join(keys)}\n"
    command = install_argv(pod.settings, pod.rendering.root, pod.release, values)
    return script(
        comment(
            title(pod.rendering),
            "",
            "Installs it, or brings it up to date. The model must be in the store before (stage.sh). The command "
            "returns at once: a Job then brings the model onto the volume, and the server starts when it is there.",
        ),
        "set -euo pipefail\n" + _cluster(pod),
        comment(
            "Secrets come from the environment, and no value stands in a file or a command line. A secret that is "
            "there already stays where its variables are not set."
        )
        + _MAKER,
        secrets,
        render_shell(command, quote),
    )


def _uninstall(pod: Pod) -> str:
    kept = " The claim with the model stays (keep_model)." if pod.settings.keep_model and not pod.settings.claim else ""
    remove = ["helm", "uninstall", pod.release, *namespace_words(pod.settings), "--wait"]
    text = render_shell(remove, quote)
    if pod.container.secret_env:
        text += f'kubectl "${{CLUSTER[@]}}" delete secret {api_key_secret(pod.release)} --ignore-not-found\n'
    return script(
        comment(f"Takes {pod.rendering.deployment.name} down.{kept}"),
        "set -euo pipefail\n" + _cluster(pod),
        text,
    )
