"""The Meta-World builder: what it writes is what the simulator showed. Needs the extra
`metaworld`.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests import episodes as episodes_lib
from tests import programs
from tests import videos

pytest.importorskip('metaworld', reason="pip install -e '.[metaworld]'")

from configs import metaworld as experiment
from data.metaworld import builder
from wam_jax import config as cfg
from wam_jax import train
from wam_jax.data import embodiments
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.evaluation import run

CONFIG = builder.BuildConfig(('handle-press', 'reach'), episodes=1, view_size=16)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  path, made = builder.build(tmp_path_factory.mktemp('built'), CONFIG, workers=2)
  assert made
  return path


def test_replaying_the_actions_reproduces_every_step(dataset):
  # It was recorded by other processes: nothing depends on the one that draws.
  assert dataset.parts[-3:] == ('metaworld', 'handle-press_reach', '1.0.0')
  seeds = []
  for split in ('train', 'val'):
    episodes = episodes_lib.read(dataset, split)
    assert [e['task'].decode() for e in episodes] == ['handle-press', 'reach']
    for episode in episodes:
      env = builder.make_env(CONFIG, (episode['task'].decode(),))
      seen = env.reset(int(episode['seed']))
      seeds.append(int(episode['seed']))
      for step in episode['steps']:
        np.testing.assert_array_equal(step['observation']['proprio'], seen['proprio'])
        for view in builder.metaworld.VIEWS:
          # JPEG changes pixels, but hardly their mean.
          stored = step['observation'][view].mean((0, 1))
          np.testing.assert_allclose(stored, seen[view].mean((0, 1)), atol=2)
        assert step['language_instruction'].decode() == env.instruction
        succeeded = env.success
        seen = env.step(step['action'])
      assert succeeded
      assert episode['success']
      assert episode['steps'][-1]['is_terminal']
      # Two chunks and the frame before them.
      assert len(episode['steps']) >= 33
      env.close()
  assert len(set(seeds)) == 4
  # Below lie the seeds of evaluation.
  assert min(seeds) >= 1 << 32


def test_the_shipped_record_fits(dataset):
  record = embodiments.get('metaworld')
  episodes = sources.Episodes(str(dataset), 'train', record)
  S = record.steps_per_chunk
  assert (S, record.camera_frames_per_chunk) == (16, 8)
  assert len(windows.make_anchors(episodes)) == sum(episodes[i].length - S for i in range(2))
  assert record.control_hz == builder.metaworld.CONTROL_HZ
  assert {view.key for view in record.views} == set(builder.metaworld.VIEWS)


@pytest.fixture(scope='module')
def workdir(dataset, tmp_path_factory):
  """A run of configs/metaworld.py, of two steps, on that dataset."""
  c = experiment.get_config('smoke')
  c.data.mixture.metaworld.path = str(dataset)
  c.evaluation.tasks = CONFIG.tasks
  c.steps = 2
  place = tmp_path_factory.mktemp('run')
  assert train.train(cfg.from_config_dict(c), place) == 0
  return place


@pytest.mark.parametrize(
  'policy', ['expert', 'hold', pytest.param('model', marks=pytest.mark.slow)]
)
def test_a_checkpoint_acts_in_the_simulator(workdir, tmp_path, monkeypatch, capsys, policy):
  """In the same scenes the experts succeed, and who does nothing, or has learned nothing, does
  not.
  """
  # Two seconds: most of the limit is waiting for those who fail.
  monkeypatch.setattr(builder.metaworld.MetaworldEnv, 'max_steps', 80)
  options = run.Options(str(workdir), policy=policy, output=str(tmp_path), videos=1)
  rows = run.evaluate(options)['success']
  assert [row['task'] for row in rows][-1] == 'all'
  assert {row['robot'] for row in rows} == {'metaworld'}
  assert rows[-1]['successes'] == (2 if policy == 'expert' else 0)
  assert 'metaworld' in capsys.readouterr().out

  frames, _ = videos.read(tmp_path / 'metaworld_0.mp4')
  first = frames[0].astype(int)
  env = builder.make_env(CONFIG, CONFIG.tasks)
  env.reset(0)
  scene = env.render(384)
  # The scene as the simulator draws it, upright, to what MP4 changes.
  head = run.film.HEAD_ROWS
  assert np.abs(first[head : head + 384, :384] - scene).mean() < 6
  assert np.abs(first[head : head + 384, :384] - scene[::-1]).mean() > 12
  assert (tmp_path / 'metaworld_0_actions.png').exists()
  assert (tmp_path / 'metaworld_0.png').exists() == (policy == 'model')


@pytest.mark.parametrize(
  'change, message',
  [
    ({'episodes': 0}, 'episodes=0'),
    ({'seed': -1}, 'seed=-1'),
    ({'noise': 2.0}, r'noise=2\.0'),
    ({'tasks': ('reach', 'reach')}, 'repeats a name'),
    ({'tasks': ('dance',)}, "task='dance'"),
  ],
)
def test_bad_parameters_are_errors(change, message):
  with pytest.raises(ValueError, match=message):
    builder.BuildConfig(**change)


def test_a_dataset_is_named_by_its_tasks_and_stays_short():
  assert builder.BuildConfig().name == 'all'
  assert builder.BuildConfig(('reach', 'push')).name == 'reach_push'
  # A directory's name stays short: more than three tasks are a number and a hash.
  assert builder.BuildConfig(('reach', 'push', 'soccer', 'sweep')).name.startswith('4_tasks_')


def test_the_command_makes_a_dataset_once_and_refuses_unknown_tasks(dataset, tmp_path):
  run = functools.partial(programs.run, 'data.metaworld')
  again = run(
    f'--output={dataset.parents[2]}', '--tasks=handle-press,reach', '--episodes=1', '--view_size=16'
  )
  assert (again.returncode, again.stdout) == (0, f'already there: {dataset}\n'), again.stderr
  refused = run(f'--output={tmp_path}', '--tasks=fly')
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: task='fly' must be one of")
