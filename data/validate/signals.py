"""Series against series: does a frame or a row repeat the one before, and how late are the
images?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Seconds over which motion is averaged: dropped and doubled frames then do not hide the lag.
SMOOTHING_S = 0.2
# Ridge per sample, on features of unit deviation; joints that move together must not blow up the
# fit.
RIDGE = 0.01
# Shares of a series' upper quartile: below the first nothing moves, above the second something
# does.
STILL, MOVING = 0.1, 0.5


def repeats(motion_T: np.ndarray) -> tuple[int, int]:
  """(repeats, active): steps at which nothing moves although a neighbour does, and steps with
  motion around them.

  A camera of half the recorded rate gives motion, none, motion, none: a share of 1/2. Rest before
  and after a movement counts once each, so that pauses hardly matter. Needs no state. Nothing is
  said of a series at rest for three quarters of its steps, which a camera of a quarter of the rate
  gives, but also a gripper that closes once.
  """
  usual = np.quantile(motion_T, 0.75) if len(motion_T) > 2 else 0
  if usual == 0:
    return 0, 0
  after_T = np.append(motion_T[1:], 0)
  before_T = np.append(0, motion_T[:-1])
  beside_T = np.maximum(after_T, before_T)

  is_active_T = np.maximum(motion_T, beside_T) >= MOVING * usual
  is_repeat_T = (motion_T <= STILL * usual) & (beside_T >= MOVING * usual)
  return int(is_repeat_T.sum()), int(is_active_T.sum())


def repeat_rate(repeats: Sequence[int], hz: float) -> tuple[float, float]:
  """(share, rate): the share of repeats, and how often a second there is something new; hz, hz/2,
  ... if regular.
  """
  repeated, active = repeats
  share = repeated / max(active, 1)
  is_regular = share > 0.4  # A camera of half the rate gives 1/2, less what rest takes away.
  return share, hz / round(1 / (1 - share)) if is_regular else hz * (1 - share)


def smoothing(control_hz: float) -> int:
  """Steps of a centred average over about `SMOOTHING_S`: odd, so that it shifts nothing."""
  return max(1, round(SMOOTHING_S * control_hz)) | 1


def smooth(series_TX: np.ndarray, steps: int) -> np.ndarray:
  """[T - steps + 1, X] centred averages."""
  zero_X = np.zeros((1, *series_TX.shape[1:]))
  padded = np.concatenate([zero_X, np.cumsum(series_TX, 0, np.float64)])
  return (padded[steps:] - padded[:-steps]) / steps


@dataclasses.dataclass(frozen=True)
class Lag:
  """How well the robot's motion explains the images' motion, by how many steps the images are late.

  Attributes:
    lag_L: [2 n + 1] steps that the images come after the rows; negative where they come before.
    explained_EL: per episode and lag, the correlation of the images' motion with what the other
      episodes' fit predicts.
    tolerance: the steps of delay that a camera may have.
  """

  lag_L: np.ndarray
  explained_EL: np.ndarray
  tolerance: int

  @property
  def best(self) -> int:
    """The lag that explains most."""
    return int(self.lag_L[self.explained_EL.mean(0).argmax()])

  @property
  def strength(self) -> float:
    """The correlation there."""
    return float(self.explained_EL.mean(0).max())

  @property
  def gain(self) -> tuple[float, float]:
    """How much better that is than the best lag within the tolerance: mean over the episodes, and
    its error.
    """
    mean_L = self.explained_EL.mean(0)
    near_L = np.flatnonzero(abs(self.lag_L) <= self.tolerance)
    near = near_L[mean_L[near_L].argmax()]
    # Per episode, because episodes differ more from each other than lags do.
    gain_E = self.explained_EL[:, mean_L.argmax()] - self.explained_EL[:, near]
    error = gain_E.std(ddof=1) / np.sqrt(len(gain_E))
    return float(gain_E.mean()), float(error)


def estimate_lag(
  motion: Sequence[np.ndarray],
  speed: Sequence[np.ndarray],
  control_hz: float,
  tolerance: int,
  most: int,
) -> Lag | None:
  """Fits the images' motion by the speed of each state dimension, at every lag up to `most` steps.

  A fit rather than the norm of the speed: the gripper, or a velocity that is part of the state,
  moves no image, and an elbow moves more of it than a wrist. Ridge regression rather than least
  squares: joints move together, so that their weights are not determined by a few episodes, and
  least squares would answer with huge ones of either sign. Each episode is predicted by the fit of
  the others, so that many dimensions and few steps do not look like agreement. Both sides are
  square roots, which tames the fastest moments.

  Args:
    motion: per episode [T - 1], the mean change from one image to the next.
    speed: per episode [T - 1, X], the change from one row to the next, >= 0.
  Returns:
    None if fewer than 3 episodes are long enough to see beyond the tolerance.
  """
  width = smoothing(control_hz)
  pairs = [
    (smooth(np.sqrt(m), width), smooth(np.sqrt(s), width))
    for m, s in zip(motion, speed)
    if len(m) > width
  ]
  # At the largest lag half of a usual episode is still compared; much shorter ones are left out.
  length = np.median([len(m) for m, _ in pairs]) if pairs else 0
  most = int(min(most, length // 2))
  pairs = [(m, s) for m, s in pairs if len(m) >= 2 * most and m.std() > 0]
  if most <= tolerance + 1 or len(pairs) < 3:
    return None

  lag_L = np.arange(-most, most + 1)
  explained_EL = np.stack([_explain(pairs, lag) for lag in lag_L], 1)
  return Lag(lag_L, explained_EL, tolerance)


def _explain(pairs: Sequence[tuple[np.ndarray, np.ndarray]], lag: int) -> np.ndarray:
  """[episodes] correlation of motion[t + lag] with its prediction from speed[t]."""
  # Centred per episode: how much a scene moves on average depends on where its camera stands.
  motions = [_centre(m[max(0, lag) : len(m) + min(0, lag)]) for m, _ in pairs]
  speeds = [_centre(s[max(0, -lag) : len(s) + min(0, -lag)]) for _, s in pairs]
  deviation_X = np.sqrt(np.mean([np.square(s).mean(0) for s in speeds], 0)) + 1e-12
  speeds = [s / deviation_X for s in speeds]

  # The normal equations of all episodes less those of each one are those of the others.
  squares_EXX = np.stack([s.T @ s for s in speeds])
  products_EX = np.stack([s.T @ m for m, s in zip(motions, speeds)])
  others_EXX = squares_EXX.sum(0) - squares_EXX
  others_EX = products_EX.sum(0) - products_EX
  steps = sum(len(m) for m in motions)
  ridge_XX = RIDGE * steps * np.eye(deviation_X.size)
  weight_EX = np.linalg.solve(others_EXX + ridge_XX, others_EX[..., None])[..., 0]
  return np.asarray([_correlate(m, s @ w) for m, s, w in zip(motions, speeds, weight_EX)])


def _centre(x: np.ndarray) -> np.ndarray:
  return x - x.mean(0)


def _correlate(x: np.ndarray, y: np.ndarray) -> float:
  """The correlation of a centred series with another one; 0 where one of them is constant."""
  y = _centre(y)
  norm = np.sqrt(np.square(x).sum() * np.square(y).sum())
  return float(x @ y / norm) if norm > 1e-12 else 0.0
