#!/usr/bin/env bash
# down.sh DIR -- cancels every job of the private Slurm in DIR and ends its daemons by the process ids that up.sh noted.
set -uo pipefail
dir=$(cd "$1" && pwd) || exit 1
export SLURM_CONF="$dir/conf/slurm.conf"
# Without a controller its commands wait for a minute.
if [ -f "$dir/pid/slurmctld" ] && scontrol ping 2>/dev/null | grep -q "is UP"; then
    scancel --user="$(id -un)"
    for _ in $(seq 1 100); do
        [ -n "$(squeue -h -t running,completing 2>/dev/null)" ] || break
        sleep 0.1
    done
fi
# Nothing of their state is needed again, and asked to end they take seconds.
for file in "$dir"/pid/*; do
    [ -f "$file" ] || continue
    kill -KILL "$(cat "$file")" 2>/dev/null
    case $file in */slurmd-*) nodes="${nodes:-} ${file##*/slurmd-}" ;; esac
    rm -f "$file"
done
for node in ${nodes:-}; do
    rmdir "/sys/fs/cgroup/freezer/slurm_$node" 2>/dev/null
done
true
