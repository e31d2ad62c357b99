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

address() {
  getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }'
}
HEAD_ADDRESS="$(address "${HOSTS[0]}")"
export HEAD_ADDRESS
[ -n "$HEAD_ADDRESS" ] || {
  echo 'the name of the first node has no IPv4 address' >&2
  exit 1
}

exec srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --gres=gpu:4 --kill-on-bad-exit=1 bash /checkout/results/render/hops/llama31-405b-hops/node.sh
