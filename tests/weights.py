"""Random weights for tests."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np


def draw_like(shapes: Any, seed: int) -> Any:
  """Weights of these shapes, all random, so that those initialised to zero matter too.

  Gains are near 1. Drawn by NumPy, which compiles nothing.
  """
  rng = np.random.default_rng(seed)

  def draw(path, x):
    centre = float(path[-1].key == 'scale')
    return centre + 0.2 * rng.normal(size=x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))
