#!/usr/bin/env bash
# Takes scout-w4a16-goodall down.

set -euo pipefail
CLUSTER=(--namespace=genai)

helm uninstall scout-w4a16-goodall \
  --namespace=genai \
  --wait
kubectl "${CLUSTER[@]}" delete secret scout-w4a16-goodall-api-key --ignore-not-found
