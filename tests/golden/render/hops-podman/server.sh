#!/usr/bin/env bash
# scout-hops: vllm 0.9.1 serves meta-llama/Llama-4-Scout-17B-16E-Instruct on hops.
#
# The command that a job of Berth starts on its node. Stage model and image before it (stage.sh). settings.md
# says where each setting comes from, and why.
#
# Run it on a node of the cluster:
#     salloc --nodes=1 --gres=gpu:4 --exclusive
#
# It is ready when http://127.0.0.1:8000/health answers 200 and a request to /v1/chat/completions returns a
# token.

set -euo pipefail

# Secrets come from the environment, and no value stands in a file or a command line.
: "${VLLM_API_KEY:?is not set; export a key of your own, such as openssl rand -hex 32 prints}"

# What belongs to a login session makes a container runtime fail inside a job.
unset XDG_RUNTIME_DIR XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS DBUS_SESSION_BUS_ADDRESS

[ -d /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct ] || {
  echo 'no model at /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct: run stage.sh model' >&2
  exit 1
}
compgen -G '/etc/cdi/*' >/dev/null || compgen -G '/var/run/cdi/*' >/dev/null || {
  echo 'no CDI specification on this node, so that nvidia.com/gpu=all means nothing here. As root: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml' >&2
  exit 1
}

mkdir -p /tmp/berth/by-hand/scout-hops/cache
cd /tmp/berth/by-hand/scout-hops

NAME="berth-scout-hops-${SLURM_JOB_ID:-${FLUX_JOB_ID:-${FLUX_ENCLOSING_ID:-$$}}}"
# Whatever ends this script ends the container: it is asked, then killed, then removed.
stop() {
  podman stop --ignore --time=20 "${NAME}" >/dev/null 2>&1 || true
  podman kill "${NAME}" >/dev/null 2>&1 || true
  podman rm --force --ignore "${NAME}" >/dev/null 2>&1 || true
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

podman run \
  --rm \
  --name="${NAME}" \
  --log-driver=none \
  --network=host \
  --ipc=host \
  --entrypoint=vllm \
  --device=nvidia.com/gpu=all \
  --env=DO_NOT_TRACK=1 \
  --env=HF_DATASETS_OFFLINE=1 \
  --env=HF_HUB_DISABLE_TELEMETRY=1 \
  --env=HF_HUB_ENABLE_HF_TRANSFER=0 \
  --env=HF_HUB_OFFLINE=1 \
  --env=OMP_NUM_THREADS=1 \
  --env=TRANSFORMERS_OFFLINE=1 \
  --env=VLLM_DISABLE_COMPILE_CACHE=1 \
  --env=VLLM_NO_USAGE_STATS=1 \
  --env=HF_HOME=/root/.cache/huggingface \
  --env=TORCHINDUCTOR_CACHE_DIR=/root/.cache/torchinductor \
  --env=TRITON_CACHE_DIR=/root/.cache/triton \
  --env=VLLM_CACHE_ROOT=/root/.cache/vllm \
  --env=VLLM_CONFIG_ROOT=/root/.cache/vllm-config \
  --env=XDG_CACHE_HOME=/root/.cache \
  --env=VLLM_API_KEY \
  --volume=/projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:/vllm-workspace/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:ro \
  --volume=/tmp/berth/by-hand/scout-hops/cache:/root/.cache \
  --workdir=/vllm-workspace/models \
  docker.io/vllm/vllm-openai@sha256:0b51ec38fb965b44f6aa75d8d847c5f21bc062b7140e1d83444b39b67fc4a2ea serve meta-llama/Llama-4-Scout-17B-16E-Instruct \
  --disable-log-requests \
  --host=0.0.0.0 \
  --max-model-len=65536 \
  '--override-generation-config={"attn_temperature_tuning": true}' \
  --port=8000 \
  --served-model-name=meta-llama/Llama-4-Scout-17B-16E-Instruct \
  --tensor-parallel-size=4 &
wait $!
