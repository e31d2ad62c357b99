#!/usr/bin/env bash
# llama31-405b-hops: vllm 0.9.1 serves meta-llama/Llama-3.1-405B-Instruct on hops.
#
# Starts node.sh on each of 4 nodes. Stage model and image before it (stage.sh). settings.md says where each
# setting comes from, and why.
#
# Run it on the first node of a job:
#     salloc --nodes=4 --gres=gpu:4 --exclusive
#
# It is ready when http://127.0.0.1:8000/health answers 200 and a request to /v1/chat/completions returns a
# token.

set -euo pipefail

# Secrets come from the environment, and no value stands in a file or a command line.
: "${VLLM_API_KEY:?is not set; export a key of your own, such as openssl rand -hex 32 prints}"

[ -n "${SLURM_JOB_ID:-}" ] || {
  echo 'this is no job: salloc --nodes=4 --gres=gpu:4 --exclusive' >&2
  exit 1
}
mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#HOSTS[@]}" -eq 4 ] || {
  echo 'the job must have 4 nodes' >&2
  exit 1
}
NODES="$(printf '%s\n' "${HOSTS[@]:0:4}" | paste -sd ,)"

# Each node says at which address the others reach it, in the order of their ranks.
ADDRESSES="$(srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --gres=gpu:4 --nodelist="$NODES" bash /checkout/results/render/hops/llama31-405b-hops/node.sh address | sort -n | awk '{ print $2 }' | paste -sd " ")"
export ADDRESSES
[ "$(wc -w <<<"$ADDRESSES")" -eq 4 ] || {
  echo 'not every node has told its address' >&2
  exit 1
}

exec srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --gres=gpu:4 --nodelist="$NODES" --kill-on-bad-exit=1 bash /checkout/results/render/hops/llama31-405b-hops/node.sh
