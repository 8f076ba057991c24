"""Agents that show what success is worth: they know nothing of the task.

Both act through `control.agent.Agent`.
"""

from __future__ import annotations

import numpy as np


class HoldAgent:
  """Does nothing: zero actions."""

  def __init__(self, record):
    self._shape = (record.steps_per_chunk, record.action_dim)

  def reset(self, instructions, composite_BIJ3, seed):
    self._batch = len(instructions)

  def act(self, frames_BRIJ3, proprio_BX):
    return np.zeros((self._batch, *self._shape)), None


class RandomAgent(HoldAgent):
  """Uniform actions in [-1, 1]."""

  def reset(self, instructions, composite_BIJ3, seed):
    super().reset(instructions, composite_BIJ3, seed)
    self._rng = np.random.default_rng(seed)

  def act(self, frames_BRIJ3, proprio_BX):
    return self._rng.uniform(-1, 1, (self._batch, *self._shape)), None
