#!/usr/bin/env bash
# Runs on each host of a TPU slice, where launch/tpu.sh calls it; the checkout is ~/wam_jax, the environment ~/venv.
#
#   setup EXTRAS [MOUNT ...]      installs the checkout with these extras and mounts buckets, each as
#                                 runs:BUCKET:/mnt/DIR or data:[CACHE_GB]:BUCKET:/mnt/DIR
#   start COMMAND ...             runs a command in the background, one at a time
#   status                        running, and the last line of the log; exit N; or none
#   logs [follow]                 the end of the log
#   stop                          SIGTERM, then waits: training saves first
set -euo pipefail

readonly RUN=${HOME}/wam_jax_run # lock (held while the command lives), pid, exit (its status), log.
readonly GRACE_S=600
cd "$(dirname "$0")/.."
mkdir -p "${RUN}"
# The command inherits the lock, so the kernel knows whether it lives, whatever happened to this shell or the machine.
[[ ${1-} == supervise ]] || exec 9>>"${RUN}/lock"

# The TPU images bring Python 3.10; uv brings a newer one.
setup() {
  python3 -m pip install --quiet --user uv
  local uv=${HOME}/.local/bin/uv mount
  "${uv}" venv --quiet --allow-existing --python=3.12 "${HOME}/venv"
  "${uv}" pip install --quiet --python="${HOME}/venv/bin/python" --editable ".[$1]"
  for mount in "${@:2}"; do
    command -v gcsfuse >/dev/null || install_gcsfuse
    mount_bucket "${mount}"
  done
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt release
  release=$(lsb_release --codename --short)
  curl --fail --silent --show-error "${packages}/doc/apt-key.gpg" | sudo tee "${key}" >/dev/null
  echo "deb [signed-by=${key}] ${packages} gcsfuse-${release} main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update --quiet=2
  sudo apt-get install --quiet=2 --yes -o DPkg::Lock::Timeout=600 gcsfuse # A new machine may still update itself.
}

mount_bucket() {
  local kind cache_gb=8 bucket directory flags=(--implicit-dirs)
  case $1 in
    runs:*) IFS=: read -r kind bucket directory <<<"$1" ;;
    data:*) IFS=: read -r kind cache_gb bucket directory <<<"$1" ;;
    *) fail "'$1' must be runs:BUCKET:DIR or data:[CACHE_GB]:BUCKET:DIR." ;;
  esac
  ! mountpoint --quiet "${directory}" || return 0
  if [[ ${kind} == runs ]]; then
    # Complete checkpoints are renamed, and every host must see them at once: no metadata is cached. Said explicitly,
    # because gcsfuse would keep it for ever on machines that it knows as those of TPUs.
    flags+=(--rename-dir-limit=1000000 --metadata-cache-ttl-secs=0)
  else
    flags+=(-o ro --metadata-cache-ttl-secs=-1 --stat-cache-max-size-mb=-1 --type-cache-max-size-mb=-1
      "--cache-dir=${HOME}/.cache/wam_jax_mounts/${bucket}" "--file-cache-max-size-mb=$((${cache_gb:-8} * 1024))")
    # Windows are read from the middle of a shard. To fetch all of it then pays only where it stays.
    [[ -z ${cache_gb} ]] || flags+=(--file-cache-cache-file-for-range-read)
  fi
  sudo install --directory --owner="${UID}" "${directory}"
  gcsfuse "${flags[@]}" "${bucket}" "${directory}"
}

start() {
  flock --nonblock 9 || fail 'a command is still running; stop it first.'
  rm -f "${RUN}/exit"
  printf '\n%(%F %T)T %s\n' -1 "$*" >>"${RUN}/log"
  setsid launch/tpu_host.sh supervise "$@" </dev/null >>"${RUN}/log" 2>&1 &
}

# What `start` leaves in the background.
supervise() {
  local code=0
  PATH=${HOME}/venv/bin:${PATH} "$@" &
  echo "$!" >"${RUN}/pid"
  wait "$!" || code=$?
  echo "${code}" >"${RUN}/exit"
}

status() {
  if ! flock --nonblock 9; then
    echo "running on ${HOSTNAME}: $(tail --lines=1 "${RUN}/log")"
  elif [[ -e ${RUN}/exit ]]; then
    echo "exit $(<"${RUN}/exit") on ${HOSTNAME}"
  else
    echo "none on ${HOSTNAME}"
  fi
}

logs() {
  case ${1-} in
    '') tail --lines=100 "${RUN}/log" | sed "s/^/${HOSTNAME}: /" ;;
    follow) tail --lines=100 --follow "${RUN}/log" ;;
    *) fail "'logs $1' must be 'logs' or 'logs follow'." ;;
  esac
}

stop() {
  flock --nonblock 9 && return
  kill -TERM "$(<"${RUN}/pid")"
  flock --timeout="${GRACE_S}" 9 || fail "the command still runs ${GRACE_S} s after SIGTERM."
}

fail() {
  echo "error: ${HOSTNAME}: $*" >&2
  exit 1
}

case ${1-} in
  setup | start | supervise | status | logs | stop) "$@" ;;
  *) fail "'${1-}' must be setup, start, status, logs or stop." ;;
esac
