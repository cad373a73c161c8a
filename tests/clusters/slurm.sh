#!/usr/bin/env bash
# slurm.sh start|stop DIR: a Slurm of one node with four CPUs, everything it writes is under DIR.
#
# For root on Debian; `start` installs the packages that are missing. Afterwards SLURM_CONF=DIR/slurm.conf is all that
# sbatch, squeue and scancel need. Memory limits hold where this machine lets root make version 1 control groups;
# DIR/limits says yes or no.
set -euo pipefail

action=${1:?start or stop} dir=$(realpath -m "${2:?a folder}")

install() {
    command -v slurmctld slurmd munged sbatch >/dev/null && return
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge
}

may_limit() {
    local group
    for group in memory freezer cpuset; do
        mkdir "/sys/fs/cgroup/$group/may_limit_$$" 2>/dev/null || return 1
        rmdir "/sys/fs/cgroup/$group/may_limit_$$"
    done
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

configure() {
    local tracking=proctrack/linuxproc task=task/none limits=no host
    if may_limit; then tracking=proctrack/cgroup task=task/cgroup limits=yes; fi
    host=$(hostname -s)
    echo $limits >"$dir/limits"
    printf 'CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n' >"$dir/cgroup.conf"
    cat >"$dir/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=$tracking
TaskPlugin=$task
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
OverTimeLimit=0
KillWait=3
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10
END
}

wait_until_idle() {
    local try
    for try in $(seq 300); do
        if [ "$(sinfo --noheader --partition=low --format=%T 2>/dev/null)" = idle ]; then return; fi
        sleep 0.1
    done
    tail -n 20 "$dir"/slurm*.log >&2
    return 1
}

start() {
    [ "$(id -u)" = 0 ] || { echo "a Slurm of its own needs root" >&2; exit 1; }
    install
    mkdir -p "$dir"/{munge,state,spool}
    chmod 711 "$dir/munge"
    (umask 077; head -c 128 /dev/urandom >"$dir/munge/key")
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    configure
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -c
    slurmd -c
    wait_until_idle
}

end() { # asks the process of a file to end, kills it where it has not within ten seconds
    local file=$1 pid try
    [ -f "$file" ] || return 0
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || return 0
    for try in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

stop() {
    export SLURM_CONF=$dir/slurm.conf
    local try
    scancel --user=root --full 2>/dev/null || true
    for try in $(seq 100); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.1
    done
    end "$dir/slurmctld.pid"
    end "$dir/slurmd.pid"
    end "$dir/munge/pid"
}

case $action in start | stop) $action ;; *) echo "start or stop, not $action" >&2; exit 2 ;; esac
