#!/usr/bin/env bash
# What scout-eldorado needs on eldorado, step by step. Berth's own rules do the same and verify every file by
# its SHA-256; this is for people who want to see it or to do it by hand.
#
#     bash stage.sh download where there is internet: the repository from the hub
#     bash stage.sh push     from there into s3://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct
#     bash stage.sh model    on the cluster: into /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct
#     bash stage.sh verify   there: compare every file with the manifest
#     bash stage.sh image    once per cluster: /projects/berth/images/vllm-rocm6.4.1_vllm_0.9.1_20250702.image
#     bash stage.sh load     on each node of the job: from there into the storage of Podman

set -euo pipefail

case "${1:-}" in
  download)
    [ -n "${HF_TOKEN:-}" ] || [ -s "${HF_HOME:-$HOME/.cache/huggingface}/token" ] || {
      echo 'meta-llama/Llama-4-Scout-17B-16E-Instruct is gated: export HF_TOKEN of an account that accepted its licence, or run hf auth login' >&2
      exit 1
    }
    hf download meta-llama/Llama-4-Scout-17B-16E-Instruct \
      --revision 92f3b1597a195b523d8d9e5700e57e4fbb8f20d3 \
      --exclude 'original/*' \
      --local-dir /checkout/results/models/llama-4-scout/files
    ;;
  push)
    export AWS_REQUEST_CHECKSUM_CALCULATION=when_required
    export AWS_MAX_ATTEMPTS=10
    [ -n "${AWS_ACCESS_KEY_ID:-}${AWS_PROFILE:-}" ] || {
      echo 'no credentials: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE' >&2
      exit 1
    }
    aws s3 sync /checkout/results/models/llama-4-scout/files s3://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct/ \
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
    mkdir -p /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct
    aws s3 sync s3://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct/ /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct \
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
    aws s3 cp s3://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct.manifest.json - --endpoint-url https://s3.example.gov --region us-east-1 |
      python3 -c 'import json, sys; [print(f["sha256"], "", f["path"]) for f in json.load(sys.stdin)["files"]]' |
      (cd /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct && sha256sum --check --quiet)
    ;;
  image)
    mkdir -p /projects/berth/images
    # Under another name first: what breaks off leaves no image that looks whole.
    rm -rf /projects/berth/images/.vllm-rocm6.4.1_vllm_0.9.1_20250702.image.partial /projects/berth/images/vllm-rocm6.4.1_vllm_0.9.1_20250702.image
    skopeo copy \
      --preserve-digests docker://docker.io/rocm/vllm:rocm6.4.1_vllm_0.9.1_20250702 dir:/projects/berth/images/.vllm-rocm6.4.1_vllm_0.9.1_20250702.image.partial
    mv /projects/berth/images/.vllm-rocm6.4.1_vllm_0.9.1_20250702.image.partial /projects/berth/images/vllm-rocm6.4.1_vllm_0.9.1_20250702.image
    ;;
  load)
    # What belongs to a login session makes a container runtime fail inside a job.
    unset XDG_RUNTIME_DIR XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS DBUS_SESSION_BUS_ADDRESS
    IMAGE=$(podman pull --quiet dir:/projects/berth/images/vllm-rocm6.4.1_vllm_0.9.1_20250702.image)
    podman tag "${IMAGE}" docker.io/rocm/vllm:rocm6.4.1_vllm_0.9.1_20250702
    ;;
  *)
    echo "usage: bash stage.sh download|push|model|verify|image|load" >&2
    exit 2
    ;;
esac
