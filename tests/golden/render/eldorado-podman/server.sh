#!/usr/bin/env bash
# scout-eldorado: vllm 0.9.1 serves meta-llama/Llama-4-Scout-17B-16E-Instruct on eldorado.
#
# The command that a job of Berth starts on its node. Stage model and image before it (stage.sh). settings.md
# says where each setting comes from, and why.
#
# Run it on a node of the cluster:
#     flux alloc --nodes=1 --gpus-per-node=4 --queue=pbatch --exclusive
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
[ -e /dev/kfd ] || {
  echo 'no /dev/kfd: this node has no AMD accelerator, or its driver is not loaded' >&2
  exit 1
}
[ -e /dev/dri ] || {
  echo 'no /dev/dri: this node has no AMD accelerator, or its driver is not loaded' >&2
  exit 1
}

mkdir -p /tmp/berth/by-hand/scout-eldorado/cache
cd /tmp/berth/by-hand/scout-eldorado

NAME="berth-scout-eldorado-${SLURM_JOB_ID:-${FLUX_JOB_ID:-${FLUX_ENCLOSING_ID:-$$}}}"
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
  --group-add=video \
  --cap-add=SYS_PTRACE \
  --security-opt=seccomp=unconfined \
  --device=/dev/kfd \
  --device=/dev/dri \
  --env=DO_NOT_TRACK=1 \
  --env=HF_DATASETS_OFFLINE=1 \
  --env=HF_HUB_DISABLE_TELEMETRY=1 \
  --env=HF_HUB_ENABLE_HF_TRANSFER=0 \
  --env=HF_HUB_OFFLINE=1 \
  --env=OMP_NUM_THREADS=1 \
  --env=TRANSFORMERS_OFFLINE=1 \
  --env=VLLM_DISABLE_COMPILE_CACHE=1 \
  --env=VLLM_NO_USAGE_STATS=1 \
  --env=VLLM_USE_TRITON_FLASH_ATTN=0 \
  --env=VLLM_USE_V1=1 \
  --env=HF_HOME=/root/.cache/huggingface \
  --env=TORCHINDUCTOR_CACHE_DIR=/root/.cache/torchinductor \
  --env=TRITON_CACHE_DIR=/root/.cache/triton \
  --env=VLLM_CACHE_ROOT=/root/.cache/vllm \
  --env=VLLM_CONFIG_ROOT=/root/.cache/vllm-config \
  --env=XDG_CACHE_HOME=/root/.cache \
  --env=VLLM_API_KEY \
  --volume=/projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:/vllm-workspace/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:ro \
  --volume=/tmp/berth/by-hand/scout-eldorado/cache:/root/.cache \
  --workdir=/vllm-workspace/models \
  docker.io/rocm/vllm:rocm6.4.1_vllm_0.9.1_20250702 serve meta-llama/Llama-4-Scout-17B-16E-Instruct \
  --disable-log-requests \
  --gpu-memory-utilization=0.7 \
  --host=0.0.0.0 \
  --max-model-len=65536 \
  '--override-generation-config={"attn_temperature_tuning": true}' \
  --port=8000 \
  --served-model-name=meta-llama/Llama-4-Scout-17B-16E-Instruct \
  --tensor-parallel-size=4 &
wait $!
