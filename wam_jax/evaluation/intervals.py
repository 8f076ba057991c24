"""How sure a measured rate of success is."""

from __future__ import annotations

import math

Z_95 = 1.96  # Standard deviations of a normal variable that hold 95 % of it.


def compute_wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
  """Confidence interval of a success rate by Wilson's score, of 95 % by default; (0, 1) without
  trials.

  (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): never beyond [0, 1], and of
  some width even where every trial ends alike. Source: Wilson 1927.
  """
  if not trials:
    return 0.0, 1.0
  n = trials
  p = successes / trials
  middle = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  low = (middle - half) / (1 + z * z / n)
  high = (middle + half) / (1 + z * z / n)
  return max(0.0, low), min(1.0, high)
