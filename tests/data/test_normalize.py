"""Normalization by hand in every mode, and back; relative actions there and back; what a checkpoint
keeps.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import normalize

CLOCK, RELATIVE = synthetic.CLOCK, synthetic.RELATIVE
Q = normalize.Quantiles(np.float32([0, -2]), np.float32([10, 2]))


def test_normalize_by_hand():
  got = Q.normalize(np.float32([[0, -2], [10, 2], [5, 0], [2.5, 1], [99, -99]]))
  np.testing.assert_array_equal(got, [[-1, -1], [1, 1], [0, 0], [-0.5, 0.5], [1, -1]])


def test_unnormalize_inverts_and_does_not_clip():
  x = np.random.default_rng(0).uniform((0, -2), (10, 2), (50, 2)).astype(np.float32)
  np.testing.assert_allclose(
    Q.unnormalize(Q.normalize(x)), x, atol=1e-5
  )  # One float32 rounding of values to 10.
  np.testing.assert_array_equal(Q.unnormalize(np.float32([1.2, -1.5])), np.float32([11, -3]))


def test_constant_dimension_is_floored():
  q = normalize.Quantiles(np.float32([3]), np.float32([3]))
  np.testing.assert_allclose(
    q.normalize(np.float32([3, 3.00025, 4])), [0, 0.5, 1], atol=1e-3
  )  # float32 near 3.


FULL = normalize.Quantiles(
  *np.float32(
    [
      # q01, q99, mean, std, min, max of a dimension for each norm.
      [0, 0, 0, 0, 0],
      [10] * 5,
      [4] * 5,
      [2] * 5,
      [-5] * 5,
      [15] * 5,
    ]
  ),
  norms=embodiments.NORMS,
)


def test_every_norm_by_hand():
  assert FULL.norms == ('q99', 'q99_reference', 'mean_std', 'min_max', 'none')
  np.testing.assert_allclose(
    FULL.normalize(np.float32([7.5] * 5)), (0.5, 0.5, 1.75, 0.25, 7.5), atol=1e-6
  )
  np.testing.assert_allclose(
    FULL.normalize(np.float32([-30] * 5)), (-1, -1, -17, -1, -30), atol=1e-6
  )


def test_every_norm_inverts():
  x = np.random.default_rng(0).uniform(0, 10, (50, 5)).astype(np.float32)
  np.testing.assert_allclose(
    FULL.unnormalize(FULL.normalize(x)), x, atol=1e-5
  )  # One float32 rounding.


def test_a_dimension_without_range():
  """q01 == q99, std == 0, min == max: floored; the reference passes it clipped and gives q01 back
  (spec 5.3).
  """
  three = np.full(5, 3, np.float32)
  q = normalize.Quantiles(three, three, three, 0 * three, three, three, embodiments.NORMS)
  np.testing.assert_allclose(q.normalize(three), (0, 1, 0, 0, 3), atol=1e-6)
  np.testing.assert_allclose(q.unnormalize(q.normalize(three)), three)
  np.testing.assert_allclose(q.normalize(three - 2.75), (-1, 0.25, -5500, -1, 0.25))
  np.testing.assert_array_equal(q.is_flat, (True, True, True, True, False))
  np.testing.assert_allclose(
    q.unnormalize(np.float32([0.5] * 5)), (3.00025, 3, 3.00025, 3.00025, 0.5), atol=1e-6
  )


def test_norms_need_their_numbers():
  for norm in ('mean_std', 'min_max'):
    with pytest.raises(
      ValueError, match=rf'Statistics without mean, std, min and max cannot serve .*{norm}'
    ):
      normalize.Quantiles(np.zeros(1, np.float32), np.ones(1, np.float32), norms=(norm,))


def test_combine_takes_the_widest():
  a = normalize.Statistics(Q, Q, 5)
  b = normalize.Statistics(normalize.Quantiles(np.float32([-1, 0]), np.float32([5, 3])), Q, 7)
  got = normalize.combine([a, b])
  np.testing.assert_array_equal((got.state.q01, got.state.q99), ([-1, -2], [10, 3]))
  assert got.steps == 12
  assert got.state.mean is None


def test_combine_pools_moments_of_all_rows():
  rows = [
    np.random.default_rng(i).normal(i, 1 + i, (n, 5)).astype(np.float32)
    for i, n in enumerate((30, 90))
  ]
  parts = [
    normalize.Quantiles(
      x.min(0), x.max(0), x.mean(0), x.std(0), x.min(0), x.max(0), embodiments.NORMS
    )
    for x in rows
  ]
  got = normalize.combine([normalize.Statistics(q, q, len(x)) for q, x in zip(parts, rows)]).action
  both = np.concatenate(rows)
  np.testing.assert_allclose((got.mean, got.std), (both.mean(0), both.std(0)), rtol=1e-5)
  np.testing.assert_array_equal((got.min, got.max), (both.min(0), both.max(0)))
  assert got.norms == embodiments.NORMS


def test_unnormalize_action_adds_the_reference_back():
  stats = normalize.Statistics(Q, Q, 1)
  raw_QSU = np.random.default_rng(1).uniform(0, 2, (1, 8, 2)).astype(np.float32)
  proprio = np.float32([0.5, 7, 9])
  relative = normalize.subtract_reference(RELATIVE, raw_QSU, proprio[None])
  np.testing.assert_allclose(relative[0], raw_QSU[0] - (0.5, 0), atol=1e-6)
  inside = normalize.Statistics(Q, normalize.Quantiles(np.float32([-3, -3]), np.float32([3, 3])), 1)
  padded_AU = np.zeros((10, 4), np.float32)
  padded_AU[:8] = normalize.normalize_action(inside, relative[0], 4)
  np.testing.assert_allclose(
    normalize.unnormalize_action(inside, RELATIVE, padded_AU, proprio), raw_QSU[0], atol=1e-5
  )
  with pytest.raises(ValueError, match=r'Actions of shape \(4, 2\) are too small'):
    normalize.unnormalize_action(stats, RELATIVE, padded_AU[:4, :2], proprio)
  with pytest.raises(
    ValueError, match=r"Proprio of 'clock_relative' has shape \(2,\); expected \(3,\)"
  ):
    normalize.unnormalize_action(stats, RELATIVE, padded_AU, proprio[:2])


def test_proprio_is_padded_with_zeros():
  got = normalize.normalize_proprio(normalize.Statistics(Q, Q, 1), np.float32([[10, 0]]), 4)
  np.testing.assert_array_equal(got, [[1, 0, 0, 0]])


def test_actions_come_back_in_the_units_of_the_robot():
  """LIBERO's gripper is 1 open here and -1 open there."""
  libero = embodiments.get('libero')
  ones = np.ones(7, np.float32)
  stats = normalize.Statistics(
    normalize.Quantiles(np.zeros(8, np.float32), np.ones(8, np.float32)),
    normalize.Quantiles(-ones, ones),
    1,
  )
  given_AU = np.zeros((32, 7), np.float32)
  given_AU[:16, 6] = 1  # Open, then half closed.
  got = normalize.unnormalize_action(stats, libero, given_AU, np.zeros(8, np.float32))
  np.testing.assert_array_equal(got[:, 6], [-1] * 16 + [1] * 16)
  np.testing.assert_array_equal(got[:, :6], 0)


def make_statistics(record):
  draw = np.random.default_rng(0).uniform
  part = lambda width: normalize.Quantiles(
    *draw(-3, 3, (6, width)).astype(np.float32), norms=('q99',) * width
  )
  return normalize.Statistics(part(record.proprio_dim), part(record.action_dim), 3)


def test_metadata_survives_json():
  known = [
    normalize.KnownEmbodiment(0, RELATIVE, make_statistics(RELATIVE), center_crop=True),
    normalize.KnownEmbodiment(1, CLOCK, None),
  ]
  back = normalize.from_metadata(json.loads(json.dumps(normalize.to_metadata(known))))
  assert back['clock'] == known[1]
  assert back['clock_relative'].record == RELATIVE
  assert back['clock_relative'].center_crop
  assert not back['clock'].center_crop
  for part in ('state', 'action'):
    got, want = (getattr(e.statistics, part) for e in (back['clock_relative'], known[0]))
    for key in normalize.ARRAYS:
      np.testing.assert_array_equal(getattr(got, key), getattr(want, key))
    assert got.norms == want.norms
  with pytest.raises(ValueError, match='describes no embodiments as this version writes them'):
    normalize.from_metadata({'something': 1})


def test_metadata_of_older_checkpoints_is_read():
  """As the first version wrote it: q01 and q99 only, no norms, no crop."""
  content = normalize.to_metadata([normalize.KnownEmbodiment(2, CLOCK, make_statistics(CLOCK))])
  known = content['embodiments']['clock']
  del known['center_crop']
  for part in ('state', 'action'):
    known['statistics'][part] = {key: known['statistics'][part][key] for key in ('q01', 'q99')}
  old = normalize.from_metadata(json.loads(json.dumps(content)))['clock']
  assert old.id == 2
  assert not old.center_crop
  assert old.statistics.action.mean is None
  new = make_statistics(CLOCK)
  x = np.float32([[1, -2]])
  np.testing.assert_array_equal(old.statistics.action.normalize(x), new.action.normalize(x))


def test_statistics_of_another_embodiment_in_a_checkpoint():
  known = normalize.KnownEmbodiment(0, CLOCK, make_statistics(embodiments.get('droid')))
  with pytest.raises(
    ValueError,
    match=(
      "'clock' in the metadata of this checkpoint has statistics of 8 state and 8 action dimensions, but 'clock' has 3 "
      'and 2: they are of another embodiment'
    ),
  ):
    normalize.from_metadata(normalize.to_metadata([known]))


def test_unit_changes_come_before_the_reference_is_subtracted():
  record = dataclasses.replace(
    RELATIVE,
    state=(embodiments.Slice('proprio', 0, 1, 's', offset=10, scale=2),),
    action=(embodiments.Slice('action', 0, 1, 's', relative_to='proprio:0:1', offset=10, scale=2),),
  )
  state, action = (
    embodiments.convert(part, np.float32([[14.0]])) for part in (record.state, record.action)
  )
  np.testing.assert_array_equal(
    normalize.subtract_reference(record, action[None] + 1, state), [[[1]]]
  )
  unit = normalize.Quantiles(np.float32([-1]), np.float32([1]))
  stats = normalize.Statistics(unit, unit, 1)
  got = normalize.unnormalize_action(stats, record, np.ones((8, 1), np.float32), state[0])
  np.testing.assert_array_equal(got, np.full((8, 1), 16))  # (14 - 10) / 2 + 1, times 2, plus 10.
