"""What may change between two starts of a run: nothing that the training step or the order of the
samples reads, unless a test shows that it changes no number.

The keys are found by watching a real run read its config.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import sys
import types
import typing
from typing import Any

import pytest

from data.encode import work
from tests import films
from tests import weights
from tests.data import synthetic
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import start
from wam_jax import train
from wam_jax import train_step
from wam_jax import workdir as workdir_lib
from wam_jax.data import embodiments
from wam_jax.data import pipeline
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.data.features import record_files
from wam_jax.models import encoders

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = f'{ROOT / "wam_jax"}/'
# What reads keys without a number of a step coming of it; whatever else does counts.
NO_READERS = tuple(
  PACKAGE + name
  for name in (
    'train.py',  # The loop: when something is written, and when it ends.
    'guards.py',
    'metrics.py',
    'flops.py',
    'agreement.py',  # Compares.
    'workdir.py',
    'source.py',
    'checkpoint/',
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


def _may_change_a_number(frame: types.FrameType) -> bool:
  """Whether whoever reads a key in this frame may."""
  # What a property or a method of the config reads, it reads for its caller.
  while frame.f_back and frame.f_code.co_filename.startswith((PACKAGE + 'config/', __file__)):
    frame = frame.f_back
  path = frame.f_code.co_filename
  return path.startswith(PACKAGE) and not path.startswith(NO_READERS)


@pytest.fixture
def reads(monkeypatch) -> collections.Counter[str]:
  """Counts the keys that modules read which may change a number, while a test runs."""
  counts: collections.Counter[str] = collections.Counter()

  def watch(group: type, prefix: str) -> None:
    keys = {field.name for field in dataclasses.fields(group)}

    def read(self, name):
      if name in keys and _may_change_a_number(sys._getframe(1)):
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


def make_small(config: cfg.TrainConfig, model: cfg.ModelConfig, **keys: Any) -> cfg.TrainConfig:
  """Two steps, in which every part of a step has something to do."""
  return dataclasses.replace(config, model=model, steps=2, log_every=1, save_every=2, **keys)


def make_patches(place: pathlib.Path) -> cfg.TrainConfig:
  """A run from scratch, which needs no download."""
  path = synthetic.make_dataset(place / 'clock', (12, 15, 18, 21))
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
  return make_small(config, model)


def make_adapters(place: pathlib.Path) -> cfg.TrainConfig:
  """Adapters of weights that were imported, with a Wan VAE, UMT5 and CLIP."""
  path = synthetic.make_dataset(place / 'clock', (12, 15, 18, 21))
  config = synthetic.make_config({'d': (path, films.ROBOT.name, 1.0)})
  base = make_small(config, films.make_model(films.write_vocabulary(place / 'tokenizer.json')))
  write_base(place / 'base', base)
  model = dataclasses.replace(base.model, lora=cfg.LoraConfig(rank=2))
  return dataclasses.replace(
    base,
    model=model,
    init_from=str(place / 'base'),
    trainable=('lora',),
    frozen_dtype='bfloat16',
    optimizer=dataclasses.replace(base.optimizer, ema_decay=0.5),
  )


def make_features(place: pathlib.Path) -> cfg.TrainConfig:
  """As `make_adapters`, from what the encoders made of the dataset before."""
  config = make_adapters(place)
  episodes = sources.Episodes(config.data.mixture['d'].path, 'train', films.ROBOT)
  job = work.make_job(
    config.model,
    episodes,
    windows.make_anchors(episodes),
    record_files.Storing(anchor_stride=films.ROBOT.steps_per_chunk),
    'none',
  )
  frozen = weights.draw_encoders(config.model)
  work.encode(job, frozen, encoders.fingerprint(frozen), work.make_machine(8, 2))
  return dataclasses.replace(config, data=dataclasses.replace(config.data, features='require'))


def write_base(workdir: pathlib.Path, config: cfg.TrainConfig) -> None:
  """A checkpoint of random weights."""
  frozen = weights.draw_encoders(config.model)
  state, _ = train_step.init_state(config, sharding.make_mesh(config.mesh), frozen)
  metadata = {
    'config': cfg.to_dict(config),
    'data': pipeline.Data.open(config, [pipeline.TRAINING]).metadata,
    'encoders': encoders.fingerprint(frozen),
  }
  with checkpoint.Checkpoints(workdir, 1) as checkpoints:
    checkpoints.save(1, state, {}, metadata)


# How a run is made, and some keys that it reads, of each kind, so that what is watched is what it
# should be.
RUNS = {
  make_patches: {
    *('seed', 'steps', 'optimizer.b1', 'flow.shift', 'model.dim', 'data.seed', 'init_from'),
    *('data.mixture.*.weight', 'model.tokenizer.channels'),
  },
  make_adapters: {
    *('model.lora.alpha', 'model.lora.targets', 'model.text.buckets', 'model.image.patch'),
    *('model.tokenizer.vae.multipliers', 'frozen_dtype', 'trainable', 'optimizer.ema_decay'),
  },
  make_features: {'model.lora.alpha', 'data.features'},
}


@pytest.mark.slow
@pytest.mark.parametrize('make', RUNS)
def test_what_a_step_reads_may_not_change(make, reads, tmp_path, monkeypatch):
  monkeypatch.setitem(embodiments.EMBODIMENTS, films.ROBOT.name, films.ROBOT)
  config = make(tmp_path)
  train.train(config, tmp_path / 'run')
  assert RUNS[make] <= set(reads)

  stored = workdir_lib.load_config(tmp_path / 'run')
  groups = {prefix.rstrip('.*').rstrip('.') for prefix in list_classes().values()}
  free = {
    key
    for key in reads
    if key not in groups and not workdir_lib.list_differences(stored, change(stored, key))
  }
  # Of a key in this list it is shown elsewhere that the numbers stay; of no other one.
  assert free <= MAY_CHANGE.keys()


def test_what_may_change_has_a_test():
  for key, (path, test) in MAY_CHANGE.items():
    assert f'def {test}(' in (ROOT / path).read_text(), key


def check_same(stored: dict, now: dict) -> None:
  start._check_same_data({'embodiments': {}} | stored, {'embodiments': {}} | now, 'WORKDIR')


def test_other_windows_are_another_dataset(tmp_path):
  """Whatever its statistics: windows may change and their numbers stay alike."""
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
  with pytest.raises(ValueError, match='windows differ. Put .*, exclusions and .*data.ranges'):
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
