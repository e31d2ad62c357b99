#!/usr/bin/env bash
# One point of fig9: 1000 prompts to scout-eldorado.
#
#     CONCURRENCY=16 bash client.sh
#
# The levels of the experiment: 1 2 4 8 16 32 64 128 256 512 1024. BASE_URL says where the server is, if not on
# this node.
#
# Berth measures with the same arguments, in one warm process for all points where the version allows it.
# It sends 1 prompts of seed 12346 before the first point, which are not measured.

set -euo pipefail

CONCURRENCY="${CONCURRENCY:-1}"
BASE_URL="${BASE_URL:-http://127.0.0.1:8000}"
export -n CONCURRENCY BASE_URL

# The key of the server, under the name in which the client looks for it.
export OPENAI_API_KEY="${VLLM_API_KEY:?is not set; export the key that the server was started with}"

# What belongs to a login session makes a container runtime fail inside a job.
unset XDG_RUNTIME_DIR XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS DBUS_SESSION_BUS_ADDRESS
# The server is never behind a proxy.
export no_proxy='*'
export NO_PROXY='*'

[ -d /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct ] || {
  echo 'no model at /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct: run stage.sh model' >&2
  exit 1
}
[ -e /checkout/results/datasets/sharegpt/sharegpt.json ] || {
  echo '/checkout/results/datasets/sharegpt/sharegpt.json is not there: in /checkout run snakemake --cores 1 --config platform=eldorado -- results/datasets/sharegpt/receipt.json' >&2
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

podman run \
  --rm \
  --name="${NAME}"-client \
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
  --env=OPENAI_API_KEY \
  --volume=/projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:/vllm-workspace/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:ro \
  --volume=/tmp/berth/by-hand/scout-eldorado/cache:/root/.cache \
  --volume=/checkout/results/datasets/sharegpt/sharegpt.json:/checkout/results/datasets/sharegpt/sharegpt.json:ro \
  --volume=/projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:/projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct:ro \
  --volume=/tmp/berth/by-hand/scout-eldorado:/tmp/berth/by-hand/scout-eldorado \
  --workdir=/vllm-workspace/models \
  docker.io/rocm/vllm:rocm6.4.1_vllm_0.9.1_20250702 bench serve \
  --endpoint-type openai-chat \
  --base-url "${BASE_URL}" \
  --endpoint /v1/chat/completions \
  --model meta-llama/Llama-4-Scout-17B-16E-Instruct \
  --tokenizer /projects/berth/models/meta-llama/Llama-4-Scout-17B-16E-Instruct \
  --dataset-name sharegpt \
  --dataset-path /checkout/results/datasets/sharegpt/sharegpt.json \
  --num-prompts 1000 \
  --seed 12345 \
  --max-concurrency "${CONCURRENCY}" \
  --request-rate inf \
  --burstiness 1 \
  --temperature 0 \
  --percentile-metrics ttft,tpot,itl,e2el \
  --metric-percentiles 99 \
  --save-result \
  --save-detailed \
  --result-dir /tmp/berth/by-hand/scout-eldorado \
  --result-filename c"${CONCURRENCY}".json

echo "the client's own result: /tmp/berth/by-hand/scout-eldorado/c$CONCURRENCY.json"
