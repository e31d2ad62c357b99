#!/usr/bin/env bash
# llama31-405b-hops: one of 4 nodes. server.sh starts it.

set -euo pipefail

NODE_RANK="${SLURM_PROCID:-${FLUX_TASK_RANK:?is not set; srun or flux run sets it}}"
NODE_ADDRESS="$(getent ahostsv4 "$(hostname)" | awk 'NR == 1 { print $1 }')"
[ -n "$NODE_ADDRESS" ] || {
  echo 'the name of this node has no IPv4 address' >&2
  exit 1
}
if [ "${1:-}" = address ]; then
  echo "$NODE_RANK $NODE_ADDRESS"
  exit
fi
: "${ADDRESSES:?is not set; server.sh sets it}"
HEAD_ADDRESS="${ADDRESSES%% *}"
NODE_INTERFACE="$(ip -4 -oneline address show to "$NODE_ADDRESS" | awk 'NR == 1 { print $2 }')"

# Secrets come from the environment, and no value stands in a file or a command line.
: "${VLLM_API_KEY:?is not set; export a key of your own, such as openssl rand -hex 32 prints}"

# What belongs to a login session makes a container runtime fail inside a job.
unset XDG_RUNTIME_DIR XDG_SESSION_ID XDG_SESSION_TYPE XDG_SESSION_CLASS DBUS_SESSION_BUS_ADDRESS

[ -d /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct ] || {
  echo 'no model at /projects/berth/models/meta-llama/Llama-3.1-405B-Instruct: run stage.sh model' >&2
  exit 1
}
compgen -G '/etc/cdi/*' >/dev/null || compgen -G '/var/run/cdi/*' >/dev/null || {
  echo 'no CDI specification on this node, so that nvidia.com/gpu=all means nothing here. As root: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml' >&2
  exit 1
}

mkdir -p /tmp/berth/by-hand/llama31-405b-hops/cache
cd /tmp/berth/by-hand/llama31-405b-hops

NAME="berth-llama31-405b-hops-${SLURM_JOB_ID:-${FLUX_JOB_ID:-${FLUX_ENCLOSING_ID:-$$}}}"
# Whatever ends this script ends the container: it is asked, then killed, then removed.
stop() {
  podman stop --ignore --time=20 "${NAME}" >/dev/null 2>&1 || true
  podman kill "${NAME}" >/dev/null 2>&1 || true
  podman rm --force --ignore "${NAME}" >/dev/null 2>&1 || true
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A Ray cluster first: one container per node. The first node then waits until all 4 have joined, and starts the
# server inside the cluster.
if [ "$NODE_RANK" -ne 0 ]; then
  until (exec 3<>"/dev/tcp/$HEAD_ADDRESS/8001") 2>/dev/null; do
    sleep 1
  done
  podman run \
    --rm \
    --name="${NAME}" \
    --log-driver=none \
    --network=host \
    --ipc=host \
    --entrypoint=ray \
    --device=nvidia.com/gpu=all \
    --env=DO_NOT_TRACK=1 \
    --env=GLOO_SOCKET_IFNAME="${NODE_INTERFACE}" \
    --env=HF_DATASETS_OFFLINE=1 \
    --env=HF_HUB_DISABLE_TELEMETRY=1 \
    --env=HF_HUB_ENABLE_HF_TRANSFER=0 \
    --env=HF_HUB_OFFLINE=1 \
    --env=OMP_NUM_THREADS=1 \
    --env=TRANSFORMERS_OFFLINE=1 \
    --env=VLLM_DISABLE_COMPILE_CACHE=1 \
    --env=VLLM_HOST_IP="${NODE_ADDRESS}" \
    --env=VLLM_NO_USAGE_STATS=1 \
    --env=HF_HOME=/root/.cache/huggingface \
    --env=TORCHINDUCTOR_CACHE_DIR=/root/.cache/torchinductor \
    --env=TRITON_CACHE_DIR=/root/.cache/triton \
    --env=VLLM_CACHE_ROOT=/root/.cache/vllm \
    --env=VLLM_CONFIG_ROOT=/root/.cache/vllm-config \
    --env=XDG_CACHE_HOME=/root/.cache \
    --env=VLLM_API_KEY \
    --volume=/projects/berth/models/meta-llama/Llama-3.1-405B-Instruct:/vllm-workspace/models/meta-llama/Llama-3.1-405B-Instruct:ro \
    --volume=/tmp/berth/by-hand/llama31-405b-hops/cache:/root/.cache \
    --workdir=/vllm-workspace/models \
    docker.io/vllm/vllm-openai@sha256:0b51ec38fb965b44f6aa75d8d847c5f21bc062b7140e1d83444b39b67fc4a2ea start \
    --block \
    --disable-usage-stats \
    --node-ip-address="${NODE_ADDRESS}" \
    --address="${HEAD_ADDRESS}":8001 &
  wait $!
  exit
fi
podman run \
  --rm \
  --name="${NAME}" \
  --log-driver=none \
  --network=host \
  --ipc=host \
  --entrypoint=ray \
  --device=nvidia.com/gpu=all \
  --env=DO_NOT_TRACK=1 \
  --env=GLOO_SOCKET_IFNAME="${NODE_INTERFACE}" \
  --env=HF_DATASETS_OFFLINE=1 \
  --env=HF_HUB_DISABLE_TELEMETRY=1 \
  --env=HF_HUB_ENABLE_HF_TRANSFER=0 \
  --env=HF_HUB_OFFLINE=1 \
  --env=OMP_NUM_THREADS=1 \
  --env=TRANSFORMERS_OFFLINE=1 \
  --env=VLLM_DISABLE_COMPILE_CACHE=1 \
  --env=VLLM_HOST_IP="${NODE_ADDRESS}" \
  --env=VLLM_NO_USAGE_STATS=1 \
  --env=HF_HOME=/root/.cache/huggingface \
  --env=TORCHINDUCTOR_CACHE_DIR=/root/.cache/torchinductor \
  --env=TRITON_CACHE_DIR=/root/.cache/triton \
  --env=VLLM_CACHE_ROOT=/root/.cache/vllm \
  --env=VLLM_CONFIG_ROOT=/root/.cache/vllm-config \
  --env=XDG_CACHE_HOME=/root/.cache \
  --env=VLLM_API_KEY \
  --volume=/projects/berth/models/meta-llama/Llama-3.1-405B-Instruct:/vllm-workspace/models/meta-llama/Llama-3.1-405B-Instruct:ro \
  --volume=/tmp/berth/by-hand/llama31-405b-hops/cache:/root/.cache \
  --workdir=/vllm-workspace/models \
  docker.io/vllm/vllm-openai@sha256:0b51ec38fb965b44f6aa75d8d847c5f21bc062b7140e1d83444b39b67fc4a2ea start \
  --head \
  --block \
  --disable-usage-stats \
  --include-dashboard=false \
  --node-ip-address="${NODE_ADDRESS}" \
  --port=8001 &
cluster=$!
# Those of ADDRESSES that are no node of the cluster yet.
missing() {
  podman exec "${NAME}" python3 \
    -c 'import ray; ray.init("'"${HEAD_ADDRESS}"':8001", logging_level="error", log_to_driver=False); print("".join("node " + n["NodeManagerAddress"] + "\n" for n in ray.nodes() if n["Alive"]))' 2>/dev/null | sed -n 's/^node //p' |
    grep -vxFf - <(tr ' ' '\n' <<<"$ADDRESSES") | paste -sd ' ' || true
}
until absent="$(missing)" && [ -z "$absent" ]; do
  kill -0 "$cluster" 2>/dev/null || {
    echo 'the Ray cluster ended before all nodes had joined' >&2
    exit 1
  }
  [ "$SECONDS" -lt 600 ] || {
    echo "not all of 4 nodes joined the Ray cluster within 600 s; missing: $absent" >&2
    exit 1
  }
  sleep 2
done
podman exec "${NAME}" vllm serve meta-llama/Llama-3.1-405B-Instruct \
  --disable-log-requests \
  --distributed-executor-backend=ray \
  --host=0.0.0.0 \
  --pipeline-parallel-size=4 \
  --port=8000 \
  --served-model-name=meta-llama/Llama-3.1-405B-Instruct \
  --tensor-parallel-size=4 &
# Whichever ends first, the cluster or the server, ends this node, and with it the others.
wait -n "$cluster" $!
