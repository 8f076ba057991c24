"""Object storage, against a small server of it: a run, its dataset and its evaluation there equal
those on a disk.
"""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests import object_store
from tests import programs


@pytest.fixture(scope='module')
def store():
  with object_store.ObjectStore() as made:
    yield made


def start(store, module, *flags) -> programs.Program:
  return programs.Program(module, *flags, variables=store.environment, one_stream=True)


def run(store, module, *flags, status=0) -> str:
  process = start(store, module, *flags)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == status, output
  return output


def train_flags(workdir, dataset) -> tuple[str, ...]:
  return (
    '--config=tests/train_config.py',
    f'--workdir={workdir}',
    f'--config.data.mixture.disc.path={dataset}',
    '--config.steps=16',
    '--config.save_every=4',
  )


@pytest.mark.slow
def test_a_run_in_a_bucket_equals_a_local_one(store, tmp_path):
  local = tmp_path / 'run'
  dataset = 'gs://bucket/data/1.0.0'
  make = (
    f'--output={tmp_path}',
    '--embodiment=disc',
    '--tasks=reach',
    '--episodes=24',
    '--other_episodes=4',
  )
  run(store, 'data.tabletop', *make)
  made = tmp_path / 'tabletop/disc_reach/1.0.0'
  # To the bucket, and from there: a source may be remote as well.
  run(store, 'data.convert', f'--source={made}', '--output=gs://bucket/once/1.0.0')
  assert 'train 24 episodes' in run(
    store, 'data.convert', '--source=gs://bucket/once/1.0.0', f'--output={dataset}'
  )
  assert not [
    name
    for name in store.list('data/')
    if 'origin' in name or ('record' in name and name.endswith('.json'))
  ]
  run(store, 'wam_jax.train', *train_flags(local, made))

  traced = '--config.profile=(2, 3)'
  stopped = start(store, 'wam_jax.train', *train_flags('gs://bucket/run', dataset), traced)
  # After the checkpoint of step 4, so that there is one to continue from.
  while b'{"step": 6,' not in store.read('run/metrics.jsonl'):
    assert stopped.poll() is None, stopped.communicate()[0]
    time.sleep(0.01)
  # The trace does not wait for the end of the run.
  assert [name for name in store.list('run/profile/') if name.endswith('.xplane.pb')]
  stopped.send_signal(signal.SIGTERM)
  output, _ = stopped.communicate(timeout=240)
  assert stopped.returncode == 128 + signal.SIGTERM, output
  assert 'continuing after step' in run(
    store, 'wam_jax.train', *train_flags('gs://bucket/run', dataset)
  )
  assert store.read('run/metrics.jsonl') == (local / 'metrics.jsonl').read_bytes()
  assert store.read('run/timing.jsonl')
  assert [name for name in store.list('run/tensorboard/') if 'tfevents' in name]
  assert json.loads(store.read('run/config.json'))['steps'] == 16

  evaluate = ('--env=dataset', '--episodes=1', '--steps=1', '--videos=1', '--output')
  run(store, 'wam_jax.evaluate', f'--workdir={local}', *evaluate, tmp_path / 'table')
  run(store, 'wam_jax.evaluate', '--workdir=gs://bucket/run', *evaluate, 'gs://bucket/table')
  here = json.loads((tmp_path / 'table/evaluation.json').read_text())
  there = json.loads(store.read('table/evaluation.json'))
  differing = {key for key in here if here[key] != there[key]}
  # Where it and its data are, and how fast it was; no figure.
  assert differing <= {'workdir', 'datasets', 'latency'}
  names = [
    path.relative_to(tmp_path).as_posix()
    for path in (tmp_path / 'table').rglob('*')
    if path.is_file()
  ]
  assert store.list('table/') == sorted(names)


def test_mistakes_are_one_message(store, tmp_path):
  train = train_flags('gs://missing/run', tmp_path)
  output = run(store, 'wam_jax.train', *train, status=1)
  assert 'error: gs://missing/run/.owner cannot be written: there is no such bucket' in output
  assert 'Traceback' not in output
  output = run(store, 'wam_jax.evaluate', '--workdir=gs://bucket/none', status=2)
  assert output.startswith('error: gs://bucket/none does not exist')


@pytest.mark.slow
def test_a_bucket_that_is_taken_or_damaged(store):
  assert 'all held' in run(store, 'tests.taken')
