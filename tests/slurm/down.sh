#!/usr/bin/env bash
# down.sh DIR -- cancels every job of the private Slurm in DIR and stops its daemons by the process ids that up.sh noted.
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

stop() { # NAME...: TERM, up to three seconds, KILL
    local name pid
    for name; do
        [ ! -f "$dir/pid/$name" ] || kill -TERM "$(cat "$dir/pid/$name")" 2>/dev/null
    done
    for name; do
        [ -f "$dir/pid/$name" ] || continue
        pid=$(cat "$dir/pid/$name")
        for _ in $(seq 1 30); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null
        rm -f "$dir/pid/$name"
    done
}
stop $(cd "$dir/pid" && ls -d slurmd-* 2>/dev/null)
stop slurmctld
stop slurmdbd
stop mariadbd
stop munged
rmdir /sys/fs/cgroup/freezer/slurm_node* 2>/dev/null
true
