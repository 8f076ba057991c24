"""The tabletop builder: what it writes is what the world showed, for any number of workers; bad
requests are errors.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import expert
from data.tabletop import builder
from tests import episodes as episodes_lib
from tests import programs
from wam_jax.envs import tabletop

CONFIG = builder.BuildConfig(
  'disc',
  ('reach', 'place'),
  episodes=6,
  other_episodes=2,
  split_names=('train', 'val', 'unseen_task'),
  view_size=16,
)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  path, made = builder.build(tmp_path_factory.mktemp('built'), CONFIG)
  assert made
  return path


def test_layout_and_counts(dataset):
  assert dataset.parts[-3:] == ('tabletop', 'disc_reach_place', '1.0.0')
  # Nothing temporary is left.
  assert [p.name for p in dataset.parent.iterdir()] == ['1.0.0']
  info = tfds.builder_from_directory(dataset).info
  assert {name: split.num_examples for name, split in info.splits.items()} == {
    'train': 6,
    'val': 2,
    'unseen_task': 2,
  }
  assert info.full_name == 'tabletop/disc_reach_place/1.0.0'


def test_replaying_the_actions_reproduces_every_step(dataset):
  for split in ('train', 'unseen_task'):
    env = builder.make_env(CONFIG, split)
    for episode in episodes_lib.read(dataset, split):
      seen = env.reset(int(episode['seed']))
      assert env.task == episode['task'].decode()
      assert episode['embodiment'] == b'disc'
      for step in episode['steps']:
        np.testing.assert_array_equal(step['observation']['top'], seen['top'])
        np.testing.assert_array_equal(step['observation']['wrist'], seen['wrist'])
        np.testing.assert_array_equal(step['observation']['proprio'], seen['proprio'])
        assert step['language_instruction'].decode() == env.instruction
        assert step['action'].dtype == np.float32
        last_success = env.success
        seen = env.step(step['action'])
      assert last_success
      assert episode['success']
      assert tabletop.held_out(env.scenario.combination) == (split == 'unseen_task')


def test_flags_rewards_and_length(dataset):
  for episode in episodes_lib.read(dataset, 'train'):
    steps = episode['steps']
    n = len(steps)
    # Two chunks of 0.8 s at 10 Hz and the frame before them; the task's time limit is 8 s.
    assert math.ceil(1.6 * 10) + 1 <= n <= 80
    for key, want in (
      ('is_first', [True] + [False] * (n - 1)),
      ('is_last', [False] * (n - 1) + [True]),
      ('is_terminal', [False] * (n - 1) + [True]),
      ('reward', [0.0] * (n - 1) + [1.0]),
      ('discount', [1.0] * (n - 1) + [0.0]),
    ):
      assert [s[key].item() for s in steps] == want, key


# Steps of 1.6 s at 15, 5 and 10 Hz, and one more.
@pytest.mark.parametrize('embodiment, least', [('arm', 25), ('cart', 9), ('human', 17)])
def test_every_embodiment_covers_two_chunks(embodiment, least):
  config = builder.BuildConfig(embodiment, ('reach',), episodes=1, view_size=8)
  env = builder.make_env(config, 'train')
  for index in range(5):
    assert len(builder.record_success(env, config, 'train', index)['steps']) >= least


def test_splits_and_seeds_never_share_an_episode(dataset):
  seeds = [
    int(e['seed'])
    for split in ('train', 'val', 'unseen_task')
    for e in episodes_lib.read(dataset, split)
  ]
  assert len(set(seeds)) == 10
  # Below lie the seeds of evaluation.
  assert min(seeds) >= 1 << 32
  assert expert.make_seed(0, 0, 0, 0) != expert.make_seed(1, 0, 0, 0)


def test_two_workers_write_the_same_bytes(dataset, tmp_path):
  path, _ = builder.build(tmp_path, CONFIG, workers=2)
  # Whatever is derived from it is kept beside it.
  names = [p.relative_to(path) for p in path.rglob('*') if p.is_file()]
  assert any(name.parent.name == 'wam_frames' for name in names)
  for name in names:
    assert (dataset / name).read_bytes() == (path / name).read_bytes(), name


def test_finished_dataset_is_kept_and_other_parameters_are_refused(dataset):
  root = dataset.parents[2]
  stamp = (dataset / 'dataset_info.json').stat().st_mtime_ns
  assert builder.build(root, CONFIG) == (dataset, False)
  assert (dataset / 'dataset_info.json').stat().st_mtime_ns == stamp
  other = builder.BuildConfig(
    **{
      **json.loads((dataset / 'build.json').read_text()),
      'seed': 7,
      'tasks': CONFIG.tasks,
      'split_names': CONFIG.split_names,
    }
  )
  with pytest.raises(ValueError, match='seed=0 there, 7 asked'):
    builder.build(root, other)


def test_what_drifts_by_other_rules_is_another_dataset(tmp_path, monkeypatch):
  """No flag says them, so that a dataset of before a change would otherwise be taken for one of
  after it.
  """
  config = builder.BuildConfig(
    'disc', ('reach_moving',), episodes=1, other_episodes=1, split_names=('train',), view_size=16
  )
  builder.build(tmp_path, config)
  assert builder.build(tmp_path, config)[1] is False
  monkeypatch.setattr(builder.tabletop, 'DRIFT_SPEED', 0.2)
  with pytest.raises(ValueError, match='other parameters.*drift'):
    builder.build(tmp_path, config)


def test_foreign_directory_is_refused_and_untouched(tmp_path):
  path = builder.dataset_path(tmp_path, CONFIG)
  path.mkdir(parents=True)
  # Something of the user's that happens to lie where the dataset would.
  (path / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match='not written by data.tabletop'):
    builder.build(tmp_path, CONFIG)
  assert [p.name for p in path.iterdir()] == ['notes.txt']


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
  def fail(*_):
    raise RuntimeError('disk on fire')

  monkeypatch.setattr(builder, 'record_success', fail)
  with pytest.raises(RuntimeError, match='disk on fire'):
    builder.build(tmp_path, CONFIG)
  assert not list(builder.dataset_path(tmp_path, CONFIG).parent.iterdir())


@pytest.mark.parametrize(
  'change, message',
  [
    ({'episodes': 0}, 'episodes=0'),
    ({'seed': -1}, 'seed=-1'),
    ({'noise': 2.0}, r'noise=2\.0'),
    ({'split_names': ('test',)}, "split_names=\\('test',\\) must be some of"),
    ({'tasks': ('reach', 'reach')}, 'repeats a name'),
    ({'tasks': ('dance',)}, "task='dance'"),
    ({'embodiment': 'dog'}, "embodiment='dog'"),
  ],
)
def test_bad_parameters_are_errors(change, message):
  with pytest.raises(ValueError, match=message):
    builder.BuildConfig(**change)


def test_command_prints_the_path_and_needs_no_tensorflow(tmp_path):
  code = (
    'import runpy, sys, atexit\n'
    'atexit.register(lambda: print("tensorflow" in sys.modules or "jax" in sys.modules))\n'
    'sys.argv = ["data.tabletop"] + sys.argv[1:]\n'
    'runpy.run_module("data.tabletop", run_name="__main__")'
  )
  arguments = [
    f'--output={tmp_path}',
    '--embodiment=cart',
    '--tasks=push',
    '--episodes=2',
    '--view_size=16',
  ]
  done = [programs.run_code(code, *arguments) for _ in range(2)]
  path = tmp_path / 'tabletop' / 'cart_push' / '1.0.0'
  assert [d.returncode for d in done] == [0, 0], done[0].stderr
  assert done[0].stdout.split('\n')[:2] == [str(path), 'False']
  assert done[1].stdout.split('\n')[0] == f'already there: {path}'
  assert '3/3 episodes' in done[0].stderr
  refused = programs.run('data.tabletop', f'--output={tmp_path}', '--tasks=fly')
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: task='fly' must be one of")
