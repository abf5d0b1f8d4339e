#!/usr/bin/env bash
# A Slurm cluster of two simulated nodes on this machine, for tests: as root, without systemd.
#   scripts/start_slurm.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   scripts/start_slurm.sh stop FOLDER     ends the processes that start began, by their ids
# Needs Debian's packages: apt-get install slurm-wlm munge. Ports 17002 to 17004 must be free.
set -euo pipefail
verb=${1:?start or stop} folder=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd)

stop() {
  for name in node2 node1 slurmctld munged; do
    if [ -s "$folder/$name.pid" ]; then
      kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
      rm -f "$folder/$name.pid"
    fi
  done
}

start() {
  mkdir -p "$folder/state" "$folder/spool.node1" "$folder/spool.node2"
  head -c 1024 /dev/urandom > "$folder/munge.key"
  chmod 0600 "$folder/munge.key"
  # The socket's folder must be open to others, or munged refuses it.
  mkdir -p "$folder/munge" && chmod 0711 "$folder" "$folder/munge"
  cat > "$folder/slurm.conf" <<CONF
ClusterName=simulated
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=17002
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A task that is queued again waits until its credential has run out: 120 s by default.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1
DependencyParameters=kill_invalid_depend
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17003 CPUs=1 RealMemory=1000
NodeName=node2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=17004 CPUs=1 RealMemory=1000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF="$folder/slurm.conf"
  munged --force --key-file "$folder/munge.key" --socket "$folder/munge/socket" \
    --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
  slurmctld -c
  slurmd -c -N node1
  slurmd -c -N node2
  for _ in $(seq 60); do
    if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ]; then
      sinfo
      return
    fi
    sleep 0.5
  done
  echo "the nodes are not idle after 30 s; see $folder/*.log" >&2
  tail -n 5 "$folder"/*.log >&2
  stop
  return 1
}

"$verb"
