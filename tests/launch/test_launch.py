"""The launchers: what they print is what they run, and what they do when machines vanish. No cloud
is needed.

Executables of the same names as the real ones come first in PATH; they note how they were called
and answer as told.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
TRAIN = (
  'python -m wam_jax.train --distributed --config=configs/tiny.py:smoke --workdir=/mnt/runs/droid'
)
ZONE = '--zone=us-east5-a'
# Quoted as a shell would need it, so that words with spaces come back as one.
FAKE = '#!/usr/bin/env bash\nprintf "%s\\n" "${0##*/} ${*@Q}" >>"${CALLS}"\n'


class Machines:
  """A PATH on which the tools of the clouds only note, in a file, how they are called."""

  def __init__(self, root: pathlib.Path):
    self.root, self.bin, self.notes = root, root / 'bin', root / 'calls'
    self.bin.mkdir()
    self.environment = os.environ | {
      'PATH': f'{self.bin}:{os.environ["PATH"]}',
      'CALLS': str(self.notes),
      'HOME': str(root),
      'TMPDIR': str(root),
    }
    for name in (
      'gcloud',
      'xpk',
      'kubectl',
      'sbatch',
      'scancel',
      'scontrol',
      'git',
      'sleep',
      'mkdir',
    ):
      self.answer(name, '')

  def answer(self, name: str, body: str) -> None:
    """Makes the executable `name`; `body` is bash and finds in its directory what it wrote there
    before.
    """
    (self.bin / name).write_text(f'{FAKE}cd {shlex.quote(str(self.root))}\n{body}\n')
    (self.bin / name).chmod(0o755)

  def calls(self) -> list[list[str]]:
    return (
      [shlex.split(line) for line in self.notes.read_text().splitlines()]
      if self.notes.exists()
      else []
    )

  def start(self, script: str | pathlib.Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
      [LAUNCH / script, *args],
      cwd=ROOT,
      env=self.environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # A group of its own: a test can send it Ctrl-C without stopping pytest.
      start_new_session=True,
      # Pytest in the background of a script ignores Ctrl-C, and what it starts would, too.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

  def run(self, script: str | pathlib.Path, *args: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    process = self.start(script, *args)
    printed, error = process.communicate(timeout=60)
    return process.returncode, printed, error


@pytest.fixture
def machines(tmp_path):
  return Machines(tmp_path)


SCRIPTS = ['slurm.sh', 'slurm_job.sh', 'tpu.sh', 'tpu_host.sh', 'xpk.sh']


def test_shellcheck_finds_nothing():
  assert sorted(p.name for p in LAUNCH.glob('*.sh') if os.access(p, os.X_OK)) == SCRIPTS
  # Off: functions that are called in conditions handle their errors themselves.
  done = subprocess.run(
    [
      shutil.which(
        'shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
      ),
      '--enable=all',
      '--exclude=SC2310,SC2312',
      '--external-sources',
      '--check-sourced',
      '--source-path=.',
      *(f'launch/{name}' for name in SCRIPTS),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('script', ['tpu.sh', 'xpk.sh', 'slurm.sh'])
def test_help_names_every_flag(machines, script):
  status, printed, _ = machines.run(script, '--help')
  assert status == 0
  source = (LAUNCH / script).read_text()
  for name in re.findall(r'check_flag (\w+)|FLAGS\[(\w+)\]', source):
    assert f'--{max(name)}' in printed
  # Without arguments, too.
  assert machines.run(script)[1] == printed


QUEUE = 'gcloud compute tpus queued-resources'
ON_ALL_HOSTS = f'{QUEUE} ssh droid --node=all --worker=all {ZONE} --quiet'
# Read where the launchers have it: here it is asked how it gets to the machines.
EXTRAS = re.search(r'^readonly EXTRAS=(\S+)$', (LAUNCH / 'lib.sh').read_text(), re.M)[1]
SEND = [
  f'git -C {ROOT} archive --format=tar.gz --prefix=wam_jax/ --output=TMP/wam_jax.droid.tar.gz HEAD',
  f'{QUEUE} scp TMP/wam_jax.droid.tar.gz droid:wam_jax.tar.gz '
  f'--node=all --worker=all {ZONE} --quiet',
  f'{ON_ALL_HOSTS} '
  "--command='rm -rf wam_jax && tar -xzf wam_jax.tar.gz && "
  f"wam_jax/launch/tpu_host.sh setup tpu,{EXTRAS} runs:bucket:/mnt/runs'",
]
STATE = [
  f"{QUEUE} describe droid {ZONE} --quiet --format='value(state.state)'",
  f"gcloud compute tpus tpu-vm describe droid {ZONE} --quiet --format='value(state)'",
]
START = f"{ON_ALL_HOSTS} --command='wam_jax/launch/tpu_host.sh start {TRAIN}'"
STATUS = f"{ON_ALL_HOSTS} --command='wam_jax/launch/tpu_host.sh status'"
DELETE = f'{QUEUE} delete droid --force {ZONE} --quiet'


def create(accelerator: str, version: str, capacity: str = '', place: str = ZONE) -> str:
  return (
    f'{QUEUE} create droid --node-id=droid --accelerator-type={accelerator} '
    f'--runtime-version={version} {capacity}{place} --quiet'
  )


CLUSTER = f'--cluster=pod {ZONE}'
JOB = f'{ROOT}/launch/slurm_job.sh'
DRY_RUNS = {
  f'tpu.sh create droid {ZONE} --accelerator=v6e-256': [
    # Each generation has a runtime image of its own.
    create('v6e-256', 'v2-alpha-tpuv6e'),
    *STATE,
  ],
  f'tpu.sh create droid {ZONE} --accelerator=v5litepod-64 --capacity=spot': [
    create('v5litepod-64', 'v2-alpha-tpuv5-lite', '--spot '),
    *STATE,
  ],
  f'tpu.sh create droid {ZONE} --accelerator=v4-8 --capacity=reserved --project=robots': [
    create('v4-8', 'tpu-ubuntu2204-base', '--reserved ', f'{ZONE} --project=robots'),
    *(line.replace(ZONE, f'{ZONE} --project=robots') for line in STATE),
  ],
  f'tpu.sh create droid {ZONE} --accelerator=v5p-16 --runtime_version=v9': [
    # A newer image than the script knows.
    create('v5p-16', 'v9'),
    *STATE,
  ],
  f'tpu.sh create droid {ZONE} --accelerator=v5p-128 --slices=2 '
  '--create_flags="--network=n --internal-ips"': [
    create('v5p-128', 'v2-alpha-tpuv5', '--network=n --internal-ips ').replace(
      '--node-id=droid', '--node-count=2 --node-prefix=droid'
    ),
    STATE[0],
    # Ready when both are.
    *(STATE[1].replace('droid', f'droid-{number}') for number in range(2)),
  ],
  f'tpu.sh sync droid {ZONE} --mount=bucket:/mnt/runs --ref=HEAD': SEND,
  f'tpu.sh sync droid {ZONE} --mount=bucket:/mnt/runs --data_mount=one:/mnt/one,two:/mnt/two '
  '--data_cache_gb=500 --extras=wandb --ref=HEAD': [
    *SEND[:2],
    SEND[2].replace(
      f'{EXTRAS} runs:bucket:/mnt/runs',
      f'{EXTRAS},wandb runs:bucket:/mnt/runs data:500:one:/mnt/one data:500:two:/mnt/two',
    ),
  ],
  f'tpu.sh start droid {ZONE} -- {TRAIN}': [START],
  # Words with spaces and quotes go through two shells: the local one and that of the host.
  f'tpu.sh start droid {ZONE} --iap -- python -c "print(1, 2)"': [
    f'{ON_ALL_HOSTS} --tunnel-through-iap '
    r"--command='wam_jax/launch/tpu_host.sh start python -c '\''print(1, 2)'\'''"
  ],
  f'tpu.sh status droid {ZONE}': [*STATE, STATUS],
  f'tpu.sh watch droid {ZONE} --worker=3': [
    f'{QUEUE} ssh droid --node=0 --worker=3 {ZONE} --quiet '
    "--command='wam_jax/launch/tpu_host.sh logs follow'"
  ],
  f'tpu.sh logs droid {ZONE} --worker=all': [STATUS.replace('status', 'logs')],
  f'tpu.sh stop droid {ZONE}': [STATUS.replace('status', 'stop')],
  f'tpu.sh delete droid {ZONE}': [DELETE],
  f'xpk.sh attach runs {CLUSTER} --bucket=bucket --directory=/mnt/runs': [
    'xpk storage attach runs --type=gcsfuse --bucket=bucket --mount-point=/mnt/runs '
    '--mount-options=implicit-dirs,file-system:rename-dir-limit:1000000,metadata-cache:ttl-secs:0 '
    f'--readonly=false --auto-mount=false --size=1 {CLUSTER}'
  ],
  f'xpk.sh attach data {CLUSTER} --bucket=bucket --directory=/mnt/data --data': [
    'xpk storage attach data --type=gcsfuse --bucket=bucket --mount-point=/mnt/data '
    '--mount-options=implicit-dirs,metadata-cache:ttl-secs:-1,'
    'metadata-cache:stat-cache-max-size-mb:-1,metadata-cache:type-cache-max-size-mb:-1,'
    f'file-cache:max-size-mb:8192 --readonly=true --auto-mount=false --size=1 {CLUSTER}'
  ],
  f'xpk.sh start droid {CLUSTER} --tpu_type=v6e-256 --storage=runs -- {TRAIN}': [
    f'xpk workload create --workload=droid {CLUSTER} --tpu-type=v6e-256 --num-slices=1 '
    f'--base-docker-image=python:3.12 --script-dir={ROOT} --storage=runs '
    '--max-restarts=50 --restart-on-exit-codes=1 '
    '--termination-grace-period-seconds=600 --priority=medium '
    f"--command='pip install --quiet --editable '\\''.[tpu,{EXTRAS}]'\\'' && exec {TRAIN}'"
  ],
  f'xpk.sh start droid {CLUSTER} --project=p --tpu_type=tpu7x-4x4x4 --image=gcr.io/p/wam '
  f'--restarts=3 --grace_s=60 --priority=high --slices=4 --storage=runs,data '
  f'--create_flags=--scheduler=s -- {TRAIN}': [
    f'xpk workload create --workload=droid {CLUSTER} --project=p --tpu-type=tpu7x-4x4x4 '
    '--num-slices=4 --docker-image=gcr.io/p/wam --storage=runs --storage=data '
    '--max-restarts=3 --restart-on-exit-codes=1 --termination-grace-period-seconds=60 '
    f"--priority=high --scheduler=s --command='exec {TRAIN}'"
  ],
  f'xpk.sh status droid {CLUSTER}': [f'xpk workload list {CLUSTER} --filter-by-job=droid'],
  f'xpk.sh watch droid {CLUSTER}': [
    'kubectl logs --follow --all-containers --tail=100 '
    '--selector=xpk.google.com/workload=droid,batch.kubernetes.io/job-completion-index=0'
  ],
  f'xpk.sh delete droid {CLUSTER}': [f'xpk workload delete --workload=droid {CLUSTER} --force'],
  f'slurm.sh droid --nodes=4 --gpus=8 -- {TRAIN}': [
    'mkdir -p TMP/wam_jax_logs',
    'sbatch --job-name=droid --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 '
    '--requeue --signal=B:USR1@600 --output=TMP/wam_jax_logs/%x-%j.log '
    f'--open-mode=append --chdir={ROOT} {JOB} 50 '
    f'srun --kill-on-bad-exit=0 --wait=0 {TRAIN}',
  ],
  'slurm.sh droid --nodes=1 --gpus=2 --cpus=12 --time=1-00:00:00 --partition=gpu --account=lab '
  '--restarts=2 --grace_s=120 --logs=/logs --container=wam.sqsh '
  f'--container_mounts=/data:/data -- {TRAIN}': [
    'mkdir -p /logs',
    'sbatch --job-name=droid --nodes=1 --gpus-per-node=2 --ntasks-per-node=2 --cpus-per-task=12 '
    '--time=1-00:00:00 --partition=gpu --account=lab --requeue --signal=B:USR1@120 '
    f'--output=/logs/%x-%j.log --open-mode=append --chdir={ROOT} {JOB} 2 '
    'srun --kill-on-bad-exit=0 --wait=0 --container-image=wam.sqsh '
    f'--container-workdir={ROOT} --container-mounts={ROOT}:{ROOT},/data:/data {TRAIN}',
  ],
}
READY = 'case $* in *state.state*) echo ACTIVE ;; *"value(state)"*) echo READY ;; esac'


@pytest.mark.parametrize('given', DRY_RUNS, ids=lambda line: ' '.join(line.split()[:4]))
def test_dry_run_prints_what_is_run(machines, given):
  script, *args = shlex.split(given)
  machines.answer('gcloud', READY)
  want = [line.replace('TMP', str(machines.root)) for line in DRY_RUNS[given]]

  status, printed, error = machines.run(script, *args[:2], '--dry_run', *args[2:])
  assert (status, error) == (0, '')
  assert [line for line in printed.splitlines() if not line.startswith('#')] == want
  assert machines.calls() == []

  status, _, error = machines.run(script, *args)
  assert status == 0, error
  assert machines.calls() == [shlex.split(line) for line in want]


CHECK = f'tpu.sh check droid {ZONE} --accelerator=v5p-128 --slices=2'
FLAGS = TRAIN.removeprefix('python -m wam_jax.train ')


def test_check_runs_the_commands_own_checks_in_the_environment_of_the_hosts(machines):
  status, printed, error = machines.run(
    *CHECK.split(),
    '--mount=b1:/mnt/runs',
    '--data_mount=b2:/mnt/data',
    '--extras=wandb',
    '--dry_run',
    *('--', *TRAIN.split(), '--config.data.root=/mnt/data'),
  )
  assert status == 0, error
  environment = f'{machines.root}/wam_jax.droid.env'
  assert printed.splitlines() == [
    f'uv venv --quiet --allow-existing --python=3.12 {environment}',
    f"uv pip install --quiet --python={environment}/bin/python --editable '.[tpu,{EXTRAS},wandb]'",
    f'{environment}/bin/python -m wam_jax.check {FLAGS} --config.data.root=/mnt/data '
    '--topology=v5p-128 --slices=2 --mounts=b1:/mnt/runs,b2:/mnt/data',
    f'{environment}/bin/python -m wam_jax.compile --config=configs/tiny.py:smoke '
    '--config.data.root=/mnt/data --topology=v5p-128 --plan',
  ]


def test_check_ends_as_what_it_runs(machines):
  machines.answer(
    'uv', '[[ $1 != venv ]] || { mkdir -p "${*: -1}/bin"; cp python "${*: -1}/bin"; }'
  )
  (machines.bin / 'mkdir').unlink()
  python = machines.root / 'python'
  python.write_text(
    '#!/bin/bash\n[[ $* != *wam_jax.check* ]] || { echo "error: no data"; exit 2; }\n'
  )
  python.chmod(0o755)
  given = [*CHECK.split(), '--mount=b1:/mnt/runs', '--', *TRAIN.split()]
  status, printed, _ = machines.run(*given)
  assert (status, printed) == (2, 'error: no data\n')
  status, _, said = machines.run(*given[:-4], *('python', '-m', 'data.encode', '--distributed'))
  assert status == 0
  assert 'can be installed and takes these flags' in said


def test_dry_run_of_a_whole_run(machines):
  status, printed, _ = machines.run(
    'tpu.sh',
    'run',
    'droid',
    ZONE,
    '--accelerator=v5p-128',
    '--capacity=spot',
    '--mount=bucket:/mnt/runs',
    '--dry_run',
    '--',
    *TRAIN.split(),
  )
  assert status == 0
  assert [line for line in printed.splitlines() if not line.startswith('#')] == [
    line.replace('TMP', str(machines.root))
    for line in (
      SEND[0],
      create('v5p-128', 'v2-alpha-tpuv5', '--spot '),
      *STATE,
      *SEND[1:],
      START,
      *STATE,
      STATUS,
      DELETE,
    )
  ]
  assert machines.calls() == []


RUN = f'tpu.sh run droid {ZONE} --accelerator=v5p-8'
SLURM = 'slurm.sh droid --nodes=1 --gpus=1'


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (
      'tpu.sh launch',
      "'launch' is not among the commands: check create delete logs run start status stop sync "
      'watch.',
    ),
    ('tpu.sh create', "the name after 'create' must be up to 40 lower-case letters"),
    (
      f'tpu.sh create Droid {ZONE}',
      "the name after 'create', Droid, must be up to 40 lower-case letters",
    ),
    ('tpu.sh status droid', '--zone must be a zone, as us-east5-a.'),
    ('tpu.sh status droid --zone=us-east5', '--zone=us-east5 must be a zone, as us-east5-a.'),
    (f'tpu.sh status droid {ZONE} now', "'now' is not a flag; flags look like --zone=us-east5-a."),
    (
      f'tpu.sh status droid {ZONE} --keep',
      '--keep is not among the flags: dry_run iap project slices zone.',
    ),
    (f'tpu.sh status droid {ZONE} --project', '--project needs a value: --project=VALUE.'),
    (f'tpu.sh status droid {ZONE} --iap=yes', '--iap takes no value.'),
    (f'tpu.sh status droid {ZONE} -- ls', "'status' runs nothing: leave out what follows --."),
    (
      f'tpu.sh logs droid {ZONE} --worker=first',
      "--worker=first must be the number of a host, or 'all'.",
    ),
    (f'tpu.sh create droid {ZONE}', '--accelerator= must be v4-N, v5litepod-N, v5p-N or v6e-N.'),
    (
      f'tpu.sh create droid {ZONE} --accelerator=v5e-4',
      '--accelerator=v5e-4: Cloud TPU calls it v5litepod-4.',
    ),
    (
      f'tpu.sh create droid {ZONE} --accelerator=tpu7x-8',
      'the Cloud TPU API has no tpu7x; use Kubernetes',
    ),
    (
      f'tpu.sh create droid {ZONE} --accelerator=v6e-24',
      'N one of 1, 4, 8, 16, 32, 64, 128, 256 chips.',
    ),
    (
      f'tpu.sh create droid {ZONE} --accelerator=v5p-12',
      'a host has 8 cores, so N must be a multiple of 8.',
    ),
    (
      f'tpu.sh create droid {ZONE} --accelerator=v5p-8 --capacity=cheap',
      'must be on_demand, spot or reserved.',
    ),
    (
      f'tpu.sh sync droid {ZONE} --mount=gs://bucket:/mnt/runs',
      'must be BUCKET:/mnt/DIR: a bucket without gs://',
    ),
    (f'{RUN} --slices=0 -- {TRAIN}', '--slices=0 must be a number.'),
    (
      f'{RUN} --create_flags="--labels=a=b now" -- {TRAIN}',
      "--create_flags: 'now' is not a flag; give --FLAG=VALUE, separated by spaces.",
    ),
    (
      f'{RUN} --create_flags=--node-id=other -- {TRAIN}',
      '--create_flags: --node-id=other is set by a flag of this script.',
    ),
    (
      f'{RUN} --data_mount=bucket:/mnt/runs -- {TRAIN}',
      '--workdir=/mnt/runs/droid is below a --data_mount, which is read-only.',
    ),
    (
      f'tpu.sh sync droid {ZONE} --data_mount=bucket:/mnt/data --data_cache_gb=all',
      '--data_cache_gb=all must be a number of gigabytes.',
    ),
    (f'tpu.sh sync droid {ZONE} --extras=a;b', '--extras=a;b must be extras of setup.py'),
    (
      f'tpu.sh start droid {ZONE} -- python -m data.encode --workdir=/mnt/w --dataset=gs://b/d',
      'the command needs --distributed, or each host does all of the work by itself.',
    ),
    (RUN, f'what to run is missing. It comes last: {TRAIN[:33]}'.replace('python', '-- python')),
    (f'{RUN} --attempts=0 -- {TRAIN}', '--attempts=0 must be at least 1.'),
    (
      f'{RUN} -- {TRAIN}',
      '--workdir=/mnt/runs/droid must be gs://BUCKET/DIR or below the DIR of a --mount',
    ),
    (
      f'{RUN} --mount=b1:/mnt/ru -- {TRAIN}',
      '--workdir=/mnt/runs/droid must be gs://BUCKET/DIR or below',
    ),
    (f'{RUN} -- {TRAIN.replace(" --distributed", "")}', 'the command needs --distributed'),
    (f'{RUN} -- {TRAIN.replace(" --config", " --conf")}', 'the command needs --config=FILE'),
    (
      f'{RUN} -- {TRAIN.replace("tiny", "tyni")}',
      f'--config=configs/tyni.py:smoke: there is no such file in {ROOT}.',
    ),
    (f'{RUN} -- {TRAIN.replace("dir=", "dir ")}', 'the command needs --workdir=DIR'),
    (
      f'{RUN} -- {TRAIN.replace("/mnt", "s3://mnt")}',
      '--workdir=s3://mnt/runs/droid must be gs://BUCKET/DIR or a dir',
    ),
    (f'xpk.sh watch droid {ZONE}', '--cluster must be up to 40 lower-case letters'),
    (
      f'xpk.sh start droid {CLUSTER} --tpu_type=h100-8 -- {TRAIN}',
      '--tpu_type=h100-8 must be v4-N',
    ),
    (
      f'xpk.sh start droid {CLUSTER} --tpu_type=v6e-8 --priority=top -- {TRAIN}',
      '--priority=top must be very-low',
    ),
    (
      f'xpk.sh attach runs {CLUSTER} --bucket=gs://b --directory=/mnt',
      '--bucket=gs://b must be the name of a bucket',
    ),
    (
      f'xpk.sh attach runs {CLUSTER} --bucket=b1 --directory=mnt',
      '--directory=mnt must be an absolute path',
    ),
    (
      f'slurm.sh --nodes=1 -- {TRAIN}',
      'the name of the job (the first word), --nodes=1, must be up to 40',
    ),
    (f'slurm.sh droid --nodes=2 -- {TRAIN}', '--gpus must be the number of GPUs of each host.'),
    (f'{SLURM} --time=24 -- {TRAIN}', '--time=24 must be [D-]HH:MM:SS'),
    (f'{SLURM} --logs=logs -- {TRAIN}', '--logs=logs must be an absolute path.'),
    (f'{SLURM} --container_mounts=/a:/a -- {TRAIN}', '--container_mounts needs --container.'),
    (SLURM, 'what to run is missing.'),
  ],
)
def test_wrong_arguments_stop_before_anything_runs(machines, given, message):
  status, _, error = machines.run(*shlex.split(given))
  assert status == 1
  assert error.startswith('error: ')
  assert message in error
  assert machines.calls() == []


def test_uncommitted_changes_are_not_left_behind_silently(machines):
  machines.answer('git', '[[ $3 != status ]] || echo " M wam_jax/flow.py"')
  status, _, error = machines.run('tpu.sh', 'sync', 'droid', ZONE)
  assert status == 1
  assert ' M wam_jax/flow.py\nCommit them, or pass --ref=HEAD.' in error
  assert [call[0] for call in machines.calls()] == ['git']


def find_state(machines, request: str, node: str = 'echo READY') -> tuple[str, str]:
  """What `status` says of a slice, to stdout and to stderr; arguments are bash of gcloud."""
  body = f'case $* in *state.state*) {request} ;; *"value(state)"*) {node} ;; esac'
  machines.answer('gcloud', body)
  status, printed, error = machines.run('tpu.sh', 'status', 'droid', ZONE)
  assert status == 0, error
  return printed.splitlines()[0], error


def test_only_stdout_of_gcloud_is_the_state(machines):
  warned = 'echo "WARNING: a newer gcloud is available" >&2; echo'
  assert find_state(machines, f'{warned} ACTIVE', f'{warned} READY') == ('slice droid: READY', '')
  missing = 'echo "ERROR: NOT_FOUND: no such request" >&2; exit 1'
  assert find_state(machines, missing) == ('slice droid: ABSENT', '')
  said, error = find_state(machines, 'echo "ERROR: token has expired" >&2; exit 1')
  assert said == 'slice droid: UNKNOWN'
  assert error.endswith('ERROR: token has expired\n')
  # Of several slices with --slices forgotten, say.
  said, _ = find_state(machines, 'echo ACTIVE', missing)
  assert said == 'slice droid: ACTIVE, without a machine droid'


# A slice whose fate is a line of `fates` per start: `preempted`, or the exit status of the command
# on its first host.
SLICE = """
case $* in
  *" create "*) touch slice; rm -f preempted; echo none on host-0 >hosts ;;
  *" delete "*) rm slice ;;
  *state.state*)
    [[ -e slice ]] || { echo "ERROR: NOT_FOUND: no such slice" >&2; exit 1; }
    echo ACTIVE ;;
  *"value(state)"*) [[ -e preempted ]] && echo PREEMPTED || echo READY ;;
  *"tpu_host.sh start"*)
    read -r fate <fates; sed -i 1d fates
    [[ ${fate} == preempted ]] && touch preempted ||
      printf "exit %s on %s\\n" 0 host-1 "${fate}" host-0 >hosts ;;
  *"tpu_host.sh status"*) cat hosts ;;
  *"tpu_host.sh logs"*) echo "host-0: error: config.steps=0: must be at least 1." ;;
esac
"""


def kinds(calls: list[list[str]]) -> list[str]:
  """The steps of a run without its polling."""
  names = {'create': 'create', 'delete': 'delete', 'scp': 'send'}
  steps = []
  for call in calls:
    if call[0] == 'sleep':
      steps.append(f'sleep {call[1]}')
    elif call[0] == 'gcloud' and call[4] in names:
      steps.append(names[call[4]])
    elif remote := re.search(r'tpu_host.sh (start|stop)', call[-1]):
      steps.append(remote[1])
  return steps


RUN_DROID = ('tpu.sh', *RUN.split()[1:], '--capacity=spot', '--mount=bucket:/mnt/runs')


def run_with_fates(
  machines, *fates: str, flags=(), gcloud: str = SLICE
) -> tuple[int, str, list[str]]:
  """Exit status, messages and steps of a run."""
  machines.answer('gcloud', gcloud)
  (machines.root / 'fates').write_text('\n'.join(fates) + '\n')
  status, _, said = machines.run(*RUN_DROID, *flags, '--', *TRAIN.split())
  return status, said, kinds(machines.calls())


def test_run_survives_two_preemptions(machines):
  status, said, steps = run_with_fates(machines, 'preempted', 'preempted', '0')
  assert status == 0, said
  # What each slice goes through, until the first look at it.
  once = ['create', 'send', 'start', 'sleep 30']
  # Waits double from failure to failure.
  assert steps == [*once, 'sleep 30', 'delete', *once, 'sleep 60', 'delete', *once, 'delete']
  assert said.count('slice droid: PREEMPTED') == 4
  assert 'done' in said
  starts = [call[-1] for call in machines.calls() if 'tpu_host.sh start' in call[-1]]
  # The same command again: training continues by its workdir.
  assert len(set(starts)) == 1
  assert TRAIN in starts[0]
  assert sum(call[:1] == ['git'] and 'archive' in call for call in machines.calls()) == 1


def test_run_starts_a_failed_command_again_on_the_same_slice(machines):
  # A bug's status, and that of a SIGTERM.
  status, said, steps = run_with_fates(machines, '1', '143', '0', flags=('--keep',))
  assert status == 0, said
  assert steps == [
    'create',
    *['send', 'start', 'sleep 30', 'sleep 30', 'send', 'start', 'sleep 30', 'sleep 60'],
    'send',
    'start',
    'sleep 30',
  ]
  # What the command said last, which would be gone with its slice.
  assert (machines.root / 'wam_jax.droid.log').read_text() == (
    'host-0: error: config.steps=0: must be at least 1.\n'
  )


def test_a_mistake_ends_the_run_at_once(machines):
  status, said, steps = run_with_fates(machines, '2')
  assert status == 1
  assert steps == ['create', 'send', 'start', 'sleep 30', 'delete']
  assert 'error: the command would fail again (status 2): host-0: error: config.steps=0' in said
  # The slice stays for who wants to mend the command.
  assert 'delete' not in run_with_fates(machines, '2', flags=('--keep',))[2][5:]


def test_hosts_that_say_nothing_are_not_done(machines):
  quiet = SLICE.replace('cat hosts', '[[ -e heard ]] && cat hosts || touch heard')
  status, said, steps = run_with_fates(machines, '0', gcloud=quiet)
  assert status == 0, said
  # Neither taken for running nor for done: asked again.
  assert steps == ['create', 'sleep 30', 'send', 'start', 'sleep 30', 'delete']


@pytest.mark.parametrize('state', ['HIDING', 'SUSPENDING', 'DELETING', 'STOPPED'])
def test_a_slice_in_no_known_end_is_never_deleted(machines, state):
  (machines.root / 'states').write_text(f'{state}\n{state}\nACTIVE\n')
  (machines.root / 'slice').touch()
  (machines.root / 'hosts').write_text('none on host-0\n')
  next_state = 'read -r state <states; sed -i 1d states; echo "${state:-ACTIVE}"'
  status, said, steps = run_with_fates(
    machines, '0', flags=('--keep',), gcloud=SLICE.replace('echo ACTIVE', next_state)
  )
  assert status == 0, said
  assert f'slice droid: {state}' in said
  assert steps == ['sleep 30', 'send', 'start', 'sleep 30']


def test_run_gives_up_and_deletes_the_slice(machines):
  status, said, steps = run_with_fates(machines, *'111111', flags=('--attempts=6',))
  assert status == 1
  assert 'error: gave up after 6 failures in a row.' in said
  # Between two looks at it. The slice is paid for, so that pauses do not grow further.
  pauses = [step for step in steps if step.startswith('sleep')][1::2]
  assert pauses == ['sleep 30', 'sleep 60', 'sleep 120', 'sleep 120', 'sleep 120']
  assert steps[-1] == 'delete'


def test_run_waits_for_capacity_and_asks_again_when_refused(machines):
  (machines.root / 'states').write_text(
    'WAITING_FOR_RESOURCES\nFAILED\nFAILED\nPROVISIONING\nACTIVE\n'
  )
  next_state = 'read -r state <states; sed -i 1d states; echo "${state:-ACTIVE}"'
  status, said, steps = run_with_fates(
    machines, '0', gcloud=SLICE.replace('echo ACTIVE', next_state)
  )
  assert status == 0, said
  assert steps == [
    'create',
    'sleep 30',
    'sleep 30',
    'delete',
    'create',
    'sleep 30',
    'send',
    'start',
    'sleep 30',
    'delete',
  ]


def test_run_joins_a_running_command_and_ctrl_c_leaves_it(machines):
  (machines.root / 'slice').touch()
  (machines.root / 'hosts').write_text(
    'running on host-1: quiet\nrunning on host-0: step 70 loss none\n'
  )
  machines.answer('gcloud', SLICE)
  # The second wait lasts, so that Ctrl-C falls into it.
  machines.answer('sleep', '[[ -e joined ]] && exec /bin/sleep 60; touch joined')
  process = machines.start(*RUN_DROID, '--', *TRAIN.split())
  while sum(call[0] == 'sleep' for call in machines.calls()) < 2:
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGINT)
  _, said = process.communicate(timeout=30)
  # What shells give for SIGINT: 128 + 2.
  assert process.returncode == 130
  assert 'the command is running already' in said
  assert 'running on host-0: step 70 loss none' in said
  assert 'slice droid is left as it is. The same command continues here' in said
  assert kinds(machines.calls()) == ['sleep 30', 'sleep 30']


@pytest.fixture
def host(machines):
  """A machine of a slice: its home has a checkout."""
  shutil.copytree(LAUNCH, machines.root / 'wam_jax/launch')
  (machines.bin / 'mkdir').unlink()
  (machines.bin / 'sleep').unlink()
  machines.script = machines.root / 'wam_jax/launch/tpu_host.sh'
  return machines


TRAINING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))
print('step 1', sys.argv[1], flush=True)
time.sleep(60)
"""


def test_host_starts_watches_and_stops_a_command(host):
  ask = lambda *words: host.run(host.script, *words)
  name = os.uname().nodename
  assert ask('status')[1] == f'none on {name}\n'
  assert ask('start', sys.executable, '-c', TRAINING, 'a b')[0] == 0
  while 'step 1 a b' not in (said := ask('status')[1]):
    assert said.startswith(f'running on {name}: ')
  status, _, error = ask('start', 'true')
  assert status == 1
  assert 'a command is still running; stop it first.' in error
  assert ask('stop')[0] == 0
  assert ask('status')[1] == f'exit 143 on {name}\n'
  assert ask('logs')[1].endswith(f'{name}: step 1 a b\n{name}: saved\n')
  assert ask('stop')[0] == 0  # Nothing to stop is fine.
  assert ask('start', 'false')[0] == 0
  while 'exit 1 ' not in ask('status')[1]:
    pass
  assert 'must be setup, start, status, logs or stop.' in ask('install')[2]


def test_host_knows_when_a_command_vanished(host):
  host.run(host.script, 'start', sys.executable, '-c', TRAINING, '')
  while not (pid := host.root / 'wam_jax_run/pid').exists() or not pid.read_text().strip():
    time.sleep(0.02)
  child = int(pid.read_text())
  # The parent's id, second after the name, which may hold spaces itself.
  supervisor = int(pathlib.Path(f'/proc/{child}/stat').read_text().rsplit(')', 1)[1].split()[1])
  # Nobody is left who could note the exit status.
  os.kill(supervisor, signal.SIGKILL)
  assert host.run(host.script, 'status')[1].startswith('running')
  os.kill(child, signal.SIGKILL)
  while host.run(host.script, 'status')[1].startswith('running'):
    pass
  assert host.run(host.script, 'status')[1].startswith('none on ')


def mount_data(host, name: str, gb: int, more: str = '') -> list[str]:
  return [
    f'mountpoint --quiet /mnt/{name}',
    f'sudo install --directory --owner={os.getuid()} /mnt/{name}',
    'gcsfuse --implicit-dirs -o ro --metadata-cache-ttl-secs=-1 --stat-cache-max-size-mb=-1 '
    f'--type-cache-max-size-mb=-1 --cache-dir={host.root}/.cache/wam_jax_mounts/{name} '
    f'--file-cache-max-size-mb={gb * 1024}{more} {name} /mnt/{name}',
  ]


def test_host_installs_and_mounts(host):
  (host.root / '.local/bin').mkdir(parents=True)
  for name in ('python3', 'uv', 'lsb_release', 'curl', 'sudo', 'mountpoint'):
    host.answer(
      name,
      {
        'lsb_release': 'echo jammy',
        'sudo': '[[ $1 != tee ]] || cat >/dev/null',
        'curl': 'echo key',
        # /mnt/old is mounted already and must be left alone.
        'mountpoint': '[[ $2 == /mnt/old ]]',
      }.get(name, ''),
    )
  (host.bin / 'uv').rename(host.root / '.local/bin/uv')
  host.answer(
    'sudo', 'case $* in *gcsfuse) cp bin/python3 bin/gcsfuse ;; tee*) cat ;; esac'
  )  # apt-get brings it.
  mounts = ('runs:bucket:/mnt/runs', 'runs:other:/mnt/old', 'data::d:/mnt/d', 'data:500:e:/mnt/e')
  status, _, error = host.run(host.script, 'setup', 'tpu,umt5', *mounts)
  assert status == 0, error
  python, key = f'{host.root}/venv/bin/python', '/usr/share/keyrings/cloud.google.asc'
  # In any order: pipes start their ends at the same time.
  assert sorted(map(shlex.join, host.calls())) == sorted(
    [
      'python3 -m pip install --quiet --user uv',
      f'uv venv --quiet --allow-existing --python=3.12 {host.root}/venv',
      f"uv pip install --quiet --python={python} --editable '.[tpu,umt5]'",
      'lsb_release --codename --short',
      'curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg',
      f'sudo tee {key}',
      'sudo tee /etc/apt/sources.list.d/gcsfuse.list',
      'sudo apt-get update --quiet=2',
      'sudo apt-get install --quiet=2 --yes -o DPkg::Lock::Timeout=600 gcsfuse',
      'mountpoint --quiet /mnt/runs',
      f'sudo install --directory --owner={os.getuid()} /mnt/runs',
      'gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 '
      'bucket /mnt/runs',
      'mountpoint --quiet /mnt/old',
      # What does not change is kept; only what a flag says to fit is fetched whole.
      *mount_data(host, 'd', 8),
      *mount_data(host, 'e', 500, ' --file-cache-cache-file-for-range-read'),
    ]
  )


# Its one host is a directory, where what is sent and said to it really happens.
REAL_HOST = """
case $* in
  *" create "*) touch slice ;;
  *" delete "*) rm slice ;;
  *state.state*) [[ -e slice ]] && echo ACTIVE || { echo "NOT_FOUND" >&2; exit 1; } ;;
  *"value(state)"*) echo READY ;;
  *" scp "*) cp "$5" "host/${6#*:}" ;;
  *" ssh "*) command=${*: -1}; cd host; HOME=${PWD} bash -c "${command#--command=}" ;;
esac
"""


def test_run_on_a_host_from_commit_to_exit(host):
  """The checkout really is packed, sent and unpacked; the command fails once and is done the second
  time.
  """
  checkout = host.root / 'wam_jax'
  me = ('-c', 'user.name=me', '-c', 'user.email=me@localhost')
  git = lambda *words: subprocess.run(['git', *me, *words], cwd=checkout, check=True)
  (host.bin / 'git').unlink()
  (checkout / 'step.py').write_text(
    'import pathlib, sys\n'
    'seen = pathlib.Path("../seen")\n'
    'seen.open("a").write(sys.argv[1] + "\\n")\n'
    'sys.exit(seen.read_text().count("\\n") < 2)\n'
  )
  git('init', '--quiet')
  git('add', '.')
  git('commit', '--quiet', '--message=all')
  uv = host.root / 'host/.local/bin/uv'
  uv.parent.mkdir(parents=True)
  host.answer('gcloud', REAL_HOST)
  host.answer('python3', '')
  shutil.copy(host.bin / 'python3', uv)
  host.answer('sleep', 'exec /bin/sleep 0.05')
  # What a shell would change if it were quoted once too seldom.
  said = "it's $HOME; 100% *"
  status, _, error = host.run(
    checkout / 'launch/tpu.sh', *RUN_DROID[1:-1], '--', sys.executable, 'step.py', said
  )
  assert status == 0, error
  # Both starts were given the word unchanged.
  assert (host.root / 'host/seen').read_text() == f'{said}\n' * 2
  assert error.count('the command failed') == 1
  assert not (host.root / 'slice').exists()


def run_job(
  machines, step: str, restarts: int = 3, count: int = 0, send: signal.Signals | None = None
):
  """Exit status, output and calls of the SLURM job whose `srun` is `step`."""
  machines.environment |= {'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': str(count)}
  machines.answer('srun', f'echo $$ >srun.pid\n{step}')
  machines.answer('scancel', 'kill -TERM "$(<srun.pid)"')
  (machines.bin / 'sleep').unlink()
  process = machines.start('slurm_job.sh', str(restarts), 'srun', '--wait=0', *TRAIN.split())
  if send:
    while not (pid := machines.root / 'srun.pid').exists() or not pid.read_text().strip():
      time.sleep(0.02)
    os.kill(process.pid, send)
  printed, error = process.communicate(timeout=30)
  assert machines.calls()[0] == ['srun', '--wait=0', *TRAIN.split()]
  return process.returncode, printed + error, [shlex.join(call) for call in machines.calls()[1:]]


UNTIL_TERM = "trap 'exit 143' TERM; while true; do sleep 0.05; done"
REQUEUE = 'scontrol requeue 7'


def test_job_that_is_done_ends(machines):
  assert run_job(machines, 'exit 0') == (0, '', [])


def test_job_that_fails_is_queued_again(machines):
  assert run_job(machines, 'exit 1', restarts=3, count=2) == (
    1,
    'status 1: queued again\n',
    [REQUEUE],
  )


def test_job_with_a_mistake_is_not_queued_again(machines):
  assert run_job(machines, 'exit 2', restarts=3, count=0) == (
    2,
    'status 2: a mistake in the command, which would fail again\n',
    [],
  )


def test_job_that_keeps_failing_is_given_up(machines):
  assert run_job(machines, 'exit 1', restarts=3, count=3) == (
    1,
    'status 1: given up after 3 starts\n',
    [],
  )


def test_job_near_its_limit_saves_and_is_queued_again(machines):
  # SLURM sends it before the limit; such a start is no failure, however many there were.
  status, said, calls = run_job(machines, UNTIL_TERM, count=9, send=signal.SIGUSR1)
  assert (status, said) == (143, 'status 143: queued again\n')
  assert calls == ['scancel --signal=TERM 7', REQUEUE]


def test_cancelled_job_ends(machines):
  status, said, calls = run_job(machines, 'sleep 0.3; exit 143', send=signal.SIGTERM)
  # Not queued again: somebody wanted it to end.
  assert (status, said, calls) == (143, '', [])
