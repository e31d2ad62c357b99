#!/usr/bin/env bash
# What llama31-405b-hops needs on hops, step by step. Berth's own rules do the same and verify every file by its
# SHA-256; this is for people who want to see it or to do it by hand.
#
#     bash stage.sh download where there is internet: the repository from the hub
#     bash stage.sh push     from there into s3://huggingface.co/meta-llama/Llama-3.1-405B-Instruct
#     bash stage.sh model    on the cluster: into /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct
#     bash stage.sh verify   there: compare every file with the manifest
#     bash stage.sh image    once per cluster: /projects/berth/images/vllm-openai-v0.9.1-0b51ec38fb96.image
#     bash stage.sh load     on each node of the job: from there into the storage of Podman

set -euo pipefail

case "${1:-}" in
  download)
    [ -n "${HF_TOKEN:-}" ] || [ -s "${HF_HOME:-$HOME/.cache/huggingface}/token" ] || {
      echo 'meta-llama/Llama-3.1-405B-Instruct is gated: export HF_TOKEN of an account that accepted its licence, or run hf auth login' >&2
      exit 1
    }
    hf download meta-llama/Llama-3.1-405B-Instruct \
      --revision be673f326cab4cd22ccfef76109faf68e41aa5f1 \
      --exclude 'original/*' \
      --local-dir /checkout/results/models/llama-3.1-405b/files
    ;;
  push)
    export AWS_REQUEST_CHECKSUM_CALCULATION=when_required
    export AWS_MAX_ATTEMPTS=10
    [ -n "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}" ] || {
      echo 'no credentials: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE' >&2
      exit 1
    }
    aws s3 sync /checkout/results/models/llama-3.1-405b/files s3://huggingface.co/meta-llama/Llama-3.1-405B-Instruct/ \
      --exclude '.git*' \
      --exclude '.cache/*' \
      --endpoint-url https://s3.example.gov \
      --region us-east-1
    ;;
  model)
    export AWS_REQUEST_CHECKSUM_CALCULATION=when_required
    export AWS_MAX_ATTEMPTS=10
    [ -n "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}" ] || {
      echo 'no credentials: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE' >&2
      exit 1
    }
    mkdir -p /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct
    aws s3 sync s3://huggingface.co/meta-llama/Llama-3.1-405B-Instruct/ /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct \
      --endpoint-url https://s3.example.gov \
      --region us-east-1
    ;;
  verify)
    export AWS_REQUEST_CHECKSUM_CALCULATION=when_required
    export AWS_MAX_ATTEMPTS=10
    [ -n "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}" ] || {
      echo 'no credentials: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE' >&2
      exit 1
    }
    # Berth writes this manifest when it pushes; a model that was pushed by hand has none.
    aws s3 cp s3://huggingface.co/meta-llama/Llama-3.1-405B-Instruct.manifest.json - --endpoint-url https://s3.example.gov --region us-east-1 |
      python3 -c 'import json, sys; [print(f["sha256"], "", f["path"]) for f in json.load(sys.stdin)["files"]]' |
      (cd /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct && sha256sum --check --quiet)
    ;;
  image)
    mkdir -p /projects/berth/images
    # Under another name first: what breaks off leaves no image that looks whole.
    rm -rf /projects/berth/images/.vllm-openai-v0.9.1-0b51ec38fb96.image.partial /projects/berth/images/vllm-openai-v0.9.1-0b51ec38fb96.image
    skopeo copy \
      --preserve-digests docker://docker.io/vllm/vllm-openai@sha256:0b51ec38fb965b44f6aa75d8d847c5f21bc062b7140e1d83444b39b67fc4a2ea dir:/projects/berth/images/.vllm-openai-v0.9.1-0b51ec38fb96.image.partial
    mv /projects/berth/images/.vllm-openai-v0.9.1-0b51ec38fb96.image.partial /projects/berth/images/vllm-openai-v0.9.1-0b51ec38fb96.image
    ;;
  load)
    # What belongs to a login session makes a container runtime fail inside a job.
    unset XDG_RUNTIME_DIR XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS DBUS_SESSION_BUS_ADDRESS
    IMAGE=$(podman pull --quiet dir:/projects/berth/images/vllm-openai-v0.9.1-0b51ec38fb96.image)
    podman tag "${IMAGE}" docker.io/vllm/vllm-openai:berth-0b51ec38fb96
    ;;
  *)
    echo "usage: bash stage.sh download|push|model|verify|image|load" >&2
    exit 2
    ;;
esac
