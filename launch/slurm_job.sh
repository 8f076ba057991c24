#!/usr/bin/env bash
# The job of launch/slurm.sh. slurm_job.sh RESTARTS srun ... runs on the first host.
#
# SIGUSR1 comes before the time limit and, where the cluster is so set up, before a preemption: training saves, then the
# job is queued again. SIGTERM comes from scancel, and from a preemption after which SLURM itself queues the job again.
set -euo pipefail

readonly MISTAKE=2 # The command would fail again.
readonly JOB=${SLURM_JOB_ID:?error: this is the job of launch/slurm.sh} RESTARTS=$1
shift
again='' ended='' signalled=''
trap 'signalled=yes again=yes; scancel --signal=TERM "${JOB}"' USR1 # Reaches the processes of srun, not this shell.
trap 'signalled=yes ended=yes' TERM

"$@" &
while
  signalled=''
  wait "$!" && status=0 || status=$?
  [[ -n ${signalled} ]] # Which ended `wait` early.
do :; done

if [[ -z ${ended} && (-n ${again} || ${status} != 0) ]]; then
  if ((status == MISTAKE)); then
    echo "status ${status}: a mistake in the command, which would fail again"
  elif [[ -n ${again} ]] || ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
    echo "status ${status}: queued again"
    scontrol requeue "${JOB}"
  else
    echo "status ${status}: given up after ${RESTARTS} starts"
  fi
fi
exit "${status}"
