"""Quantiles, moments and bounds of a stream of rows, in bounded memory."""

from __future__ import annotations

import numpy as np

from wam_jax.data import normalize

ROWS = 1 << 20  # Rows kept per quantile; more are subsampled uniformly.
# Ranges of q01 to q99 that a value lies beyond either: tails of real motions reach 7.
FAR = 10
# Of the episodes that go far: fewer than this share may hold lost packets, unless all go to the
# same place.
SELDOM_SHARE = 0.01
SAME_PLACE = 0.5
REACH = 0.9  # Quantile over these episodes of how far they go, so that some may be damaged.


class QuantileSketch:
  """Quantiles, moments and bounds of a stream of rows, in bounded memory.

  Moments (float64) and bounds are of all rows. Quantiles are exact up to `rows` of them, then those
  of a uniform subsample of at least `rows` / 2 (fixed seed): each row draws a number in [0, 1) and
  stays while that is below a threshold, which halves whenever memory is full. Of 2**19 rows, the
  rank of the 1% quantile has a standard error of 0.014%.

  A dimension that seldom but fully moves, as a gripper that closes for two of 300 steps, has
  quantiles that say nothing of where it goes. There q01 and q99 are how far the episodes go in
  which it moves.

  Args:
    rows: that are held, at most.
    repeats: rows in which one step of an episode may be.

  Attributes:
    count: rows so far.
    seldom_N: [width] bool, the dimensions of which that is so, as `quantiles` found them.
  """

  def __init__(self, rows: int = ROWS, repeats: int = 1):
    self.count = 0
    self._repeats = repeats
    self._limit = rows
    # The rows that are held, each with the number it drew.
    self._parts: list[tuple[np.ndarray, np.ndarray]] = []
    self._held = 0
    self._threshold = 1.0
    self._rng = np.random.default_rng(0)
    # Of all rows: mean, sum of squared deviations from it, [min, max].
    self._mean = 0.0
    self._squares = 0.0
    self._bounds: list[np.ndarray] | None = None
    # Of each episode: lowest and highest values.
    self._reaches: list[np.ndarray] = []
    self.seldom_N = np.zeros(0, bool)

  def add(self, rows: np.ndarray) -> None:
    """Adds [n, width] rows, those of an episode."""
    if not len(rows):
      return
    self._add_moments(rows)
    self._add_bounds(rows)

    draw = self._rng.random(len(rows))
    self._hold(rows, draw)
    while self._held > self._limit:
      self._threshold /= 2
      held, draws = (np.concatenate(part) for part in zip(*self._parts))
      self._parts = []
      self._held = 0
      self._hold(held, draws)

  def _add_moments(self, rows: np.ndarray) -> None:
    """Of two sets of rows, the mean and squares of their union. Source: Chan, Golub, LeVeque."""
    mean = rows.mean(axis=0, dtype=np.float64)
    shift = mean - self._mean
    total = self.count + len(rows)
    self._squares = (
      self._squares
      + np.square(rows - mean).sum(axis=0, dtype=np.float64)
      + np.square(shift) * self.count * len(rows) / total
    )
    self._mean = self._mean + shift * len(rows) / total
    self.count = total

  def _add_bounds(self, rows: np.ndarray) -> None:
    low = rows.min(axis=0)
    high = rows.max(axis=0)
    self._reaches.append(np.stack([low, high]))
    if self._bounds is not None:
      low = np.minimum(self._bounds[0], low)
      high = np.maximum(self._bounds[1], high)
    self._bounds = [low, high]

  def _hold(self, rows: np.ndarray, draw: np.ndarray) -> None:
    """Keeps the rows whose draw is below the threshold."""
    stays = draw < self._threshold
    self._parts.append((rows[stays], draw[stays]))
    self._held += int(stays.sum())

  def quantiles(self, plain_N: np.ndarray | None = None) -> normalize.Quantiles:
    """Of all rows so far; there must be some.

    Args:
      plain_N: [width] bool, the dimensions whose quantiles stay what they are.
    """
    rows = np.concatenate([rows for rows, _ in self._parts])
    # Linear between rows; numpy knows no quantiles of rows without columns.
    if rows.shape[1]:
      q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
      self._reach_out(rows, q01, q99, plain_N)
    else:
      q01, q99 = np.zeros((2, 0))
    std = np.sqrt(self._squares / self.count)
    numbers = (q01, q99, self._mean, std, *self._bounds)
    return normalize.Quantiles(*(np.asarray(x, np.float32) for x in numbers))

  def _reach_out(
    self, rows: np.ndarray, q01: np.ndarray, q99: np.ndarray, plain_N: np.ndarray | None
  ) -> None:
    """Changes the quantiles of dimensions that seldom but fully move to how far these go."""
    lows_EN, highs_EN = np.asarray(self._reaches).transpose(1, 0, 2)
    range_N = np.maximum(q99 - q01, normalize.RANGE_FLOOR)
    low_N, high_N = q01 - FAR * range_N, q99 + FAR * range_N
    is_far_EN = (lows_EN < low_N) | (highs_EN > high_N)
    far_rows_N = ((rows < low_N) | (rows > high_N)).sum(0)
    self.seldom_N = np.zeros(q01.shape, bool)
    may_N = is_far_EN.any(0) & (True if plain_N is None else ~plain_N)
    for n in np.flatnonzero(may_N).tolist():
      lows_F = lows_EN[is_far_EN[:, n], n]
      highs_F = highs_EN[is_far_EN[:, n], n]
      is_motion = _is_motion(lows_F, highs_F, len(lows_EN))
      # A single episode tells by staying there for more than a step.
      is_only = len(lows_EN) * SELDOM_SHARE <= 1 and far_rows_N[n] > self._repeats
      if is_motion or is_only:
        self.seldom_N[n] = True
        q01[n] = min(q01[n], np.quantile(lows_F, 1 - REACH, method='lower'))
        q99[n] = max(q99[n], np.quantile(highs_F, REACH, method='higher'))


def _is_motion(lows_F: np.ndarray, highs_F: np.ndarray, episodes: int) -> bool:
  """Whether these episodes, all that go far, do so by moving and not by damage."""
  if len(lows_F) < 2:
    return False
  if len(lows_F) >= SELDOM_SHARE * episodes:
    return True
  spread = max(np.ptp(lows_F), np.ptp(highs_F))
  return bool(spread <= SAME_PLACE * (highs_F.max() - lows_F.min()))
