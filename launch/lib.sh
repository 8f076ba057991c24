# shellcheck shell=bash
# What the launchers share: messages, flags, checks, and running a command or, with --dry_run, printing it.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash ${BASH_VERSION} is too old, 4.4 is needed; on macOS: brew install bash." >&2
  exit 1
fi

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The extras of setup.py that machines get: what every config here needs, to train and to make its data.
readonly EXTRAS=gcs,lerobot,umt5
readonly ROOT EXAMPLE='-- python -m wam_jax.train --distributed --config=configs/NAME.py --workdir=DIR'
declare -A FLAGS=([dry_run]=false) # What may be given, with the defaults, until parse_flags has read what is given.
COMMAND=()                         # What to run on the machines: the words after --.
declare -A TAKES=() DEFAULTS=()    # Of a launcher with several commands: the flags of each, and their defaults.
COMMON='' RUNNING=''               # The flags of all of them; the commands that need a COMMAND.

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() {
  printf '%(%F %T)T %s\n' -1 "$*" >&2
}

# Prints the comment that the script begins with.
print_help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

# parse_command COMMAND NAME FLAG ...: checks what every command shares.
parse_command() {
  [[ ! ${1:---help} =~ ^(--help|-h)$ && ! ${2-} =~ ^(--help|-h)$ ]] || print_help
  [[ $1 =~ ^[a-z]+$ && -v TAKES[$1] ]] || die "'$1' is not among the commands: $(list "${!TAKES[@]}"). See --help."
  check_name "the name after '$1'" "${2-}"
  local flag
  for flag in zone project ${COMMON} ${TAKES[$1]}; do
    FLAGS[${flag}]=${DEFAULTS[${flag}]-}
  done
  parse_flags "${@:3}"
  check_flag zone '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone, as us-east5-a'
  if [[ " ${RUNNING} " == *" $1 "* ]]; then
    check_command
  else
    ((!${#COMMAND[@]})) || die "'$1' runs nothing: leave out what follows --."
  fi
}

# Fills FLAGS and COMMAND. A flag whose default is `false` takes no value.
parse_flags() {
  while (($#)); do
    case $1 in
      --help | -h) print_help ;;
      --)
        shift
        COMMAND=("$@")
        return
        ;;
      *) parse_flag "$1" ;;
    esac
    shift
  done
}

parse_flag() {
  [[ $1 =~ ^--([a-z_]+)(=(.*))?$ ]] || die "'$1' is not a flag; flags look like --zone=us-east5-a. See --help."
  local name=${BASH_REMATCH[1]} given=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
  [[ -v FLAGS[${name}] ]] || die "--${name} is not among the flags: $(list "${!FLAGS[@]}"). See --help."
  if [[ ${FLAGS[${name}]} == false ]]; then
    [[ -z ${given} ]] || die "--${name} takes no value."
    value=true
  fi
  [[ -n ${value} ]] || die "--${name} needs a value: --${name}=VALUE."
  FLAGS[${name}]=${value}
}

list() {
  printf '%s\n' "$@" | sort | paste -sd ' ' -
}

# check_flag NAME REGEX WHAT: a flag that was not given is empty, which REGEX may allow.
check_flag() {
  [[ ${FLAGS[$1]} =~ ^($2)$ ]] || die "--$1${FLAGS[$1]:+=${FLAGS[$1]}} must be $3."
}

# What Cloud TPU and Kubernetes both accept as a name.
check_name() {
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "$1${2:+, $2,} must be up to 40 lower-case letters, digits and hyphens, a letter first."
}

# Stops a command that cannot work on several machines.
check_command() {
  ((${#COMMAND[@]})) || die "what to run is missing. It comes last: ${EXAMPLE}"
  if runs wam_jax.train || runs data.encode; then
    [[ " ${COMMAND[*]} " == *' --distributed '* ]] ||
      die 'the command needs --distributed, or each host does all of the work by itself.'
  fi
  runs wam_jax.train || return 0
  local config workdir
  config=$(find_argument config)
  [[ -n ${config} ]] || die "the command needs --config=FILE: ${EXAMPLE}"
  [[ ${config} == /* || -f ${ROOT}/${config%%:*} ]] || die "--config=${config}: there is no such file in ${ROOT}."
  workdir=$(find_argument workdir)
  [[ -n ${workdir} ]] || die "the command needs --workdir=DIR: ${EXAMPLE}"
  [[ ${workdir} != *://* || ${workdir} == gs://* ]] ||
    die "--workdir=${workdir} must be gs://BUCKET/DIR or a directory; mount other storage."
}

# Whether COMMAND is `python -m $1`.
runs() {
  [[ " ${COMMAND[*]} " == *" $1 "* ]]
}

# Stops at what is no list of extras.
check_extras() {
  check_flag extras '([a-z0-9]+(,[a-z0-9]+)*)?' 'extras of setup.py, as wandb, with commas'
}

# What machines of the kind `$1` (tpu, cuda13) install.
list_extras() {
  printf '%s\n' "$1,${EXTRAS}${FLAGS[extras]:+,${FLAGS[extras]}}"
}

# Sets WORDS to the words of a flag that holds flags for another program.
split_flags() {
  local word
  read -ra WORDS <<<"${FLAGS[$1]-}"
  for word in "${WORDS[@]}"; do
    [[ ${word} == --* ]] || die "--$1: '${word}' is not a flag; give --FLAG=VALUE, separated by spaces."
  done
}

# find_argument NAME: the VALUE of --NAME=VALUE in COMMAND.
find_argument() {
  local word
  for word in "${COMMAND[@]}"; do
    [[ ${word} != "--$1="* ]] || printf '%s\n' "${word#*=}"
  done
}

# One line that a shell reads as the given words.
quote() {
  local word line=
  for word; do
    if [[ ${word} =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      line+=" ${word}"
    elif [[ ${word} =~ ^(--[a-z_-]+=)(.*)$ ]]; then
      line+=" ${BASH_REMATCH[1]}${BASH_REMATCH[2]@Q}"
    else
      line+=" ${word@Q}"
    fi
  done
  printf '%s\n' "${line# }"
}

is_dry() {
  [[ ${FLAGS[dry_run]} == true ]]
}

# Runs a command, or prints it.
run() {
  if is_dry; then
    quote "$@"
  else
    "$@" </dev/null
  fi
}

# A comment between the commands that are printed.
note() {
  ! is_dry || printf '# %s\n' "$*"
}
