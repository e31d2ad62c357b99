#!/usr/bin/env bash
# What scout-w4a16-goodall needs on goodall, step by step. Berth's own rules do the same and verify every file
# by its SHA-256; this is for people who want to see it or to do it by hand.
#
#     bash stage.sh push     the model into s3://huggingface.co/RedHatAI/Llama-4-Scout-17B-16E-Instruct-quantized.w4a16, from the hub

set -euo pipefail

case "${1:-}" in
  push)
    # By Berth, because a model without its manifest in the store is not taken there.
    cd /checkout
    snakemake --cores 1 --config platform=goodall -- results/store/goodall/llama-4-scout-w4a16.json
    ;;
  *)
    echo "usage: bash stage.sh push" >&2
    exit 2
    ;;
esac
