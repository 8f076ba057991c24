#!/usr/bin/env bash
# Training on the GPUs of a SLURM cluster, from its login node: one process for each GPU.
#
#   launch/slurm.sh droid --nodes=4 --gpus=8 --time=24:00:00 \
#     -- python -m wam_jax.train --distributed --config=configs/droid_14b.py --workdir=/shared/runs/droid_14b \
#     --config.data.root=/shared/data
#
# The job starts again, where training has saved, before its time limit, after a preemption and after a failure, but not
# after status 2, a mistake in the command. It installs nothing: it runs in the environment it is sent from, which has
# what the config needs, as `pip install -e '.[cuda13,umt5,lerobot]'` gives it; activate yours first. Its log is
# NAME-JOB.log. `scancel --full --signal=TERM JOB` lets training save and ends the job; `scancel JOB` may be too fast for
# it to save.
#
# Flags:
#   --nodes=N              hosts
#   --gpus=N               of each host
#   --cpus=N               of each GPU; default: the cluster's
#   --time=[D-]HH:MM:SS    limit of one start; default: the cluster's
#   --partition=NAME, --account=NAME, and anything else through sbatch's own variables (SBATCH_QOS=...)
#   --container=IMAGE      run in a container (pyxis), with the checkout in its place
#   --container_mounts=SRC:DST[,...]   more of the host's directories in it
#   --restarts=N           gives up at the first failure after N starts; default 50
#   --grace_s=SECONDS      before the time limit, for training to save; default 600
#   --logs=DIR             default: ~/wam_jax_logs
#   --dry_run              print the commands, run nothing
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

main() {
  [[ ! ${1:---help} =~ ^(--help|-h)$ ]] || print_help
  check_name 'the name of the job (the first word)' "$1"
  FLAGS+=([nodes]='' [gpus]='' [cpus]='' [time]='' [partition]='' [account]='' [container]='' [container_mounts]=''
    [restarts]=50 [grace_s]=600 [logs]="${HOME}/wam_jax_logs")
  parse_flags "${@:2}"
  check_flag nodes '[1-9][0-9]*' 'a number of hosts'
  check_flag gpus '[1-9][0-9]*' 'the number of GPUs of each host'
  check_flag cpus '([1-9][0-9]*)?' 'a number of cores'
  check_flag time '(([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2})?' '[D-]HH:MM:SS, as 24:00:00'
  check_flag restarts '[0-9]+' 'a number'
  check_flag grace_s '[1-9][0-9]*' 'a number of seconds'
  check_flag logs '/.*' 'an absolute path'
  [[ -z ${FLAGS[container_mounts]} || -n ${FLAGS[container]} ]] || die '--container_mounts needs --container.'
  check_command
  run mkdir -p "${FLAGS[logs]}"
  submit "$1"
}

# `srun` waits for all processes, whatever its defaults here: when one ends, the others may still be saving, and if it
# has crashed, JAX ends them.
submit() {
  local step=(srun --kill-on-bad-exit=0 --wait=0)
  [[ -z ${FLAGS[container]} ]] || step+=("--container-image=${FLAGS[container]}" "--container-workdir=${ROOT}"
    "--container-mounts=${ROOT}:${ROOT}${FLAGS[container_mounts]:+,${FLAGS[container_mounts]}}")
  run sbatch "--job-name=$1" "--nodes=${FLAGS[nodes]}" "--gpus-per-node=${FLAGS[gpus]}" \
    "--ntasks-per-node=${FLAGS[gpus]}" ${FLAGS[cpus]:+"--cpus-per-task=${FLAGS[cpus]}"} \
    ${FLAGS[time]:+"--time=${FLAGS[time]}"} ${FLAGS[partition]:+"--partition=${FLAGS[partition]}"} \
    ${FLAGS[account]:+"--account=${FLAGS[account]}"} --requeue "--signal=B:USR1@${FLAGS[grace_s]}" \
    "--output=${FLAGS[logs]}/%x-%j.log" --open-mode=append "--chdir=${ROOT}" \
    "${ROOT}/launch/slurm_job.sh" "${FLAGS[restarts]}" "${step[@]}" "${COMMAND[@]}"
}

main "$@"
