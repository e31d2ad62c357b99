#!/usr/bin/env bash
# One point of fig12: 1000 prompts to llama31-405b-hops.
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

[ -d /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct ] || {
  echo 'no model at /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct: run stage.sh model' >&2
  exit 1
}
[ -e /checkout/results/datasets/sharegpt/sharegpt.json ] || {
  echo '/checkout/results/datasets/sharegpt/sharegpt.json is not there: in /checkout run snakemake --cores 1 --config platform=hops -- results/datasets/sharegpt/receipt.json' >&2
  exit 1
}

mkdir -p /tmp/berth/by-hand/llama31-405b-hops/cache
cd /tmp/berth/by-hand/llama31-405b-hops

NAME="berth-llama31-405b-hops-${SLURM_JOB_ID:-${FLUX_JOB_ID:-${FLUX_ENCLOSING_ID:-$$}}}"

podman run \
  --rm \
  --name="${NAME}"-client \
  --log-driver=none \
  --network=host \
  --ipc=host \
  --entrypoint=vllm \
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
  --env=OPENAI_API_KEY \
  --volume=/projects/berth/models/meta-llama/Llama-3.1-405B-Instruct:/vllm-workspace/models/meta-llama/Llama-3.1-405B-Instruct:ro \
  --volume=/tmp/berth/by-hand/llama31-405b-hops/cache:/root/.cache \
  --volume=/checkout/results/datasets/sharegpt/sharegpt.json:/checkout/results/datasets/sharegpt/sharegpt.json:ro \
  --volume=/projects/berth/models/meta-llama/Llama-3.1-405B-Instruct:/projects/berth/models/meta-llama/Llama-3.1-405B-Instruct:ro \
  --volume=/tmp/berth/by-hand/llama31-405b-hops:/tmp/berth/by-hand/llama31-405b-hops \
  --workdir=/vllm-workspace/models \
  docker.io/vllm/vllm-openai@sha256:0b51ec38fb965b44f6aa75d8d847c5f21bc062b7140e1d83444b39b67fc4a2ea bench serve \
  --endpoint-type openai-chat \
  --base-url "${BASE_URL}" \
  --endpoint /v1/chat/completions \
  --model meta-llama/Llama-3.1-405B-Instruct \
  --tokenizer /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct \
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
  --result-dir /tmp/berth/by-hand/llama31-405b-hops \
  --result-filename c"${CONCURRENCY}".json

echo "the client's own result: /tmp/berth/by-hand/llama31-405b-hops/c$CONCURRENCY.json"
