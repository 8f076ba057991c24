"""Who shows what success is worth: agents that do not look at what they are shown, and the experts
of the worlds, which see more than a policy does.

The agents have the interface `control.agent.Agent`, and may be asked at any control step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.envs import worlds
from wam_jax.evaluation import closed_loop


class HoldAgent:
  """Does nothing: sends the pose in which the robot is, and no motion."""

  frames_per_call = 1
  overlap = 0

  def __init__(self, record: record_lib.Embodiment):
    self._record = record

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    self._batch = len(instructions)

  def act(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, None]:
    record = self._record
    # Relative actions count from the state, as the model's do: the position is that of now.
    still_B1U = normalize.still(record, proprio_BX)[:, None]
    still_BU = normalize.add_reference(record, still_B1U, proprio_BX)[:, 0]
    action_BU = record_lib.restore(record.action, still_BU)
    return np.repeat(action_BU[:, None], record.steps_per_chunk, axis=1), None

  def act_ahead(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, None]:
    return self.act(frames_BRIJ3, proprio_BX)

  def amend(self, frames_BRIJ3: np.ndarray) -> None:
    pass


class RandomAgent(HoldAgent):
  """Uniform actions in [-1, 1]."""

  def reset(self, instructions: Sequence[str], composite_BIJ3: np.ndarray, seed: int) -> None:
    super().reset(instructions, composite_BIJ3, seed)
    self._rng = np.random.default_rng(seed)

  def act(self, frames_BRIJ3: np.ndarray, proprio_BX: np.ndarray) -> tuple[np.ndarray, None]:
    # What the simulators take; beyond it they clip.
    shape = (self._batch, self._record.steps_per_chunk, self._record.action_dim)
    return self._rng.uniform(-1, 1, shape), None


def play_expert(rollouts: Sequence[closed_loop.Rollout]) -> None:
  """Plays episodes that were just started to their ends by the scripts that datasets are recorded
  from, without their noise: what can be reached.
  """
  for rollout in rollouts:
    act = worlds.make_expert(rollout.env, rollout.episode.seed, noise=0.0)
    while not rollout.is_over:
      rollout.step(act(), looks=rollout.is_recorded)
