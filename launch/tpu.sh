#!/usr/bin/env bash
# Training on slices of Cloud TPU machines (v4, v5e, v5p, v6e), from your own machine. docs/pods.md has every step.
#
#   launch/tpu.sh run NAME --zone=us-east5-a --accelerator=v5p-128 --capacity=spot \
#     --mount=BUCKET:/mnt/runs --data_mount=BUCKET:/mnt/data \
#     -- python -m wam_jax.train --distributed --config=configs/droid_14b.py --workdir=/mnt/runs/droid_14b \
#     --config.data.root=/mnt/data
#
# The interface behind it (queued resources of the Cloud TPU API) is frozen by Google: it has no tpu7x and gets none.
# There, and where quota is of Compute Engine, use launch/xpk.sh.
#
#   check    whether the command would start on such a slice and fit it, found out here, before anything is asked for,
#            in an environment with exactly what its hosts install. Needs uv, and your own access to the buckets
#   run      all of it: create, sync, start, again after every preemption or failure, and delete when done. Not again
#            after status 2, a mistake in the command: that would fail again
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
#   --slices=N                  N slices joined by the data-centre network, as one machine; default 1
#   --dry_run                   print the commands, run nothing
# of check, run and create:
#   --accelerator=TYPE          of each slice: v4-N or v5p-N (N cores, two a chip), v5litepod-N or v6e-N (N chips)
# of run and create:
#   --capacity=KIND             on_demand (default), spot or reserved
#   --runtime_version=VERSION   default: that for JAX
#   --create_flags='FLAGS'      more flags of `gcloud compute tpus queued-resources create`, as '--network=NET
#                               --subnetwork=NET --internal-ips --service-account=ACCOUNT --labels=team=robots'
# of check, run and sync:
#   --mount=BUCKET:/mnt/DIR     a Cloud Storage bucket as a directory, for runs; several with commas
#   --data_mount=BUCKET:/mnt/DIR  the same for what no longer changes: read-only, with caches
#   --data_cache_gb=N           disk of each host for the cache of each --data_mount, if the files that the run reads
#                               fit: each is then fetched whole, once. Default: 8, and only files that are read
#                               from their beginning are kept
#   --extras=NAME[,...]         extras of setup.py to install beside those that all configs need, as wandb
# of run and sync:
#   --ref=COMMIT                what to send; default: the last commit, which must have everything
# of run:
#   --attempts=N                gives up after N failures in a row, each within ten minutes; default 10
#   --keep                      does not delete the slice
# of watch and logs:
#   --worker=N                  the host, 0 by default, or all
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

# While a slice is held, pauses are doubled twice only: they are paid for.
readonly POLL_S=30 FIRST_PAUSE_S=30 DOUBLINGS=5 DOUBLINGS_HELD=2 QUICK_FAILURE_S=600
readonly ON_HOST=wam_jax/launch/tpu_host.sh MISTAKE=2
CREATE='accelerator capacity runtime_version create_flags'
INSTALL='mount data_mount data_cache_gb extras'
TAKES=([check]="accelerator ${INSTALL}" [run]="${CREATE} ${INSTALL} ref attempts keep" [create]=${CREATE}
  [sync]="${INSTALL} ref" [start]='' [status]='' [watch]=worker [logs]=worker [stop]='' [delete]='')
DEFAULTS=([capacity]=on_demand [attempts]=10 [worker]=0 [iap]=false [keep]=false [slices]=1)
COMMON='iap slices' RUNNING='check run start'
MOUNTS=() DATA_MOUNTS=() WORDS=() NODES=()

main() {
  parse_command "$@"
  readonly NAME=$2 SCRATCH=${TMPDIR:-/tmp}/wam_jax.$2
  readonly ARCHIVE=${SCRATCH}.tar.gz HOST_LOGS=${SCRATCH}.log ERRORS=${SCRATCH}.errors
  PLACE=("--zone=${FLAGS[zone]}" ${FLAGS[project]:+"--project=${FLAGS[project]}"} --quiet)
  REACH=("${PLACE[@]}") # The hosts, not the slice.
  [[ ${FLAGS[iap]} == false ]] || REACH+=(--tunnel-through-iap)
  [[ ! -v FLAGS[accelerator] ]] || check_accelerator
  [[ ! -v FLAGS[capacity] ]] || check_flag capacity 'on_demand|spot|reserved' 'on_demand, spot or reserved'
  [[ ! -v FLAGS[attempts] ]] || check_flag attempts '[1-9][0-9]*' 'at least 1'
  [[ ! -v FLAGS[worker] ]] || check_flag worker '[0-9]+|all' "the number of a host, or 'all'"
  [[ ! -v FLAGS[create_flags] ]] || check_create_flags
  [[ ! -v FLAGS[mount] ]] || check_mounts
  [[ ! -v FLAGS[extras] ]] || check_extras
  check_slices
  [[ $1 != @(run|check) ]] || check_workdir
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
    tpu7x-*) die "--accelerator=${type}: the Cloud TPU API has no tpu7x; use Kubernetes: launch/xpk.sh." ;;
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

# Each slice of several is a node of its own name.
check_slices() {
  check_flag slices '[1-9][0-9]*' 'a number'
  local number
  NODES=("${NAME}")
  ((FLAGS[slices] == 1)) || for ((number = 0; number < FLAGS[slices]; number++)); do
    NODES[number]=${NAME}-${number}
  done
}

check_create_flags() {
  split_flags create_flags
  local word
  for word in "${WORDS[@]}"; do
    [[ ! ${word} =~ ^--(node-id|node-count|node-prefix|accelerator-type|runtime-version|spot|reserved|zone|project)(=|$) ]] ||
      die "--create_flags: ${word} is set by a flag of this script. See --help."
  done
}

check_mounts() {
  split_mounts mount MOUNTS
  split_mounts data_mount DATA_MOUNTS
  check_flag data_cache_gb '([1-9][0-9]*)?' 'a number of gigabytes'
}

# split_mounts FLAG ARRAY
split_mounts() {
  local mount
  local -n into=$2
  IFS=, read -ra into <<<"${FLAGS[$1]}"
  for mount in "${into[@]}"; do
    [[ ${mount} =~ ^[a-z0-9][a-z0-9._-]+:/[A-Za-z0-9._/-]+$ ]] ||
      die "--$1=${mount} must be BUCKET:/mnt/DIR: a bucket without gs://, and an absolute path."
  done
}

# A new slice has nothing but what is mounted.
check_workdir() {
  runs wam_jax.train || return 0
  local workdir mount
  workdir=$(find_argument workdir)
  [[ ${workdir} != gs://* ]] || return 0
  for mount in "${MOUNTS[@]}"; do
    [[ ${workdir} != "${mount#*:}"/* ]] || return 0
  done
  for mount in "${DATA_MOUNTS[@]}"; do
    [[ ${workdir} != "${mount#*:}"/* ]] || die "--workdir=${workdir} is below a --data_mount, which is read-only."
  done
  die "--workdir=${workdir} must be gs://BUCKET/DIR or below the DIR of a --mount=BUCKET:DIR; hosts lose their disks."
}

check_slice() {
  [[ ${COMMAND[*]:0:2} == 'python -m' ]] || die "'check' understands commands that begin with python -m."
  is_dry || command -v uv >/dev/null || die "'check' needs uv: https://docs.astral.sh/uv, or pip install uv."
  local environment=${SCRATCH}.env extras place
  local python=${environment}/bin/python
  extras=$(list_extras tpu)
  place=$(uname -sm)
  # Elsewhere there is no libtpu, the compiler of TPUs.
  [[ ${place} == 'Linux x86_64' ]] || extras=${extras#tpu,}
  cd "${ROOT}"
  run uv venv --quiet --allow-existing --python=3.12 "${environment}"
  run uv pip install --quiet "--python=${python}" --editable ".[${extras}]"
  if ! runs wam_jax.train; then
    run "${python}" "${COMMAND[@]:1}" --only_check_args
    say "'${COMMAND[*]:0:3}' can be installed and takes these flags; what they name is looked at by the command itself."
    return
  fi
  check_training "${python}"
  if [[ ${extras} == tpu,* ]]; then
    check_fit "${python}"
  else
    say "whether it fits the chips is not known on ${place}: python -m wam_jax.compile tells on Linux"
  fi
}

# The command's own checks, with what hosts have mounted where it really lies.
check_training() {
  local mounts="${MOUNTS[*]} ${DATA_MOUNTS[*]}"
  read -r mounts <<<"${mounts}"
  run "$1" -m wam_jax.check "${COMMAND[@]:3}" "--topology=${FLAGS[accelerator]}" "--slices=${FLAGS[slices]}" \
    ${mounts:+"--mounts=${mounts// /,}"}
}

check_fit() {
  local word config=()
  for word in "${COMMAND[@]}"; do
    [[ ${word} != --config* ]] || config+=("${word}")
  done
  run "$1" -m wam_jax.compile "${config[@]}" "--topology=${FLAGS[accelerator]}" --plan
}

create_slice() {
  request_slice
  wait_until_ready || die "slice ${NAME} is ${STATE}; delete it and try again later."
}

request_slice() {
  local capacity=() nodes=("--node-id=${NAME}")
  [[ ${FLAGS[capacity]} == on_demand ]] || capacity=("--${FLAGS[capacity]}")
  ((FLAGS[slices] == 1)) || nodes=("--node-count=${FLAGS[slices]}" "--node-prefix=${NAME}")
  run gcloud compute tpus queued-resources create "${NAME}" "${nodes[@]}" \
    "--accelerator-type=${FLAGS[accelerator]}" "--runtime-version=${FLAGS[runtime_version]}" \
    "${capacity[@]}" "${WORDS[@]}" "${PLACE[@]}"
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
  local node
  describe queued-resources "${NAME}" state.state
  [[ ${STATE} == ACTIVE ]] || return 0
  for node in "${NODES[@]}"; do
    describe tpu-vm "${node}" state
    # Their names come from --slices, which may be forgotten: no reason to delete anything.
    [[ ${STATE} != ABSENT ]] || STATE="ACTIVE, without a machine ${node}"
    [[ ${STATE} == READY ]] || return 0
  done
}

# Warnings of gcloud go to stderr; only stdout is the answer.
describe() {
  local words=(gcloud compute tpus "$1" describe "$2" "${PLACE[@]}" "--format=value($3)")
  if is_dry; then
    quote "${words[@]}"
    [[ $1 == tpu-vm ]] && STATE=READY || STATE=ACTIVE
  elif STATE=$("${words[@]}" 2>"${ERRORS}" </dev/null); then
    : "${STATE:=UNKNOWN}"
  elif grep --quiet NOT_FOUND "${ERRORS}"; then
    STATE=ABSENT
  else
    say "$(tail --lines=1 "${ERRORS}")"
    STATE=UNKNOWN
  fi
}

# Whether the slice is gone for good, and only its request is left. A state that is not known here is waited for.
is_over() {
  [[ ${STATE} =~ ^(FAILED|SUSPENDED|PREEMPTED|TERMINATED)$ ]]
}

is_coming() {
  [[ ${STATE} != @(READY|ABSENT) ]] && ! is_over
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
  run gcloud compute tpus queued-resources scp "${ARCHIVE}" "${NAME}:wam_jax.tar.gz" --node=all --worker=all \
    "${REACH[@]}" &&
    remotely all "rm -rf wam_jax && tar -xzf wam_jax.tar.gz && $(quote_setup)"
}

quote_setup() {
  local extras mount setup=()
  extras=$(list_extras tpu)
  for mount in "${DATA_MOUNTS[@]}"; do
    setup+=("data:${FLAGS[data_cache_gb]}:${mount}")
  done
  quote "${ON_HOST}" setup "${extras}" "${MOUNTS[@]/#/runs:}" "${setup[@]}"
}

start_slice() {
  on_hosts all start "${COMMAND[@]}"
}

# on_hosts WORKER WORD ...: a command of launch/tpu_host.sh.
on_hosts() {
  remotely "$1" "$(quote "${ON_HOST}" "${@:2}")"
}

# One host is of the first slice, all are of all.
remotely() {
  local node=0
  [[ $1 != all ]] || node=all
  run gcloud compute tpus queued-resources ssh "${NAME}" "--node=${node}" "--worker=$1" "${REACH[@]}" "--command=$2"
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
  MISTAKEN=''
  pack # Once: every start of this run has the same code.
  local failures=0 began
  while true; do
    began=${SECONDS}
    if get_started && follow; then
      say 'done'
      break
    fi
    [[ -z ${MISTAKEN} ]] || break
    ((SECONDS - began < QUICK_FAILURE_S)) || failures=0
    ((++failures < FLAGS[attempts])) || break
    pause "${failures}"
  done
  [[ ${FLAGS[keep]} == true ]] || delete_slice
  [[ -z ${MISTAKEN} ]] || die "the command would fail again (status ${MISTAKE}): ${MISTAKEN}"
  ((failures < FLAGS[attempts])) || die "gave up after ${failures} failures in a row."
}

# pause FAILURES: so many in a row.
pause() {
  local most=${DOUBLINGS} seconds
  [[ ${STATE} != READY ]] || most=${DOUBLINGS_HELD}
  seconds=$((FIRST_PAUSE_S << ($1 - 1 > most ? most : $1 - 1)))
  say "again in ${seconds} s"
  sleep "${seconds}"
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
  if is_over; then
    say "slice ${NAME}: ${STATE}; deleting it"
    delete_slice || return
    STATE=ABSENT
  fi
  if [[ ${STATE} == ABSENT ]]; then
    say "slice ${NAME}: asking for ${FLAGS[accelerator]}, ${FLAGS[capacity]}, ${FLAGS[slices]} of them"
    request_slice || return
  fi
  wait_until_ready || return
  if ask_hosts && ! hosts_say 'none|exit [0-9]+'; then
    hosts_say running || return
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

# Returns 0 when the command has ended with status 0 on every host; 1 when it has to be started again or, if MISTAKEN
# says why, cannot be.
follow() {
  local before=''
  while sleep "${POLL_S}"; do
    find_state
    if is_coming; then
      continue
    elif [[ ${STATE} != READY ]]; then
      say "slice ${NAME}: ${STATE}"
      return 1
    elif ask_hosts && hosts_say 'exit 0' && ! hosts_say 'running|none|exit [1-9][0-9]*'; then
      return 0
    elif hosts_say 'none|exit [1-9][0-9]*'; then
      on_hosts all logs >"${HOST_LOGS}" 2>/dev/null || true
      say "the command failed; the last lines of all hosts are in ${HOST_LOGS}"
      ! hosts_say "exit ${MISTAKE}" || MISTAKEN=$(find_error)
      return 1
    elif [[ ${HOSTS%%$'\n'*} != "${before}" ]]; then
      before=${HOSTS%%$'\n'*}
      say "${before}"
    fi
  done
}

find_error() {
  grep 'error: ' "${HOST_LOGS}" | tail --lines=1 || echo "see ${HOST_LOGS}"
}

main "$@"
