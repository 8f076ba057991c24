"""A run that starts from another: its robots keep their rows by name, and their statistics by
choice.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests import test_finetuning
from tests import train_config
from tests.data import synthetic
from wam_jax import checkpoint
from wam_jax import config as cfg
from wam_jax import train
from wam_jax import train_step
from wam_jax.data import robot as robot_lib

ARMS = ('left', 'right', 'third')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Datasets of three arms, each with its record beside it, whose numbers differ, and a base that
  knows two of them.
  """
  root = tmp_path_factory.mktemp('arms')
  for scale, name in enumerate(ARMS, start=1):

    def stretch(episodes, scale=scale):
      for step in (step for episode in episodes for step in episode):
        step['action'] *= scale

    path = synthetic.make_dataset(root / name, [12, 20], stretch)
    record = dataclasses.replace(synthetic.CLOCK, name=name)
    with open(f'{path}/embodiment.json', 'w') as file:
      json.dump(dataclasses.asdict(record), file)
  run(root / 'base', root, ['left', 'right'], rows=2)
  return root


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch):
  monkeypatch.setattr(train_step, 'make_train_step', test_finetuning.make_counting_step)


def run(workdir, root, arms, rows, **changes):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_step, 'make_train_step', test_finetuning.make_counting_step)
    train.train(make_config(root, arms, rows, **changes), workdir)
  return checkpoint.load_for_inference(workdir)


def make_config(root, arms, rows, **changes):
  c = train_config.get_config()
  c.steps = c.save_every = 1
  c.eval_every = 0
  c.model.num_embodiments = rows
  c.model.tokenizer.channels = 2  # The synthetic frames vary in no more directions.
  c.data.embodiments = ()
  c.data.mixture = {name: {'path': f'{root}/{name}/synthetic_rlds/1.0.0'} for name in arms}
  for key, value in changes.items():
    c.update_from_flattened_dict({key.replace('__', '.'): value})
  return cfg.from_config_dict(c)


def read_action_rows(trained):
  return np.asarray(trained.params['action_decoder']['out']['w'])


def read_rows(trained):
  return {name: robot.id for name, robot in robot_lib.from_metadata(trained.metadata).items()}


@pytest.mark.slow
def test_a_robot_keeps_its_row_and_a_new_one_gets_a_fresh_one(place, tmp_path, capfd):
  base = checkpoint.load_for_inference(place / 'base')
  assert read_rows(base) == {'left': 0, 'right': 1}
  from_base = {'init_from': str(place / 'base')}

  alone = run(tmp_path / 'alone', place, ['right'], 2, **from_base)
  assert read_rows(alone) == {'right': 1}
  assert 'right keeps row 1' in capfd.readouterr().out
  # The same again goes on from its own checkpoint, also where the base is gone.
  again = make_config(place, ['right'], 2, **from_base)
  (place / 'base').rename(place / 'gone')
  train.train(again, tmp_path / 'alone')
  (place / 'gone').rename(place / 'base')
  assert 'rows of' not in capfd.readouterr().out

  more = run(tmp_path / 'more', place, ['third', 'right'], 4, **from_base)
  assert read_rows(more) == {'third': 2, 'right': 1}
  assert 'right keeps row 1; third gets row 2, new' in capfd.readouterr().out
  rows = read_action_rows(more)
  np.testing.assert_array_equal(rows[:2], read_action_rows(base))
  assert rows.shape[0] == 4
  assert rows[2].any()

  with pytest.raises(ValueError, match="num_embodiments=2 has no row .*'left': 0.*Set it to 3"):
    run(tmp_path / 'full', place, ['third'], 2, **from_base)


@pytest.mark.slow
def test_statistics_are_those_of_the_data_or_of_the_base_and_the_difference_is_told(
  place, tmp_path, capfd
):
  of_base = robot_lib.from_metadata(checkpoint.load_for_inference(place / 'base').metadata)
  # The data that are called the right arm's now are twice as wide, and a half more.
  moved = tmp_path / 'data' / 'right'
  moved.parent.mkdir()
  moved.symlink_to(place / 'third')
  record = dataclasses.replace(synthetic.CLOCK, name='right')
  file = tmp_path / 'right.json'
  file.write_text(json.dumps(dataclasses.asdict(record)))
  changes = {
    'init_from': str(place / 'base'),
    'data__mixture': {'right': {'path': f'{moved}/synthetic_rlds/1.0.0', 'embodiment': str(file)}},
  }

  def statistics_of(trained):
    return robot_lib.from_metadata(trained.metadata)['right'].statistics.action

  own = run(tmp_path / 'own', place, ['right'], 2, **changes)
  told = capfd.readouterr().out
  assert 'right is normalized by those of its data' in told
  # The base's 0 to 40 is 60 here, half as much again: from the middle, 20 +- 20, that is +2.
  assert 'action action[0]: ' in told
  assert statistics_of(own).q99[0] == pytest.approx(1.5 * of_base['right'].statistics.action.q99[0])

  kept = run(tmp_path / 'kept', place, ['right'], 2, **changes, data__statistics_of='base')
  told = capfd.readouterr().out
  assert f'right is normalized by those of {place / "base"}' in told
  assert 'becomes -1.00 to 2.00' in told
  np.testing.assert_array_equal(statistics_of(kept).q99, of_base['right'].statistics.action.q99)

  with pytest.raises(ValueError, match="'third' is to have the statistics of the base"):
    run(
      tmp_path / 'none',
      place,
      ['third'],
      3,
      init_from=str(place / 'base'),
      data__statistics_of='base',
    )
  relative = dataclasses.replace(synthetic.RELATIVE, name='right')
  file.write_text(json.dumps(dataclasses.asdict(relative)))
  with pytest.raises(ValueError, match='of other numbers: .*is relative q99, there absolute q99'):
    run(tmp_path / 'relative', place, ['right'], 2, **changes, data__statistics_of='base')
