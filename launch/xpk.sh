#!/usr/bin/env bash
# Training on TPUs of a Kubernetes (GKE) cluster made by xpk, from your own machine. docs/pods.md has every step.
#
#   launch/xpk.sh attach runs --cluster=CLUSTER --zone=us-east5-a --bucket=BUCKET --directory=/mnt/runs
#   launch/xpk.sh attach data --cluster=CLUSTER --zone=us-east5-a --bucket=BUCKET --directory=/mnt/data --data
#   launch/xpk.sh start droid --cluster=CLUSTER --zone=us-east5-a --tpu_type=v6e-256 --storage=runs,data \
#     -- python -m wam_jax.train --distributed --config=configs/droid_14b.py:v6e --workdir=/mnt/runs/droid_14b \
#     --config.data.root=/mnt/data
#
#   attach   makes a Cloud Storage bucket a directory for workloads; NAME is that of the storage
#   start    builds an image of the checkout and starts the command as workload NAME, on every host. Starts it again
#            after every preemption or failure but status 2, a mistake in the command
#   status   the workloads of this name
#   watch    follows the log of the first host until Ctrl-C
#   delete   deletes the workload; training saves first
#
# Flags of every command:
#   --cluster=CLUSTER     of xpk
#   --zone=ZONE           as us-east5-a
#   --project=PROJECT     default: that of gcloud
#   --dry_run             print the commands, run nothing
# of start:
#   --tpu_type=TYPE       v4-N, v5litepod-N, v5p-N, v6e-N, tpu7x-N or tpu7x-AxBxC, as xpk has them
#   --slices=N            N slices joined by the data-centre network, as one machine; default 1
#   --storage=NAME[,...]  attached before: for --workdir, for data
#   --extras=NAME[,...]   extras of setup.py to install beside those that all configs need, as wandb
#   --create_flags='FLAGS'  more flags of `xpk workload create`, as '--scheduler=NAME'
#   --image=IMAGE         runs in this image, which has the project and its extras; default: the checkout on
#                         python:3.12, installed at each start
#   --restarts=N          starts again after N preemptions or failures at most; default 50
#   --grace_s=SECONDS     between SIGTERM and SIGKILL, for training to save; default 600
#   --priority=LEVEL      very-low, low, medium (default), high or very-high
# of attach:
#   --bucket=BUCKET       without gs://
#   --directory=DIR       where workloads see it
#   --data                it no longer changes: read-only, with caches
#   --data_cache_gb=N     disk of each host for its cache, if the files that the run reads fit; as in launch/tpu.sh
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

TAKES=([attach]='bucket directory data data_cache_gb' [status]='' [watch]='' [delete]=''
  [start]='tpu_type slices storage image extras restarts grace_s priority create_flags')
DEFAULTS=([restarts]=50 [grace_s]=600 [priority]=medium [slices]=1 [data]=false)
COMMON=cluster RUNNING=start

main() {
  parse_command "$@"
  readonly NAME=$2
  check_name --cluster "${FLAGS[cluster]}"
  PLACE=("--cluster=${FLAGS[cluster]}" "--zone=${FLAGS[zone]}" ${FLAGS[project]:+"--project=${FLAGS[project]}"})
  "$1_workload"
}

attach_workload() {
  check_flag bucket '[a-z0-9][a-z0-9._-]+' 'the name of a bucket, without gs://'
  check_flag directory '/[A-Za-z0-9._/-]+' 'an absolute path, as /mnt/runs'
  check_flag data_cache_gb '([1-9][0-9]*)?' 'a number of gigabytes'
  # Mounted as in launch/tpu_host.sh; --size is a formality.
  local options=implicit-dirs,file-system:rename-dir-limit:1000000,metadata-cache:ttl-secs:0
  if [[ ${FLAGS[data]} == true ]]; then
    options=implicit-dirs,metadata-cache:ttl-secs:-1,metadata-cache:stat-cache-max-size-mb:-1
    options+=,metadata-cache:type-cache-max-size-mb:-1,file-cache:max-size-mb:$((${FLAGS[data_cache_gb]:-8} * 1024))
    [[ -z ${FLAGS[data_cache_gb]} ]] || options+=,file-cache:cache-file-for-range-read:true
  fi
  run xpk storage attach "${NAME}" --type=gcsfuse "--bucket=${FLAGS[bucket]}" "--mount-point=${FLAGS[directory]}" \
    "--mount-options=${options}" "--readonly=${FLAGS[data]}" --auto-mount=false --size=1 "${PLACE[@]}"
}

start_workload() {
  check_flag tpu_type '(v4|v5litepod|v5p|v6e)-[1-9][0-9]*|tpu7x-[1-9][0-9x]*' \
    'v4-N, v5litepod-N, v5p-N, v6e-N, tpu7x-N or tpu7x-AxBxC'
  check_flag restarts '[0-9]+' 'a number'
  check_flag grace_s '[1-9][0-9]*' 'a number of seconds'
  check_flag priority 'very-low|low|medium|high|very-high' 'very-low, low, medium, high or very-high'
  check_flag slices '[1-9][0-9]*' 'a number'
  check_flag storage '([a-z0-9-]+(,[a-z0-9-]+)*)?' 'names of storages, with commas'
  check_extras
  split_flags create_flags
  local storages=()
  IFS=, read -ra storages <<<"${FLAGS[storage]}"
  # `exec`, so that SIGTERM reaches the command itself.
  local command extras image=("--docker-image=${FLAGS[image]}")
  extras=$(list_extras tpu)
  command="exec $(quote "${COMMAND[@]}")"
  if [[ -z ${FLAGS[image]} ]]; then
    image=(--base-docker-image=python:3.12 "--script-dir=${ROOT}")
    command="pip install --quiet --editable '.[${extras}]' && ${command}"
  fi
  # xpk starts again after 42 and 127 to 255 by itself, and after 1, the status of a Python error and of a step that
  # hangs, if told so. At any other, such as 2, a mistake, it gives up.
  run xpk workload create "--workload=${NAME}" "${PLACE[@]}" "--tpu-type=${FLAGS[tpu_type]}" \
    "--num-slices=${FLAGS[slices]}" "${image[@]}" "${storages[@]/#/--storage=}" "--max-restarts=${FLAGS[restarts]}" \
    --restart-on-exit-codes=1 "--termination-grace-period-seconds=${FLAGS[grace_s]}" "--priority=${FLAGS[priority]}" \
    "${WORDS[@]}" "--command=${command}"
}

status_workload() {
  run xpk workload list "${PLACE[@]}" "--filter-by-job=${NAME}"
}

watch_workload() {
  run kubectl logs --follow --all-containers --tail=100 \
    "--selector=xpk.google.com/workload=${NAME},batch.kubernetes.io/job-completion-index=0"
}

delete_workload() {
  run xpk workload delete "--workload=${NAME}" "${PLACE[@]}" --force
}

main "$@"
