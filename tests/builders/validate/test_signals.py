"""Series against series, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data.validate import signals


@pytest.mark.parametrize(
  'motion, want',
  [
    # A camera of a half and of a third of the rate.
    ([1, 0, 1, 0, 1, 0], (3, 6)),
    ([1, 0, 0, 1, 0, 0, 1], (4, 7)),
    ([1, 1, 1, 1, 1, 1], (0, 6)),
    # A pause counts once before and once after it, however long it is.
    ([1, 1, 1, 0, 0, 0, 0, 1, 1, 1], (2, 8)),
    # Nothing is said of rest, of two steps, and of what moves once, as a gripper that closes.
    ([0, 0, 0, 0], (0, 0)),
    ([1, 0], (0, 0)),
    ([0, 0, 0, 0, 1, 0, 0, 0, 0], (0, 0)),
  ],
)
def test_what_share_of_a_motion_repeats_itself(motion, want):
  assert signals.repeats(np.asarray(motion, float)) == want


def test_lag_of_one_series_after_another():
  rng = np.random.default_rng(0)
  speed = [np.abs(signals.smooth(rng.normal(size=(105, 3)), 6)) for _ in range(5)]
  late = [np.roll(s @ (1, 0.3, 0), 7) for s in speed]
  # The images show the first dimension best, the second little and the third not at all.
  lag = signals.estimate_lag(late, speed, 10.0, tolerance=3, most=12)
  assert lag.best == 7
  assert lag.strength > 0.9
  assert lag.gain[0] > 5 * lag.gain[1] > 0

  # Below 0.3 the validation says nothing of a lag.
  noise = [rng.uniform(size=100) for _ in speed]
  assert signals.estimate_lag(noise, speed, 10.0, tolerance=3, most=12).strength < 0.3

  # Too few episodes, or too short ones, to look beyond the tolerance.
  assert signals.estimate_lag(late[:2], speed[:2], 10.0, 3, 12) is None
  assert signals.estimate_lag([m[:9] for m in late], [s[:9] for s in speed], 10.0, 3, 12) is None


def test_smoothing_is_centred():
  np.testing.assert_allclose(signals.smooth(np.asarray([0.0, 0, 3, 0, 0]), 3), [1, 1, 1])
  # Steps in 0.2 s, made odd so that smoothing shifts nothing.
  assert [signals.smoothing(hz) for hz in (3, 5, 10, 15, 30)] == [1, 1, 3, 3, 7]
