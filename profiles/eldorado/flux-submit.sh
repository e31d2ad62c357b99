#!/bin/sh
# flux-submit.sh NODES GPUS_PER_NODE CPUS_PER_NODE MINUTES OPTIONS NAME SCRIPT: submits a job, prints its id in decimal.
#
# OPTIONS is one word with more options of flux batch (queue, bank, --exclusive, --signal), as Berth quoted them.
# flux batch and not flux submit: the script runs once, in an instance of its own that has all nodes of the job, so that
# a server over several nodes is started inside by flux run. A slot is a node: as many slots as nodes.
set -eu
[ $# = 7 ] || { echo "flux-submit.sh: seven arguments are needed, not $#" >&2; exit 2; }
nodes=$1 gpus=$2 cpus=$3 minutes=$4 options=$5 name=$6 script=$7

logs=.snakemake/flux_logs
mkdir -p "$logs"
# Berth quoted OPTIONS for a shell.
eval "set -- $options"
# Without a unit Flux takes a number for minutes, but `m` says so. {{id}} is filled in by Flux.
set -- --nodes="$nodes" --nslots="$nodes" --cores-per-slot="$cpus" --time-limit="${minutes}m" \
    --job-name="berth-$name" --output="$logs/$name-{{id}}.log" "$@"
[ "$gpus" -eq 0 ] || set -- "$@" --gpus-per-slot="$gpus"
id=$(flux batch "$@" "$script")
# Flux prints f-prefixed base 58; Snakemake's next call reads the id from a file, and people type digits.
flux job id --to=dec "$id"
