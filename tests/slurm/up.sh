#!/usr/bin/env bash
# up.sh DIR [NODES [GPUS]] -- a private Slurm on this host, for tests: munged, slurmctld and several slurmd, all in DIR.
#
# No systemd, nothing in /etc. NODES (4) slurmd on ports of their own are nodes, each with GPUS (4) GPUs that are character
# devices like /dev/null. Nodes are called by the first port, because Slurm's cgroups are of the host and named after node
# and job: two clusters with equal names would end each other's jobs. SLURM_NODE_NAME gives another name before the number.
# SLURM_BASE_PORT: first of 20 ports. WITH_DBD=1: accounting by MariaDB and slurmdbd.
# DIR/bin holds Slurm's commands, bound to this cluster: put it first on PATH. Stop it with down.sh DIR. When the process
# SLURM_OWNER ends, by SIGKILL too, the cluster, all that its jobs and users started, and DIR go with it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd) nodes=${2:-4} gpus=${3:-4}
base=${SLURM_BASE_PORT:-26800}
name=${SLURM_NODE_NAME:-s${base}n} accounting=${WITH_DBD:-0}
host=$(hostname -s) user=$(id -un)
mkdir -p "$dir"/{bin,conf,dev,log,munge,pid,run,spool,state}
# munged refuses a key or folder that others may reach; jobs of any user must reach the rest.
chmod 755 "$dir"
chmod 700 "$dir/munge"
trap 'code=$?; [ $code = 0 ] || { tail -n 5 "$dir"/log/* >&2; "$here/down.sh" "$dir"; exit $code; }' EXIT

daemon() { # NAME COMMAND...: in the background, process id in pid/NAME, output in log/NAME.out
    local name=$1
    shift
    setsid "$@" >"$dir/log/$name.out" 2>&1 </dev/null &
    echo $! >"$dir/pid/$name"
}

until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "up.sh: not within its time: $*" >&2; return 1; }
        sleep 0.1
    done
}

write_configuration() {
    # With the cgroup plugin Slurm kills whatever a job left running, as real clusters do. It needs root and cgroup v1.
    local track=proctrack/linuxproc store='AccountingStorageType=accounting_storage/none'
    if [ "$(id -u)" = 0 ] && mkdir "/sys/fs/cgroup/freezer/berth_probe.$$" 2>/dev/null; then
        rmdir "/sys/fs/cgroup/freezer/berth_probe.$$"
        track=proctrack/cgroup
    fi
    if [ "$accounting" = 1 ]; then
        store="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((base + 1))
AccountingStoragePass=$dir/run/munge.socket
AccountingStorageEnforce=associations,limits,qos"
    fi
    {
        cat <<EOF
ClusterName=berth
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
PlugStackConfig=$dir/conf/plugstack.conf
MailProg=/bin/true
MpiDefault=none
ProctrackType=$track
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
# Several nodes on one small host: what it has is not what they say.
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,bf_interval=1
# squeue still knows a job for this long after its end.
MinJobAge=300
# A dead node is noticed in seconds; sites take minutes.
SlurmdTimeout=10
SlurmctldTimeout=10
# From TERM to KILL at the end of a job.
KillWait=10
JobRequeue=0
$store
EOF
        for number in $(seq 1 "$nodes"); do
            echo "NodeName=$name$number NodeHostname=$host NodeAddr=127.0.0.$((10 + number)) Port=$((base + 2 + number)) CPUs=4" \
                "RealMemory=16000 Gres=gpu:$gpus State=UNKNOWN"
        done
        echo "PartitionName=batch Nodes=$name[1-$nodes] Default=YES MaxTime=60 DefaultTime=5 State=UP"
    } >"$dir/conf/slurm.conf"
    for gpu in $(seq 0 $((gpus - 1))); do
        # Without the right to make devices a link to one does: Slurm looks at what it leads to.
        mknod "$dir/dev/gpu$gpu" c 1 3 2>/dev/null || ln -s /dev/null "$dir/dev/gpu$gpu"
    done
    [ "$gpus" = 0 ] || echo "NodeName=$name[1-$nodes] Name=gpu File=$dir/dev/gpu[0-$((gpus - 1))]" >"$dir/conf/gres.conf"
    printf 'CgroupAutomount=no\nCgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n' >"$dir/conf/cgroup.conf"
    : >"$dir/conf/plugstack.conf"
}

# The executor removes SLURM_* from the environment of a job's steps, and SLURM_CONF with it; PATH it leaves alone.
write_commands() {
    local command path
    for command in sbatch scancel scontrol sinfo squeue srun sacct sacctmgr; do
        path=$(command -v "$command") || continue
        printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$dir/conf/slurm.conf" "$path" >"$dir/bin/$command"
        chmod 755 "$dir/bin/$command"
    done
}

start_accounting() {
    local socket="$dir/run/mysql.sock"
    mariadb-install-db --no-defaults --auth-root-authentication-method=normal --skip-test-db --datadir="$dir/mysql" \
        --user="$user" >"$dir/log/mariadb-install.out" 2>&1
    daemon mariadbd mariadbd --no-defaults --user="$user" --datadir="$dir/mysql" --socket="$socket" \
        --pid-file="$dir/run/mysql.pid" --bind-address=127.0.0.1 --port=$((base + 2)) --innodb-buffer-pool-size=128M \
        --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --skip-log-bin
    until_true 30 mariadb-admin --no-defaults --socket="$socket" -u root ping
    mariadb --no-defaults --socket="$socket" -u root \
        -e "create database accounts; create user slurm@localhost identified by 'slurm'; grant all on accounts.* to slurm@localhost;
            create user slurm@127.0.0.1 identified by 'slurm'; grant all on accounts.* to slurm@127.0.0.1;"
    cat >"$dir/conf/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((base + 1))
SlurmUser=$user
LogFile=$dir/log/slurmdbd.log
PidFile=$dir/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((base + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounts
EOF
    chmod 600 "$dir/conf/slurmdbd.conf"
    daemon slurmdbd slurmdbd -D
    until_true 30 sacctmgr -n -i show cluster
    # One account that the user has, one that it has not, and a quality of service that it has not.
    {
        sacctmgr -i add cluster berth
        sacctmgr -i add qos short
        sacctmgr -i add account research,others cluster=berth
        sacctmgr -i add user "$user" account=research defaultaccount=research
    } >"$dir/log/sacctmgr.out"
}

follow_owner() {
    until ! kill -0 "$SLURM_OWNER"; do sleep 1; done 2>/dev/null
    rm -f "$dir/pid/follow"
    "$here/down.sh" "$dir"
    # Snakemake and its servers, known by the cluster in their environment.
    grep -lzs "^SLURM_CONF=$dir/" /proc/[0-9]*/environ | cut -d / -f 3 | xargs -r kill -KILL
    rm -rf "$dir"
}

head -c 1024 /dev/urandom >"$dir/munge/key"
chmod 600 "$dir/munge/key"
if [ -n "${SLURM_OWNER:-}" ]; then
    export -f follow_owner
    export dir here
    daemon follow bash -c follow_owner
fi
daemon munged munged --foreground --key-file="$dir/munge/key" --socket="$dir/run/munge.socket" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
until_true 10 munge -n --socket="$dir/run/munge.socket"
write_configuration
write_commands
export SLURM_CONF="$dir/conf/slurm.conf"
[ "$accounting" != 1 ] || start_accounting
daemon slurmctld slurmctld -D -i
until_true 20 sh -c 'scontrol ping | grep -q "is UP"'
for number in $(seq 1 "$nodes"); do
    daemon "slurmd-$name$number" slurmd -D -N "$name$number"
done
until_true 30 sh -c "[ \$(sinfo -h -N -t idle -o %N | sort -u | wc -l) = $nodes ]"
