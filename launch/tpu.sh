#!/usr/bin/env bash
# Training on a slice of Cloud TPU machines (v4, v5e, v5p, v6e), from your own machine.
#
#   launch/tpu.sh run NAME --zone=us-east5-a --accelerator=v5p-128 --capacity=spot --mount=BUCKET:/mnt/runs \
#     -- python -m wam_jax.train --distributed --config=configs/droid_14b.py --workdir=/mnt/runs/droid_14b
#
#   run      all of it: create, sync, start, again after every preemption or failure, and delete when done
#   create   asks for the slice NAME and waits until it is there
#   sync     sends the checkout to every host, installs it, mounts buckets
#   start    starts the command on every host
#   status   the state of the slice, and of the command on every host
#   watch    follows the log of a host until Ctrl-C
#   logs     the last lines of the log of a host
#   stop     SIGTERM on every host; returns when training has saved (first Ctrl-C a `run`, which would start it again)
#   delete   deletes the slice, or the request for it
#
# Flags of every command:
#   --zone=ZONE                 as us-east5-a
#   --project=PROJECT           default: that of gcloud
#   --iap                       reach hosts that have no public address through Identity-Aware Proxy
#   --dry_run                   print the commands, run nothing
# of run and create:
#   --accelerator=TYPE          v4-N or v5p-N (N cores, two a chip), v5litepod-N or v6e-N (N chips)
#   --capacity=KIND             on_demand (default), spot or reserved
#   --runtime_version=VERSION   default: that for JAX
# of run and sync:
#   --mount=BUCKET:/mnt/DIR     a Cloud Storage bucket as a directory; several with commas
#   --ref=COMMIT                what to send; default: the last commit, which must have everything
# of run:
#   --attempts=N                gives up after N failures in a row, each within ten minutes; default 10
#   --keep                      does not delete the slice
# of watch and logs:
#   --worker=N                  the host, 0 by default, or all
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

readonly POLL_S=30 FIRST_PAUSE_S=30 DOUBLINGS=5 QUICK_FAILURE_S=600 ON_HOST=wam_jax/launch/tpu_host.sh
TAKES=([run]='accelerator capacity runtime_version mount ref attempts keep' [sync]='mount ref' [watch]=worker
  [create]='accelerator capacity runtime_version' [start]='' [status]='' [logs]=worker [stop]='' [delete]='')
DEFAULTS=([capacity]=on_demand [attempts]=10 [worker]=0 [iap]=false [keep]=false)
COMMON=iap RUNNING='run start'

main() {
  parse_command "$@"
  readonly NAME=$2 ARCHIVE=${TMPDIR:-/tmp}/wam_jax.$2.tar.gz HOST_LOGS=${TMPDIR:-/tmp}/wam_jax.$2.log
  PLACE=("--zone=${FLAGS[zone]}" ${FLAGS[project]:+"--project=${FLAGS[project]}"} --quiet)
  REACH=("${PLACE[@]}") # The hosts, not the slice.
  [[ ${FLAGS[iap]} == false ]] || REACH+=(--tunnel-through-iap)
  [[ ! -v FLAGS[accelerator] ]] || check_accelerator
  [[ ! -v FLAGS[capacity] ]] || check_flag capacity 'on_demand|spot|reserved' 'on_demand, spot or reserved'
  [[ ! -v FLAGS[attempts] ]] || check_flag attempts '[1-9][0-9]*' 'at least 1'
  [[ ! -v FLAGS[worker] ]] || check_flag worker '[0-9]+|all' "the number of a host, or 'all'"
  [[ ! -v FLAGS[mount] ]] || check_mounts
  [[ $1 != run ]] || check_workdir
  "$1_slice"
}

check_accelerator() {
  local type=${FLAGS[accelerator]} version sizes='1|4|8|16|32|64|128|256'
  case ${type} in
    v4-*) version=tpu-ubuntu2204-base sizes='' ;;
    v5p-*) version=v2-alpha-tpuv5 sizes='' ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5e-*) die "--accelerator=${type}: Cloud TPU calls it v5litepod-${type#v5e-}." ;;
    tpu7x-*) die "--accelerator=${type} is for Kubernetes only: launch/xpk.sh." ;;
    *) die "--accelerator=${type} must be v4-N, v5litepod-N, v5p-N or v6e-N." ;;
  esac
  if [[ -n ${sizes} ]]; then
    check_flag accelerator "${type%-*}-(${sizes})" "${type%-*}-N with N one of ${sizes//|/, } chips"
  else
    check_flag accelerator "${type%-*}-[1-9][0-9]*" "${type%-*}-N with N the number of cores"
    ((${type#*-} % 8 == 0)) || die "--accelerator=${type}: a host has 8 cores, so N must be a multiple of 8."
  fi
  : "${FLAGS[runtime_version]:=${version}}"
}

check_mounts() {
  local mount
  IFS=, read -ra MOUNTS <<<"${FLAGS[mount]}"
  for mount in "${MOUNTS[@]}"; do
    [[ ${mount} =~ ^[a-z0-9][a-z0-9._-]+:/[A-Za-z0-9._/-]+$ ]] ||
      die "--mount=${mount} must be BUCKET:/mnt/DIR: a bucket without gs://, and an absolute path."
  done
}

# A new slice has nothing but what is mounted.
check_workdir() {
  is_training || return 0
  local workdir mount
  workdir=$(find_argument workdir)
  [[ ${workdir} != gs://* ]] || return 0
  for mount in "${MOUNTS[@]}"; do
    [[ ${workdir} != "${mount#*:}"/* ]] || return 0
  done
  die "--workdir=${workdir} must be gs://BUCKET/DIR or below the DIR of a --mount=BUCKET:DIR; hosts lose their disks."
}

create_slice() {
  request_slice
  wait_until_ready || die "slice ${NAME} is ${STATE}; delete it and try again later."
}

request_slice() {
  local capacity=()
  [[ ${FLAGS[capacity]} == on_demand ]] || capacity=("--${FLAGS[capacity]}")
  run gcloud compute tpus queued-resources create "${NAME}" "--node-id=${NAME}" \
    "--accelerator-type=${FLAGS[accelerator]}" "--runtime-version=${FLAGS[runtime_version]}" \
    "${capacity[@]}" "${PLACE[@]}"
}

# Returns 1 when the request has come to nothing.
wait_until_ready() {
  note "every ${POLL_S} s until ACTIVE and READY:"
  local before=''
  find_state
  while is_coming; do
    [[ ${STATE} == "${before}" ]] || say "slice ${NAME}: ${STATE}"
    before=${STATE}
    sleep "${POLL_S}"
    find_state
  done
  [[ ${STATE} == READY ]]
}

# Sets STATE: that of the request; once it is ACTIVE, that of the machines. ABSENT if there is no request, UNKNOWN if
# gcloud cannot tell.
find_state() {
  describe queued-resources state.state
  [[ ${STATE} == ACTIVE ]] || return 0
  describe tpu-vm state
  [[ ${STATE} != ABSENT ]] || STATE=DELETED
}

describe() {
  local words=(gcloud compute tpus "$1" describe "${NAME}" "${PLACE[@]}" "--format=value($2)") answer
  if is_dry; then
    quote "${words[@]}"
    [[ $1 == tpu-vm ]] && STATE=READY || STATE=ACTIVE
  elif answer=$("${words[@]}" 2>&1 </dev/null); then
    STATE=${answer##*$'\n'}
  elif [[ ${answer} == *NOT_FOUND* ]]; then
    STATE=ABSENT
  else
    say "${answer##*$'\n'}"
    STATE=UNKNOWN
  fi
}

is_coming() {
  [[ ${STATE} =~ ^(CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING|STARTING|RESTARTING|REPAIRING|UNKNOWN)$ ]]
}

sync_slice() {
  pack && send
}

pack() {
  local changed=''
  is_dry || [[ -n ${FLAGS[ref]} ]] || changed=$(git -C "${ROOT}" status --porcelain)
  [[ -z ${changed} ]] || die $'these changes would not be sent:\n'"${changed}"$'\nCommit them, or pass --ref=HEAD.'
  run git -C "${ROOT}" archive --format=tar.gz --prefix=wam_jax/ "--output=${ARCHIVE}" "${FLAGS[ref]:-HEAD}"
}

send() {
  run gcloud compute tpus queued-resources scp "${ARCHIVE}" "${NAME}:wam_jax.tar.gz" --worker=all "${REACH[@]}" &&
    remotely all "rm -rf wam_jax && tar -xzf wam_jax.tar.gz && $(quote "${ON_HOST}" setup "${MOUNTS[@]}")"
}

start_slice() {
  on_hosts all start "${COMMAND[@]}"
}

# on_hosts WORKER WORD ...: a command of launch/tpu_host.sh.
on_hosts() {
  remotely "$1" "$(quote "${ON_HOST}" "${@:2}")"
}

remotely() {
  run gcloud compute tpus queued-resources ssh "${NAME}" "--worker=$1" "${REACH[@]}" "--command=$2"
}

status_slice() {
  find_state
  is_dry || echo "slice ${NAME}: ${STATE}"
  [[ ${STATE} != READY ]] || on_hosts all status
}

watch_slice() {
  on_hosts "${FLAGS[worker]}" logs follow
}

logs_slice() {
  on_hosts "${FLAGS[worker]}" logs
}

stop_slice() {
  on_hosts all stop
}

delete_slice() {
  run gcloud compute tpus queued-resources delete "${NAME}" --force "${PLACE[@]}"
}

run_slice() {
  if is_dry; then
    rehearse
    return
  fi
  trap leave INT TERM
  pack # Once: every start of this run has the same code.
  local failures=0 pause began
  while true; do
    began=${SECONDS}
    if get_started && follow; then
      say 'done'
      break
    fi
    ((SECONDS - began < QUICK_FAILURE_S)) || failures=0
    ((++failures < FLAGS[attempts])) || break
    pause=$((FIRST_PAUSE_S << (failures > DOUBLINGS ? DOUBLINGS : failures - 1)))
    say "again in ${pause} s"
    sleep "${pause}"
  done
  [[ ${FLAGS[keep]} == true ]] || delete_slice
  ((failures < FLAGS[attempts])) || die "gave up after ${failures} failures in a row."
}

rehearse() {
  pack
  request_slice
  wait_until_ready
  send
  start_slice
  note "every ${POLL_S} s; after a preemption delete and create, after a failure stop, then send and start again:"
  find_state
  on_hosts all status
  if [[ ${FLAGS[keep]} == false ]]; then
    note 'when the command has ended with status 0 on every host:'
    delete_slice
  fi
}

leave() {
  say "slice ${NAME} is left as it is. The same command continues here; launch/tpu.sh stop or delete ends it."
  exit 130
}

# Returns 0 when the command runs on every host.
get_started() {
  find_state
  if [[ ${STATE} != @(READY|ABSENT) ]] && ! is_coming; then
    say "slice ${NAME}: ${STATE}; deleting it"
    delete_slice || return
    STATE=ABSENT
  fi
  if [[ ${STATE} == ABSENT ]]; then
    say "slice ${NAME}: asking for ${FLAGS[accelerator]}, ${FLAGS[capacity]}"
    request_slice || return
  fi
  wait_until_ready || return
  if ask_hosts && ! hosts_say 'none|exit [0-9]+'; then
    say 'the command is running already'
  else
    ! hosts_say running || stop_slice || return
    say "slice ${NAME}: READY, sending the checkout"
    send && start_slice
  fi
}

# Sets HOSTS, a line for each host; returns 1 if one did not answer.
ask_hosts() {
  HOSTS=$(on_hosts all status 2>/dev/null | sort)
}

hosts_say() {
  grep --quiet --extended-regexp "^($1) on " <<<"${HOSTS}"
}

# Returns 0 when the command has ended with status 0 on every host, 1 when it has to be started again.
follow() {
  local before=''
  while sleep "${POLL_S}"; do
    find_state
    if is_coming; then
      continue
    elif [[ ${STATE} != READY ]]; then
      say "slice ${NAME}: ${STATE}"
      return 1
    elif ask_hosts && ! hosts_say 'running|none|exit [1-9][0-9]*'; then
      return 0
    elif hosts_say 'none|exit [1-9][0-9]*'; then
      on_hosts all logs >"${HOST_LOGS}" 2>/dev/null || true
      say "the command failed; the last lines of all hosts are in ${HOST_LOGS}"
      return 1
    elif [[ ${HOSTS%%$'\n'*} != "${before}" ]]; then
      before=${HOSTS%%$'\n'*}
      say "${before}"
    fi
  done
}

main "$@"
