#!/usr/bin/env bash
# scout-w4a16-goodall: vllm 0.9.1 serves RedHatAI/Llama-4-Scout-17B-16E-Instruct-quantized.w4a16 on goodall.
#
# Installs it, or brings it up to date. The model must be in the store before (stage.sh). The command returns at
# once: a Job then brings the model onto the volume, and the server starts when it is there.

set -euo pipefail
CLUSTER=(--namespace=genai)

# Secrets come from the environment, and no value stands in a file or a command line. A secret that is there
# already stays where its variables are not set.
secret() {
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
    printf '%s=%s\n' "$key" "${!key}"
  done |
    kubectl "${CLUSTER[@]}" create secret generic "$name" --from-env-file=/dev/stdin --dry-run=client --output=yaml |
    kubectl "${CLUSTER[@]}" apply --server-side --force-conflicts --filename=-
}

# Temporary keys have a third part.
STORE_KEYS=(AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY)
[ -z "${AWS_SESSION_TOKEN:-}" ] || STORE_KEYS+=(AWS_SESSION_TOKEN)
secret berth-s3 'the credentials of the store' "${STORE_KEYS[@]}"
secret scout-w4a16-goodall-api-key 'a key of your own, such as openssl rand -hex 32 prints' VLLM_API_KEY

helm upgrade \
  --install scout-w4a16-goodall /checkout/workflow/charts/vllm \
  --namespace=genai \
  --values=/checkout/results/render/goodall/scout-w4a16-goodall/values.yaml
