"""Agents that show what success is worth: they do not look at what they are shown.

Both have the interface `control.agent.Agent`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wam_jax.data import record as record_lib


class HoldAgent:
  """Does nothing: zero actions."""

  def __init__(self, record: record_lib.Embodiment):
    self._shape = (record.steps_per_chunk, record.action_dim)

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    self._batch = len(instructions)

  def act(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, None]:
    # Tabletop actions are velocities, and zero of them is standing still.
    return np.zeros((self._batch, *self._shape)), None


class RandomAgent(HoldAgent):
  """Uniform actions in [-1, 1]."""

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    super().reset(instructions, composite_BIJ3, seed)
    self._rng = np.random.default_rng(seed)

  def act(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, None]:
    # What the simulators take; beyond it they clip.
    return self._rng.uniform(-1, 1, (self._batch, *self._shape)), None
