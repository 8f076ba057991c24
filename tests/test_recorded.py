"""Evaluation on recorded episodes: with the records and statistics of the checkpoint, whatever lies
beside the data, and with a word on how these differ.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import beside
from wam_jax.data import pipeline
from wam_jax.evaluation import recorded

MINE = dataclasses.replace(synthetic.CLOCK, name='my_clock')
LENGTHS = (12, 20, 30, 40)


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch, tmp_path):
  monkeypatch.setattr(beside, 'FALLBACK', tmp_path / 'cache')


def make(root, lengths=LENGTHS, record=MINE, edit=lambda episodes: None) -> pathlib.Path:
  path = pathlib.Path(synthetic.make_dataset(root, lengths, edit))
  (path / 'embodiment.json').write_text(json.dumps(dataclasses.asdict(record)))
  return path


def config_on(path, split='train', held_out='') -> cfg.TrainConfig:
  config = synthetic.make_config({'d': (str(path), '', 1.0)})
  dataset = dataclasses.replace(config.data.mixture['d'], split=split, held_out=held_out)
  data = dataclasses.replace(config.data, mixture={'d': dataset}, embodiments=())
  return dataclasses.replace(config, data=data)


def train(config):
  """What a checkpoint of a run on these data knows: its robots and its episodes."""
  data = pipeline.Data.open(config)
  return dict(data.robots), json.loads(json.dumps(data.describe_datasets()))


def evaluate(config, known, **choice):
  return recorded.open_recorded(config, *known, recorded.Choice(**choice))


def read(found):
  return next(found.data.eval_batches(found.split, 1))


def double_actions(episodes):
  for step in (step for episode in episodes for step in episode):
    step['action'] *= 2


def test_what_is_said_of_the_runs_own_dataset_is_not_said_of_another(tmp_path):
  """Whatever a config says of a dataset by its name, or in it."""
  config = config_on(make(tmp_path / 'trained'))
  (name,) = config.data.mixture
  known = train(config)
  left_out = tmp_path / 'exclusions.json'
  left_out.write_text('{}')
  marked = dataclasses.replace(config.data.mixture[name], given='is_first')
  data = dataclasses.replace(
    config.data,
    mixture={name: marked},
    exclude={name: str(left_out)},
    skip_unlabeled=(name,),
    failures=(name,),
  )
  said = dataclasses.replace(config, data=data)
  other = make(tmp_path / 'other')
  found = evaluate(said, known, dataset=str(other), split='train')
  (sampler,) = found.data.open_mixture('train')
  assert sampler.episodes.given == ''
  assert sampler.episodes.exclude == ''
  assert not sampler.episodes.choice.labeled
  # Of its own it is.
  (sampler,) = evaluate(said, known, split='train').data.open_mixture('train')
  assert sampler.episodes.given == 'is_first'
  assert sampler.episodes.exclude == str(left_out)
  assert sampler.episodes.choice.labeled


def test_a_dataset_that_has_changed_is_seen_through_the_statistics_of_training(tmp_path):
  path = make(tmp_path / 'old')
  config = config_on(path)
  known = train(config)
  before = evaluate(config, known)
  assert before.notes == before.overlap == ()

  changed = make(tmp_path / 'new', (*LENGTHS, 60), edit=double_actions)
  moved = config_on(changed)
  names = sorted(path.name for path in changed.iterdir())
  after = evaluate(moved, known, split='train')
  statistics = known[0]['my_clock'].statistics
  (sampler,) = after.data.open_mixture(after.split)
  batch = read(after)
  # The actions of the step t are 2 t and 2 t + 1 now.
  step = sampler.anchors[batch.sample_B2[0, 1]].step
  want = statistics.action.normalize(np.float32([2 * step, 2 * step + 1]))
  np.testing.assert_array_equal(batch.action_BAU[0, 0, :2], want)
  told = '\n'.join(after.notes)
  assert 'd is no longer what was trained on: its shards have changed' in told
  assert 'my_clock is normalized by the statistics of the checkpoint' in told
  assert 'action action[0]: ' in told
  assert sorted(path.name for path in changed.iterdir()) == names

  # Where somebody has computed its own, these are compared, exactly, and still not used.
  train(moved)
  again = evaluate(moved, known, split='train')
  np.testing.assert_array_equal(read(again).action_BAU, batch.action_BAU)
  assert 'action action[0]: ' in '\n'.join(again.notes)


def test_a_record_that_was_edited_is_told_and_not_used(tmp_path):
  config = config_on(make(tmp_path))
  known = train(config)
  before = read(evaluate(config, known))
  path = pathlib.Path(config.data.mixture['d'].path)
  relative = dataclasses.replace(synthetic.RELATIVE, name='my_clock', prompt='do {}')
  (path / 'embodiment.json').write_text(json.dumps(dataclasses.asdict(relative)))
  after = evaluate(config, known)
  np.testing.assert_array_equal(read(after).action_BAU, before.action_BAU)
  assert "record of my_clock is used; today's differs in" in after.notes[0]
  assert "prompt ('{}' against 'do {}')" in after.notes[0]
  # Without any record of today there is nothing to compare.
  (path / 'embodiment.json').unlink()
  assert evaluate(config, known).notes == ()


def test_what_is_held_out_is_one_key_and_what_was_trained_on_is_told(tmp_path):
  path = make(tmp_path)
  config = config_on(path, 'train[:50%]', 'train[50%:]')
  known = train(config)
  assert evaluate(config, known).describe() == {
    'd': {'path': str(path), 'split': 'train[50%:]', 'robot': 'my_clock', 'episodes': 2}
  }
  assert evaluate(config, known).overlap == ()
  assert evaluate(config, known, split='train').overlap == (
    "2 of the 4 episodes of split 'train' of d are trained on: that part is not held out",
  )
  assert 'all of the 2 episodes' in evaluate(config, known, split='train[:50%]').overlap[0]
  # A copy elsewhere is the same dataset.
  copy = tmp_path / 'copy'
  path.rename(copy)
  found = evaluate(config, known, dataset=str(copy), split='train[1:]')
  assert "1 of the 3 episodes of split 'train[1:]' of given" in found.overlap[0]
  (unknown,) = evaluate(config, (known[0], None), dataset=str(copy)).overlap
  assert unknown == 'which episodes these weights were trained on is not known'


def test_a_dataset_and_a_robot_that_are_named(tmp_path):
  robots, _ = train(config_on(make(tmp_path / 'mine')))
  slow = dataclasses.replace(synthetic.SLOW, name='slow')
  path = make(tmp_path / 'slow', record=slow)
  more, _ = train(config_on(path))
  imported = dataclasses.replace(config_on(path), data=cfg.DataConfig())
  known = ({**robots, **more}, None)

  def choose(**choice):
    return evaluate(imported, known, **choice).describe()['given']['robot']

  assert choose(dataset=str(path)) == 'slow'
  assert choose(dataset=str(path), embodiment='my_clock') == 'my_clock'
  assert choose(dataset=str(path), embodiment=str(tmp_path / 'mine/synthetic_rlds/1.0.0')) == (
    'my_clock'
  )
  with pytest.raises(ValueError, match='trained on no dataset, so it is to be named: --dataset'):
    evaluate(imported, known)
  (path / 'embodiment.json').unlink()
  with pytest.raises(ValueError, match=r"--embodiment=NAME, one of \['my_clock', 'slow'\]"):
    choose(dataset=str(path))
  with pytest.raises(ValueError, match="is the robot 'droid', which this checkpoint does not know"):
    choose(dataset=str(path), embodiment='droid')
  without = {name: dataclasses.replace(r, statistics=None) for name, r in robots.items()}
  with pytest.raises(ValueError, match='has statistics of no robot'):
    evaluate(imported, (without, None), dataset=str(path))
