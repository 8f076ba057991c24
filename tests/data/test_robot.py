"""A robot between raw units and the model's: it senses, is told, acts; what a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib

CLOCK, RELATIVE = synthetic.CLOCK, synthetic.RELATIVE
Q = normalize.Quantiles(np.float32([0, -2]), np.float32([10, 2]))


def make_robot(record, state, action) -> robot_lib.Robot:
  return robot_lib.Robot(0, record, normalize.Statistics(state, action, 1))


def test_observes_the_composite_and_the_state_in_the_records_units():
  record = dataclasses.replace(
    CLOCK, state=(record_lib.Slice('proprio', 1, 3, 's', offset=10, scale=2),)
  )
  rng = np.random.default_rng(0)
  views = {key: rng.integers(0, 256, (32, 40, 3), np.uint8) for key in ('top', 'wrist')}
  robot = robot_lib.Robot(0, record, None, center_crop=True)
  image_IJ3, proprio_X = robot.observe(views, {'proprio': np.float32([7, 14, 16])})
  np.testing.assert_array_equal(proprio_X, [2, 3])
  np.testing.assert_array_equal(image_IJ3, images.compose(record, views, images.CENTER_CROP))
  assert robot.instruct(' Push IT ') == record.instruct(' Push IT ')
  with pytest.raises(ValueError, match="View 'wrist' of 'clock' is missing"):
    robot.observe({'top': views['top']}, {'proprio': np.zeros(3)})
  with pytest.raises(ValueError, match="'proprio' has 2 columns"):
    robot.observe(views, {'proprio': np.zeros(2)})


def test_commitments_count_from_where_the_next_chunk_begins():
  """The end of one chunk, as the robot takes it, is for the next chunk what training would make of
  these actions there.
  """
  D = 3
  action = normalize.Quantiles(np.float32([-3, -3]), np.float32([3, 3]))
  robot = dataclasses.replace(make_robot(RELATIVE, Q, action), action_overlap=D)
  before, after = np.float32([0.5, 7, 9]), np.float32([1.5, 7, 9])
  raw_SU = np.random.default_rng(1).uniform(0, 2, (8 + D, 2)).astype(np.float32)
  relative = normalize.subtract_reference(RELATIVE, raw_SU[None], before[None])
  # More columns than the robot's 2.
  acted_SU = robot.act(robot.normalize_action(relative[0], 4), before)
  np.testing.assert_allclose(acted_SU, raw_SU, atol=1e-5)

  got = robot.normalize_prefix(acted_SU[8:10], after, 4)
  # From the state of now, in thirds; nothing where there is no commitment or no dimension.
  want = np.zeros((D, 4), np.float32)
  want[:2, :2] = (raw_SU[8:10] - (1.5, 0)) / 3
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_array_equal(
    robot.normalize_prefix(np.zeros((0, 2)), after, 4), np.zeros((D, 4))
  )

  nan = np.full((1, 2), np.nan)
  for bad, message in (
    (raw_SU[:4], 'has 4 steps, and this model was trained for at most model.action_overlap=3'),
    (raw_SU[:2, :1], r"prefix of 'clock_relative' has shape \(2, 1\); expected \(steps, 2\)"),
    (nan, 'is not finite'),
  ):
    with pytest.raises(ValueError, match=message):
      robot.normalize_prefix(bad, after, 4)


def test_the_overlap_is_kept_in_a_checkpoint():
  state = normalize.Quantiles(np.zeros(3, np.float32), np.ones(3, np.float32))
  robot = dataclasses.replace(make_robot(CLOCK, state, Q), action_overlap=3)
  stored = json.loads(json.dumps(robot_lib.to_metadata([robot])))
  assert robot_lib.from_metadata(stored)['clock'].action_overlap == 3
  # Of robots without, metadata are word for word what they were.
  stored = robot_lib.to_metadata([make_robot(CLOCK, Q, Q)])
  assert 'action_overlap' not in stored['embodiments']['clock']


def test_act_adds_the_reference_back():
  raw_QSU = np.random.default_rng(1).uniform(0, 2, (1, 8, 2)).astype(np.float32)
  proprio = np.float32([0.5, 7, 9])
  relative = normalize.subtract_reference(RELATIVE, raw_QSU, proprio[None])
  np.testing.assert_allclose(relative[0], raw_QSU[0] - (0.5, 0), atol=1e-6)
  robot = make_robot(RELATIVE, Q, normalize.Quantiles(np.float32([-3, -3]), np.float32([3, 3])))
  # As a model gives them: more rows than the robot's chunk of 8, more columns than its 2.
  padded_AU = np.zeros((10, 4), np.float32)
  padded_AU[:8] = robot.normalize_action(relative[0], 4)
  np.testing.assert_allclose(robot.act(padded_AU, proprio), raw_QSU[0], atol=1e-5)
  with pytest.raises(ValueError, match=r'Actions of shape \(4, 2\) are too small'):
    robot.act(padded_AU[:4, :2], proprio)
  with pytest.raises(
    ValueError, match=r"Proprio of 'clock_relative' has shape \(2,\); expected \(3,\)"
  ):
    robot.act(padded_AU, proprio[:2])


def test_proprio_is_padded_with_zeros():
  got = make_robot(CLOCK, Q, Q).normalize_proprio(np.float32([[10, 0]]), 4)
  np.testing.assert_array_equal(got, [[1, 0, 0, 0]])


def test_actions_come_back_in_the_units_of_the_robot():
  """LIBERO's gripper is 1 open here and -1 open there."""
  libero = embodiments.get('libero')
  ones = np.ones(7, np.float32)
  state = normalize.Quantiles(np.zeros(8, np.float32), np.ones(8, np.float32))
  robot = make_robot(libero, state, normalize.Quantiles(-ones, ones))
  # Open, then half closed.
  given_AU = np.zeros((32, 7), np.float32)
  given_AU[:16, 6] = 1
  got = robot.act(given_AU, np.zeros(8, np.float32))
  np.testing.assert_array_equal(got[:, 6], [-1] * 16 + [1] * 16)
  np.testing.assert_array_equal(got[:, :6], 0)


def make_statistics(record):
  # Random numbers, of no order: they are kept, not used.
  rng = np.random.default_rng(0)

  def draw(width):
    arrays = rng.uniform(-3, 3, (6, width)).astype(np.float32)
    return normalize.Quantiles(*arrays, norms=('q99',) * width)

  state = draw(record.proprio_dim)
  action = draw(record.action_dim)
  return normalize.Statistics(state, action, 3)


def test_metadata_survives_json():
  robots = [
    robot_lib.Robot(0, RELATIVE, make_statistics(RELATIVE), center_crop=True),
    robot_lib.Robot(1, CLOCK, None),
  ]
  stored = json.dumps(robot_lib.to_metadata(robots))
  back = robot_lib.from_metadata(json.loads(stored))
  assert back['clock'] == robots[1]
  assert back['clock_relative'].record == RELATIVE
  assert back['clock_relative'].center_crop
  assert not back['clock'].center_crop
  for part in ('state', 'action'):
    got = getattr(back['clock_relative'].statistics, part)
    want = getattr(robots[0].statistics, part)
    for key in normalize.ARRAYS:
      np.testing.assert_array_equal(getattr(got, key), getattr(want, key))
    assert got.norms == want.norms
  with pytest.raises(ValueError, match='describes no embodiments as this version writes them'):
    robot_lib.from_metadata({'something': 1})


def test_metadata_of_older_checkpoints_is_read():
  """As the first version wrote it: q01 and q99 only, no norms, no crop."""
  content = robot_lib.to_metadata([robot_lib.Robot(2, CLOCK, make_statistics(CLOCK))])
  stored = content['embodiments']['clock']
  del stored['center_crop']
  for part in ('state', 'action'):
    stored['statistics'][part] = {key: stored['statistics'][part][key] for key in ('q01', 'q99')}
  old = robot_lib.from_metadata(json.loads(json.dumps(content)))['clock']
  assert old.id == 2
  assert not old.center_crop
  assert old.statistics.action.mean is None
  new = make_statistics(CLOCK)
  x = np.float32([[1, -2]])
  np.testing.assert_array_equal(old.statistics.action.normalize(x), new.action.normalize(x))


def test_statistics_of_another_embodiment_in_a_checkpoint():
  robot = robot_lib.Robot(0, CLOCK, make_statistics(embodiments.get('droid')))
  with pytest.raises(
    ValueError,
    match=(
      "'clock' in the metadata of this checkpoint has statistics of 8 state and 8 action "
      "dimensions, but 'clock' has 3 and 2: they are of another embodiment"
    ),
  ):
    robot_lib.from_metadata(robot_lib.to_metadata([robot]))


def test_unit_changes_come_before_the_reference_is_subtracted():
  record = dataclasses.replace(
    RELATIVE,
    state=(record_lib.Slice('proprio', 0, 1, 's', offset=10, scale=2),),
    action=(record_lib.Slice('action', 0, 1, 's', relative_to='proprio:0:1', offset=10, scale=2),),
  )
  # In the files 14 and, a unit further, 16: 2 and 3 in the record's units, hence 1 apart.
  stored = np.float32([[14.0]])
  state = record_lib.convert(record.state, stored)
  action = record_lib.convert(record.action, stored)
  relative = normalize.subtract_reference(record, action[None] + 1, state)
  np.testing.assert_array_equal(relative, [[[1]]])

  unit = normalize.Quantiles(np.float32([-1]), np.float32([1]))
  got = make_robot(record, unit, unit).act(np.ones((8, 1), np.float32), state[0])
  # (14 - 10) / 2 + 1, times 2, plus 10.
  np.testing.assert_array_equal(got, np.full((8, 1), 16))
