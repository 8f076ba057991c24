"""What keeps a run from starting is found beforehand, and nothing is made on the way."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from tests import object_store
from tests import programs


@pytest.fixture(scope='module')
def store():
  with object_store.ObjectStore() as made:
    yield made


@pytest.fixture(scope='module')
def dataset(store, tmp_path_factory) -> pathlib.Path:
  """Below the root of the data, in a bucket and on a disk, without what is derived from it."""
  root = tmp_path_factory.mktemp('data')
  flags = ('--embodiment=disc', '--tasks=reach', '--episodes=8', '--other_episodes=1')
  done = programs.run('data.tabletop', f'--output={root}', *flags)
  assert done.returncode == 0, done.stderr
  made = root / 'tabletop/disc_reach/1.0.0'
  for path in made.rglob('*'):
    if path.is_file():
      store.put(f'set/{path.relative_to(made).as_posix()}', path.read_bytes())
  return made


def check(store, *flags: str) -> tuple[int, dict[str, str], str]:
  """Exit status, what was found by what was looked at, and the message."""
  done = programs.run(
    'wam_jax.check', '--config=tests/train_config.py', *flags, variables=store.environment
  )
  found = dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)
  assert 'Traceback' not in done.stderr
  return done.returncode, found, done.stderr


def test_a_run_on_mounts_is_checked_where_they_really_lie(store, dataset):
  given = (
    '--workdir=/mnt/runs/new',
    '--mounts=bucket:/mnt/runs,bucket:/mnt/data',
    '--config.data.mixture.disc.path=/mnt/data/set',
    '--topology=v5p-16',
  )
  status, found, error = check(store, *given)
  assert status == 2
  assert found['mesh'] == 'slice 1 x data 8 x fsdp 1 x seq 1 x tensor 1'
  assert found['workdir'] == 'gs://bucket/new is new'
  command = 'python -m data.statistics --dataset=gs://bucket/set --embodiment=tabletop_disc'
  # The split that is trained on, and the one that is held out.
  assert error.count(command) == 2
  assert f'{command} --split=val' in error
  # It made nothing, and left nothing.
  assert not [name for name in store.list('') if 'new' in name or 'wam_statistics' in name]

  _, _, module, *flags = command.split()
  for split in ([], ['--split=val']):
    done = programs.run(module, *flags, *split, variables=store.environment)
    assert done.returncode == 0, done.stderr
  status, found, error = check(store, *given)
  assert status == 0, error
  assert found['dataset disc'].startswith('8 episodes, ')


def test_slices_are_those_of_the_mesh(store, dataset, tmp_path):
  given = (f'--workdir={tmp_path}', '--topology=v5p-8', '--slices=2')
  _, found, error = check(store, *given)
  assert found['mesh'] == 'FAILED'
  assert 'config.mesh.slice=1 and --slices=2 differ; pass --config.mesh.slice=2.' in error
  _, found, _ = check(store, *given, '--config.mesh.slice=2')
  assert found['mesh'] == 'slice 2 x data 4 x fsdp 1 x seq 1 x tensor 1'


def test_every_mistake_is_listed(store, dataset, tmp_path):
  status, found, error = check(
    store,
    f'--workdir={tmp_path}',
    '--topology=v5p:2x2x4',
    '--config.data.mixture.disc.path=/nowhere',
    '--config.model.text.kind=umt5',
    '--config.model.text.tokenizer=/nowhere/tokenizer.json',
    '--config.init_from=gs://bucket/no_run',
    "--config.compiler_options=('xla_tpu_enable_async_collective_fusion_fuse_all_gather=true',)",
    '--wandb_project=droid',
  )
  assert status == 2
  assert [what for what, said in found.items() if said == 'FAILED'] == [
    'mesh',
    'compiler options',
    'vocabulary',
    *([] if importlib.util.find_spec('wandb') else ['wandb']),
    'dataset disc',
    'init_from',
  ]
  for message in (
    'config.batch_size=8 must be divisible by 16',
    'continuation fusion is for v5e alone',
    "model.text.tokenizer='/nowhere/tokenizer.json' is not a file",
    'config.data.mixture.disc.path=/nowhere is not there, and making it is no work for a slice',
    'gs://bucket/no_run does not exist',
  ):
    assert message in error


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--mounts=gs://b:/mnt'], '--mounts=gs://b:/mnt must be BUCKET:/mnt/DIR, without gs://.'),
    (['--topology=v5p-12'], '--topology=v5p-12 does not exist; nearest: v5p:2x2x4'),
  ],
)
def test_wrong_flags(store, flags, message):
  status, _, error = check(store, '--workdir=/tmp/run', *flags)
  assert status == 2
  assert error.startswith(f'error: {message}')


def test_an_option_that_the_compiler_does_not_know(store, tmp_path):
  given = (f'--workdir={tmp_path}', "--config.compiler_options=('xla_nope=1',)")
  status, found, error = check(store, *given)
  assert status == 2
  assert found['compiler options'] == 'FAILED'
  assert "does not take these options: No such compile option: 'xla_nope'. Correct" in error
  # The start of the run says the same, before it reads any data.
  done = programs.run('wam_jax.train', '--config=tests/train_config.py', *given)
  assert done.returncode == 2
  assert done.stderr.count('error: ') == 1
  assert "No such compile option: 'xla_nope'. Correct" in done.stderr

  status, found, error = check(store, *given, '--topology=v5p-8')
  if importlib.util.find_spec('libtpu'):
    assert "The compiler for 'TPU v5' does not take these options: No such" in error
  else:
    assert found['compiler options'].startswith('xla_nope=1; whether the compiler knows them is')


def test_a_workdir_that_cannot_be_written(store, dataset):
  # Tests may run as root, to whom only such a place says no.
  status, found, error = check(store, '--workdir=/proc/run')
  assert status == 2
  assert found['workdir'] == 'FAILED'
  assert 'workdir: --workdir=/proc/run cannot be written: No such file or directory in' in error

  store.is_read_only = True
  try:
    for place in ('new', 'set'):
      status, found, error = check(store, f'--workdir=gs://bucket/{place}')
      assert status == 2
      assert f'gs://bucket/{place}/.check cannot be written: ' in error
      assert error.count('No permission storage.objects.create') == 1
  finally:
    store.is_read_only = False


@pytest.mark.slow
def test_the_run_itself_agrees(store, dataset, tmp_path):
  """What is checked continues, and is refused with another config or another model."""
  given = (
    f'--workdir={tmp_path / "run"}',
    f'--config.data.mixture.disc.path={dataset}',
    '--config.steps=2',
    '--config.eval_every=0',
  )
  done = programs.run('wam_jax.train', '--config=tests/train_config.py', *given)
  assert done.returncode == 0, done.stderr
  status, found, error = check(store, *given)
  assert status == 0, error
  assert found['workdir'] == f'{tmp_path / "run"} continues after step 2'

  status, found, error = check(store, *given, '--config.seed=3')
  assert status == 2
  assert 'config.seed: 0 there, 3 now' in error
  given = (f'--workdir={tmp_path / "other"}', *given[1:], f'--config.init_from={tmp_path / "run"}')
  status, found, error = check(store, *given)
  assert status == 0, error
  assert found['init_from'] == f'step 2 of {tmp_path / "run"}'
  status, _, error = check(store, *given, '--config.model.mlp_dim=64')
  assert status == 2
  assert 'does not fit config.model' in error
