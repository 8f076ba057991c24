#!/usr/bin/env bash
# Training on TPUs of a Kubernetes (GKE) cluster made by xpk, from your own machine.
#
#   launch/xpk.sh attach runs --cluster=CLUSTER --zone=us-east5-a --bucket=BUCKET --directory=/mnt/runs
#   launch/xpk.sh start droid --cluster=CLUSTER --zone=us-east5-a --tpu_type=v6e-256 --storage=runs \
#     -- python -m wam_jax.train --distributed --config=configs/droid_14b.py --workdir=/mnt/runs/droid_14b
#
#   attach   makes a Cloud Storage bucket a directory for workloads; NAME is that of the storage
#   start    builds an image of the checkout and starts the command as workload NAME, on every host
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
#   --storage=NAME        attached before, for --workdir
#   --image=IMAGE         runs in this image, which has the project; default: the checkout on python:3.12
#   --restarts=N          starts again after N preemptions or failures at most; default 50
#   --grace_s=SECONDS     between SIGTERM and SIGKILL, for training to save; default 600
#   --priority=LEVEL      very-low, low, medium (default), high or very-high
# of attach:
#   --bucket=BUCKET       without gs://
#   --directory=DIR       where workloads see it
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

TAKES=([attach]='bucket directory' [start]='tpu_type storage image restarts grace_s priority' [status]='' [watch]=''
  [delete]='')
DEFAULTS=([restarts]=50 [grace_s]=600 [priority]=medium)
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
  # Mounted as in launch/tpu_host.sh; --size is a formality.
  run xpk storage attach "${NAME}" --type=gcsfuse "--bucket=${FLAGS[bucket]}" "--mount-point=${FLAGS[directory]}" \
    --mount-options=implicit-dirs,file-system:rename-dir-limit:1000000,metadata-cache:ttl-secs:0 \
    --readonly=false --auto-mount=false --size=1 "${PLACE[@]}"
}

start_workload() {
  check_flag tpu_type '(v4|v5litepod|v5p|v6e)-[1-9][0-9]*|tpu7x-[1-9][0-9x]*' \
    'v4-N, v5litepod-N, v5p-N, v6e-N, tpu7x-N or tpu7x-AxBxC'
  check_flag restarts '[0-9]+' 'a number'
  check_flag grace_s '[1-9][0-9]*' 'a number of seconds'
  check_flag priority 'very-low|low|medium|high|very-high' 'very-low, low, medium, high or very-high'
  # `exec`, so that SIGTERM reaches the command itself.
  local command image=("--docker-image=${FLAGS[image]}")
  command="exec $(quote "${COMMAND[@]}")"
  if [[ -z ${FLAGS[image]} ]]; then
    image=(--base-docker-image=python:3.12 "--script-dir=${ROOT}")
    command="pip install --quiet --editable '.[tpu,gcs]' && ${command}"
  fi
  # Without 1 here, the status of a Python error and of a step that hangs, xpk gives up at the first of them.
  run xpk workload create "--workload=${NAME}" "${PLACE[@]}" "--tpu-type=${FLAGS[tpu_type]}" "${image[@]}" \
    ${FLAGS[storage]:+"--storage=${FLAGS[storage]}"} "--max-restarts=${FLAGS[restarts]}" --restart-on-exit-codes=1 \
    "--termination-grace-period-seconds=${FLAGS[grace_s]}" "--priority=${FLAGS[priority]}" "--command=${command}"
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
