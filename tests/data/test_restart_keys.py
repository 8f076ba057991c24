"""What may change between two starts of a run: nothing that the training step or the order of the
samples reads, unless a test shows that it changes no number.

The keys are found by watching a real run read its config.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import sys
import typing
from typing import Any

import pytest

from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax import start
from wam_jax import train
from wam_jax import workdir as workdir_lib
from wam_jax.data import pipeline
from wam_jax.data import sources
from wam_jax.data import windows

ROOT = pathlib.Path(__file__).parents[2]
# Modules whose reading of a key can change a number.
READERS = tuple(
  str(ROOT / 'wam_jax' / name)
  for name in (
    'start.py',
    'train_step.py',
    'flow.py',
    'masks.py',
    'finetuning.py',
    'sharding.py',
    'models',
    'data',
  )
)

# Keys that are read and may change, with the test that shows that the numbers stay, or that what a
# key names is compared by its content.
SAME_ON_EVERY_MESH = 'tests/test_sharding.py', 'test_two_steps_equal_one_device'
# As a mesh, options may change the order of sums; those that are known to do more are refused.
SAME_BUT_FOR_SUMS = (
  'tests/test_compiler_options.py',
  'test_known_bad_combinations_are_refused_by_both_routes',
)
SAME_BATCHES = 'tests/data/test_pipeline.py', 'test_same_seed_same_batches_whatever_the_threads'
SAME_WINDOWS = 'tests/data/test_restart_keys.py', 'test_other_windows_are_another_dataset'
SAME_FEATURES = 'tests/data/test_restart_keys.py', 'test_other_features_are_another_dataset'
SAME_ROBOTS = 'tests/data/test_restart_keys.py', 'test_another_robot_is_another_dataset'
SAME_STATISTICS = 'tests/test_train.py', 'test_changed_dataset_is_refused'
SAME_WORDS = 'tests/test_workdir.py', 'test_the_vocabulary_is_that_of_the_start_that_saved'
MAY_CHANGE = {
  'accumulate': ('tests/test_train_step.py', 'test_accumulation_changes_no_number'),
  'mesh': SAME_ON_EVERY_MESH,
  'rules': SAME_ON_EVERY_MESH,
  'compiler_options': SAME_BUT_FOR_SUMS,
  'sdc_checks': ('tests/test_compiler_options.py', 'test_a_check_for_corruption'),
  'data.embodiments': SAME_ROBOTS,
  'data.mixture.*.embodiment': SAME_ROBOTS,
  'data.cache_gib': SAME_BATCHES,
  'data.prefetch': SAME_BATCHES,
  'data.threads': SAME_BATCHES,
  'data.workers': ('tests/data/test_pipeline.py', 'test_resumed_equals_straight'),
  'data.mixture.*.path': SAME_WINDOWS,
  'data.mixture.*.prepare': SAME_WINDOWS,
  'data.mixture.*.source': SAME_WINDOWS,
  'data.root': SAME_WINDOWS,
  'data.ranges': SAME_WINDOWS,
  'data.statistics': SAME_STATISTICS,
  'data.features': SAME_FEATURES,
  'model.text.tokenizer': SAME_WORDS,
}


def list_classes(group: type = cfg.TrainConfig, prefix: str = '') -> dict[type, str]:
  """The classes of the config, each with the place of its keys."""
  found = {group: prefix}
  for name, hint in typing.get_type_hints(group).items():
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
      found |= list_classes(hint, f'{prefix}{name}.')
  return found | {cfg.DatasetConfig: 'data.mixture.*.'}


@pytest.fixture
def reads(monkeypatch) -> collections.Counter[str]:
  """Counts the keys that `READERS` read, while a test runs."""
  counts: collections.Counter[str] = collections.Counter()

  def watch(group: type, prefix: str) -> None:
    keys = {field.name for field in dataclasses.fields(group)}

    def read(self, name):
      if name in keys and sys._getframe(1).f_code.co_filename.startswith(READERS):
        counts[prefix + name] += 1
      return object.__getattribute__(self, name)

    monkeypatch.setattr(group, '__getattribute__', read)

  for group, prefix in list_classes().items():
    watch(group, prefix)
  return counts


def change(config: Any, key: str) -> Any:
  """A config as it is stored, with another value of `key`, or of one of its entries."""
  if not key:
    names = [*config, 'd'] if isinstance(config, dict) else []
    return config | {names[0]: 'another'} if names else 'another'
  group, _, rest = key.partition('.')
  if group == '*':
    (group,) = config
  return config | {group: change(config[group], rest)}


@pytest.fixture
def config(tmp_path) -> cfg.TrainConfig:
  """Two steps, in which every part of a step has something to do."""
  path = synthetic.make_dataset(tmp_path / 'clock', (12, 15, 18, 21))
  config = synthetic.make_config({'d': (path, 'clock', 1.0)})
  model = dataclasses.replace(
    config.model,
    dim=16,
    mlp_dim=32,
    num_layers=1,
    action_hidden=16,
    text=cfg.TextConfig(dim=16, layers=1),
    # Every image is of one colour: patches vary in few directions.
    tokenizer=dataclasses.replace(config.model.tokenizer, channels=2, fit_windows=8),
  )
  return dataclasses.replace(config, model=model, steps=2, log_every=1, save_every=2)


@pytest.mark.slow
def test_what_a_step_reads_may_not_change(config, reads, tmp_path):
  train.train(config, tmp_path / 'run')
  # Of each kind, so that what is watched is what it should be.
  assert {'seed', 'steps', 'optimizer.b1', 'flow.shift', 'model.dim', 'data.seed'} <= set(reads)
  assert {'data.mixture.*.weight', 'model.tokenizer.channels', 'init_from'} <= set(reads)

  stored = workdir_lib.load_config(tmp_path / 'run')
  groups = {prefix.rstrip('.*').rstrip('.') for prefix in list_classes().values()}
  free = {
    key
    for key in reads
    if key not in groups and not workdir_lib.list_differences(stored, change(stored, key))
  }
  # Of a key in this list it is shown elsewhere that the numbers stay; of no other one.
  assert free <= MAY_CHANGE.keys()
  for key, (path, test) in MAY_CHANGE.items():
    assert f'def {test}(' in (ROOT / path).read_text(), key


def check_same(stored: dict, now: dict) -> None:
  start._check_same_data({'embodiments': 1} | stored, {'embodiments': 1} | now, 'WORKDIR')


def test_other_windows_are_another_dataset(tmp_path):
  """The statistics of a dataset do not depend on which of its windows are trained on."""
  path = synthetic.make_dataset(tmp_path / 'clock', (30, 24))
  episodes = sources.Episodes(path, 'train', synthetic.CLOCK)
  anchors = windows.make_anchors(episodes)
  assert anchors.fingerprint == windows.make_anchors(episodes).fingerprint
  # One step less at the end of a range, another order, chunks of another length.
  shorter = dataclasses.replace(anchors, end_K=anchors.end_K - 1)
  reverse = dataclasses.replace(anchors, episode_K=anchors.episode_K[::-1])
  others = [shorter, reverse, dataclasses.replace(anchors, steps_per_chunk=7)]
  assert len({a.fingerprint for a in (anchors, *others)}) == 4

  config = synthetic.make_config({'d': (path, 'clock', 1.0)})
  metadata = pipeline.Data.open(config, [pipeline.TRAINING]).metadata
  assert metadata['windows'] == {'d': anchors.fingerprint}
  now = {'windows': metadata['windows']}
  check_same(now, now)
  check_same({}, now)  # A checkpoint of an earlier version does not say.
  with pytest.raises(ValueError, match=r'windows differ. Put the old episodes, and .*data.ranges'):
    check_same({'windows': {'d': shorter.fingerprint}}, now)


def test_another_robot_is_another_dataset(tmp_path):
  """A record may lie in another file; what it says is compared, and its row of the model."""
  path = synthetic.make_dataset(tmp_path / 'clock', (30, 24))

  def describe(robot: str) -> dict:
    config = synthetic.make_config({'d': (path, robot, 1.0)})
    return pipeline.Data.open(config, [pipeline.TRAINING]).metadata

  clock = describe('clock')
  check_same(clock, describe('clock'))
  with pytest.raises(ValueError, match='since WORKDIR was last saved: embodiments'):
    check_same(clock, describe('clock_slow'))
  rows = {'embodiments': {'clock': clock['embodiments']['clock'] | {'id': 1}}}
  with pytest.raises(ValueError, match='since WORKDIR was last saved: embodiments'):
    check_same(clock, clock | rows)


def test_other_features_are_another_dataset():
  with pytest.raises(ValueError, match='features differ. Put the old features back, or start'):
    check_same({'features': {'d': 'a'}}, {'features': {'d': 'b'}})
  with pytest.raises(ValueError, match='features differ. Put the old features back, or start'):
    check_same({'features': {'d': 'a'}}, {})
  with pytest.raises(ValueError, match='differ. Set --config.data.features=off to go on from pix'):
    check_same({}, {'features': {'d': 'b'}})
