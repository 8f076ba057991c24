"""A record from anywhere, and which row of the model a robot has."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest

from tests.data import synthetic
from wam_jax import config as cfg
from wam_jax.data import embodiments
from wam_jax.data import pipeline
from wam_jax.data import robot as robot_lib
from wam_jax.data import roster
from wam_jax.data import shapes

MINE = dataclasses.replace(synthetic.CLOCK, name='my_clock')


def write(place, record=MINE):
  place.mkdir(parents=True, exist_ok=True)
  (place / 'embodiment.json').write_text(json.dumps(dataclasses.asdict(record)))
  return place / 'embodiment.json'


def write_checkpoint(workdir, records):
  robots = [robot_lib.Robot(number, record, None) for number, record in enumerate(records)]
  for step in (9, 10):  # As numbers, the second one is the newest.
    place = workdir / 'checkpoints' / str(step) / 'metadata'
    place.mkdir(parents=True)
    known = robots if step == 10 else []
    (place / 'metadata').write_text(json.dumps({'data': robot_lib.to_metadata(known)}))
  return workdir


def test_a_record_is_a_name_a_file_what_lies_beside_the_data_or_in_a_checkpoint(tmp_path):
  file = write(tmp_path / 'data')
  one = write_checkpoint(tmp_path / 'one', [MINE])
  two = write_checkpoint(tmp_path / 'two', [synthetic.SLOW, MINE])
  assert embodiments.resolve('clock') == synthetic.CLOCK
  assert embodiments.resolve('', tmp_path / 'data') == MINE
  for text in (file, tmp_path / 'data', one, f'{two}:my_clock'):
    assert embodiments.resolve(str(text)) == MINE
  # What is named comes before what lies beside the data.
  assert embodiments.resolve('clock', tmp_path / 'data') == synthetic.CLOCK


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{', 'is not JSON'),
    ('[]', 'must be a JSON object'),
    ('{"name": "x"}', "does not describe an embodiment .KeyError: 'views'"),
    (json.dumps({**dataclasses.asdict(MINE), 'hertz': 5}), 'hertz'),
    (json.dumps({**dataclasses.asdict(MINE), 'video_fps': 3.0}), 'must divide control_hz'),
  ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, content, message):
  (tmp_path / 'mine.json').write_text(content)
  with pytest.raises(ValueError, match=f'mine.json.*{message}'):
    embodiments.resolve(str(tmp_path / 'mine.json'))


def test_what_is_nowhere_says_where_it_may_be(tmp_path):
  with pytest.raises(ValueError, match="no embodiment 'my_clock'.*has .*A robot of your own"):
    embodiments.resolve('my_clock')
  with pytest.raises(ValueError, match=r'There is no .*embodiment.json.*data.suggest --dataset='):
    embodiments.resolve('', tmp_path)
  with pytest.raises(ValueError, match='There is no record of a robot .*other.json'):
    embodiments.resolve(str(tmp_path / 'other.json'))
  with pytest.raises(ValueError, match='neither embodiment.json nor a checkpoint'):
    embodiments.resolve(str(tmp_path))
  two = write_checkpoint(tmp_path / 'two', [synthetic.SLOW, MINE])
  with pytest.raises(ValueError, match=r"has robots .*'my_clock'.*two:NAME"):
    embodiments.resolve(str(two))


def make_data(paths, embodiment='', **data):
  mixture = {
    name: cfg.DatasetConfig(path=str(path), embodiment=embodiment) for name, path in paths.items()
  }
  return cfg.DataConfig(mixture=mixture, **data)


def test_a_config_without_names_takes_the_records_beside_its_data(tmp_path):
  other = dataclasses.replace(synthetic.SLOW, name='other')
  write(tmp_path / 'a', other)
  write(tmp_path / 'b')
  write(tmp_path / 'c')
  found = roster.read(make_data({name: tmp_path / name for name in 'abc'}))
  assert list(found.robots) == ['other', 'my_clock']
  assert found.datasets == {'a': other, 'b': MINE, 'c': MINE}

  with pytest.raises(ValueError, match="mixture.a has the robot 'other', which is not in"):
    roster.read(make_data({'a': tmp_path / 'a'}, embodiments=(str(tmp_path / 'b'),)))
  write(tmp_path / 'c', dataclasses.replace(MINE, prompt='do {}'))
  with pytest.raises(ValueError, match=r"'my_clock', and differ in prompt \('{}' against 'do {}'"):
    roster.read(make_data({name: tmp_path / name for name in 'bc'}))
  with pytest.raises(ValueError, match=r"statistics names \['nobody'\]; the robots .*my_clock"):
    roster.read(make_data({'b': tmp_path / 'b'}, statistics={'nobody': 'file'}))


def test_robots_keep_their_rows_by_name_and_new_ones_get_free_ones():
  known = roster.Known(
    {
      name: robot_lib.Robot(row, dataclasses.replace(MINE, name=name), None)
      for name, row in (('left', 2), ('right', 0))
    },
    'the base',
  )
  assign = functools.partial(roster.assign_rows, cfg.DataConfig())
  assert assign(['a', 'b'], None, 2) == {'a': 0, 'b': 1}
  assert assign(['left'], known, 3) == {'left': 2}
  rows = assign(['a', 'right', 'b'], known, 4)
  # Row 2 stays that of the left one, which this run does not have.
  assert rows == {'a': 1, 'right': 0, 'b': 3}
  assert roster.describe_rows(rows, known) == (
    'rows of the action modules, of the base: a gets row 1, new; right keeps row 0; '
    'b gets row 3, new'
  )
  with pytest.raises(
    ValueError,
    match=r"num_embodiments=3 has no row for each of .*the base has .*'left': 2.*Set it to 4, or "
    r"let 'a' go on from a row that is there: data.rows={'a': 0}",
  ):
    assign(['a', 'right', 'b'], known, 3)

  given = cfg.DataConfig(rows={'a': 2})
  rows = roster.assign_rows(given, ['a', 'b'], known, 3)
  assert rows == {'a': 2, 'b': 1}
  assert 'a goes on from row 2 of left; b gets row 1, new' in roster.describe_rows(rows, known)
  with pytest.raises(ValueError, match=r"rows names \['a'\]; the robots are \['b'\]"):
    roster.assign_rows(given, ['b'], known, 3)


def test_a_dataset_is_read_by_the_record_beside_it(clock_path, tmp_path):
  config = synthetic.make_config({'d': (clock_path, 'clock', 1.0)})
  want = pipeline.Data.open(config).train_batches().read(0)
  mine = write(tmp_path)
  data = make_data({'d': clock_path}, str(mine))
  given = pipeline.Data.open(dataclasses.replace(config, data=data))
  assert list(given.robots) == ['my_clock']
  got = given.train_batches().read(0)
  assert (got.action_BAU == want.action_BAU).all()
  assert (got.frames_BRIJ3 == want.frames_BRIJ3).all()


def test_shapes_are_told_from_a_record_in_a_file(tmp_path):
  """As wam_jax.compile needs them, which reads no dataset."""
  file = write(tmp_path)
  data = cfg.DataConfig(embodiments=(str(file),))
  sizes = shapes.sizes(cfg.TrainConfig(data=data))
  assert (sizes.rows, sizes.columns) == MINE.composite
