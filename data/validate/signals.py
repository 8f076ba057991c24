"""Series against series: does a frame or a row repeat the one before, and how late are the
images?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

SMOOTHING_S = (
  0.2  # Motion is averaged over this: dropped and doubled frames then do not hide the lag.
)
RIDGE = 0.01  # Per sample, on features of unit deviation; joints that move together must not blow up the fit.
STILL, MOVING = (
  0.1,
  0.5,
)  # Of a series' upper quartile: below the first nothing moves, above the second something does.


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
  beside_T = np.maximum(np.append(motion_T[1:], 0), np.append(0, motion_T[:-1]))
  active_T = np.maximum(motion_T, beside_T) >= MOVING * usual
  return int(((motion_T <= STILL * usual) & (beside_T >= MOVING * usual)).sum()), int(
    active_T.sum()
  )


def repeat_rate(repeats: Sequence[int], hz: float) -> tuple[float, float]:
  """(share, rate): the share of repeats, and how often a second there is something new; hz, hz/2,
  ... if regular.
  """
  share = repeats[0] / max(repeats[1], 1)
  return share, hz / round(1 / (1 - share)) if share > 0.4 else hz * (1 - share)


def smoothing(control_hz: float) -> int:
  """Steps of a centred average over about `SMOOTHING_S`: odd, so that it shifts nothing."""
  return max(1, round(SMOOTHING_S * control_hz)) | 1


def smooth(series_TX: np.ndarray, steps: int) -> np.ndarray:
  """[T - steps + 1, X] centred averages."""
  padded = np.concatenate(
    [np.zeros((1, *series_TX.shape[1:])), np.cumsum(series_TX, 0, np.float64)]
  )
  return (padded[steps:] - padded[:-steps]) / steps


@dataclasses.dataclass(frozen=True)
class Lag:
  """How well the robot's motion explains the images' motion, by how many steps the images are late.

  Attributes:
    lag_L: [2 n + 1] steps that the images come after the rows; negative where they come before.
    explained_EL: per episode and lag, correlation of the images' motion with what the other
      episodes' fit predicts.
    tolerance: steps of delay that a camera may have.
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
    near_L = np.flatnonzero(abs(self.lag_L) <= self.tolerance)
    near = near_L[self.explained_EL[:, near_L].mean(0).argmax()]
    gain_E = self.explained_EL[:, self.explained_EL.mean(0).argmax()] - self.explained_EL[:, near]
    return float(gain_E.mean()), float(gain_E.std(ddof=1) / np.sqrt(len(gain_E)))


def estimate_lag(
  motion: Sequence[np.ndarray],
  speed: Sequence[np.ndarray],
  control_hz: float,
  tolerance: int,
  most: int,
) -> Lag | None:
  """Fits the images' motion by the speed of each state dimension, at every lag up to `most` steps.

  A fit rather than the norm of the speed: the gripper, or a velocity that is part of the state,
  moves no image, and an elbow moves more of it than a wrist. Each episode is predicted by the fit
  of the others, so that many dimensions and few steps do not look like agreement. Both sides are
  square roots, which tames the fastest moments.

  Args:
    motion: per episode [T - 1], mean change from one image to the next.
    speed: per episode [T - 1, X], change from one row to the next, >= 0.
  Returns:
    None if fewer than 3 episodes are long enough to see beyond the tolerance.
  """
  width = smoothing(control_hz)
  pairs = [
    (smooth(np.sqrt(m), width), smooth(np.sqrt(s), width))
    for m, s in zip(motion, speed)
    if len(m) > width
  ]
  length = np.median([len(m) for m, _ in pairs]) if pairs else 0
  most = int(min(most, length // 2))
  pairs = [(m, s) for m, s in pairs if len(m) >= 2 * most and m.std() > 0]
  if most <= tolerance + 1 or len(pairs) < 3:
    return None
  lag_L = np.arange(-most, most + 1)
  return Lag(lag_L, np.stack([_explained(pairs, lag) for lag in lag_L], 1), tolerance)


def _explained(pairs, lag: int) -> np.ndarray:
  """[episodes] correlation of motion[t + lag] with its prediction from speed[t]."""
  parts = [
    (
      _centred(m[max(0, lag) : len(m) + min(0, lag)]),
      _centred(s[max(0, -lag) : len(s) + min(0, -lag)]),
    )
    for m, s in pairs
  ]
  scale_X = np.sqrt(np.mean([np.square(s).mean(0) for _, s in parts], 0)) + 1e-12
  parts = [(m, s / scale_X) for m, s in parts]
  squares_EXX, products_EX = (
    np.stack([s.T @ s for _, s in parts]),
    np.stack([s.T @ m for m, s in parts]),
  )
  others_EXX, others_EX = squares_EXX.sum(0) - squares_EXX, products_EX.sum(0) - products_EX
  steps = sum(len(m) for m, _ in parts)
  weight_EX = np.linalg.solve(
    others_EXX + RIDGE * steps * np.eye(scale_X.size), others_EX[..., None]
  )[..., 0]
  return np.asarray([_correlation(m, s @ w) for (m, s), w in zip(parts, weight_EX)])


def _centred(x: np.ndarray) -> np.ndarray:
  return x - x.mean(0)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
  y = _centred(y)
  norm = np.sqrt(np.square(x).sum() * np.square(y).sum())
  return float(x @ y / norm) if norm > 1e-12 else 0.0
