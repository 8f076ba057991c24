"""Normalization by hand in every mode, and back; statistics of several datasets in one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import normalize
from wam_jax.data import record as record_lib

CLOCK, RELATIVE = synthetic.CLOCK, synthetic.RELATIVE
Q = normalize.Quantiles(np.float32([0, -2]), np.float32([10, 2]))


def test_normalize_by_hand():
  got = Q.normalize(np.float32([[0, -2], [10, 2], [5, 0], [2.5, 1], [99, -99]]))
  np.testing.assert_array_equal(got, [[-1, -1], [1, 1], [0, 0], [-0.5, 0.5], [1, -1]])


def test_unnormalize_inverts_and_does_not_clip():
  x = np.random.default_rng(0).uniform((0, -2), (10, 2), (50, 2)).astype(np.float32)
  back = Q.unnormalize(Q.normalize(x))
  # One float32 rounding of values to 10.
  np.testing.assert_allclose(back, x, atol=1e-5)
  np.testing.assert_array_equal(Q.unnormalize(np.float32([1.2, -1.5])), np.float32([11, -3]))


def test_constant_dimension_is_floored():
  q = normalize.Quantiles(np.float32([3]), np.float32([3]))
  got = q.normalize(np.float32([3, 3.00025, 4]))
  # A range of 0.001; the tolerance is that of float32 near 3.
  np.testing.assert_allclose(got, [0, 0.5, 1], atol=1e-3)


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
  norms=record_lib.NORMS,
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
  back = FULL.unnormalize(FULL.normalize(x))
  # One float32 rounding.
  np.testing.assert_allclose(back, x, atol=1e-5)


def test_a_dimension_without_range():
  """q01 == q99, std == 0, min == max: floored; the reference passes it clipped and gives q01
  back.
  """
  three = np.full(5, 3, np.float32)
  q = normalize.Quantiles(
    q01=three,
    q99=three,
    mean=three,
    std=0 * three,
    min=three,
    max=three,
    norms=record_lib.NORMS,
  )
  np.testing.assert_allclose(q.normalize(three), (0, 1, 0, 0, 3), atol=1e-6)
  back = q.unnormalize(q.normalize(three))
  np.testing.assert_allclose(back, three)
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
      q01=x.min(0),
      q99=x.max(0),
      mean=x.mean(0),
      std=x.std(0),
      min=x.min(0),
      max=x.max(0),
      norms=record_lib.NORMS,
    )
    for x in rows
  ]
  several = [normalize.Statistics(q, q, len(x)) for q, x in zip(parts, rows)]
  got = normalize.combine(several).action
  # A longer dataset counts for more, and the means' own distance adds to the deviation.
  both = np.concatenate(rows)
  np.testing.assert_allclose(got.mean, both.mean(0), rtol=1e-5)
  np.testing.assert_allclose(got.std, both.std(0), rtol=1e-5)
  np.testing.assert_array_equal(got.min, both.min(0))
  np.testing.assert_array_equal(got.max, both.max(0))
  assert got.norms == record_lib.NORMS
