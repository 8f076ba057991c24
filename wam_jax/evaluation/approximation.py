"""What `sample.approximate_kept_video` costs: its actions beside those it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.control import split as split_lib
from wam_jax.control import weights


def is_approximate(config: cfg.TrainConfig) -> bool:
  """Whether kept video differs from video that is run again: it sees the actions."""
  return config.sample.keeps_video and config.model.video_sees == 'all'


class ComparedPolicy(agent_lib.TimedPolicy):
  """The policy that keeps the video, which acts, and beside it, untimed, one that sees the same and
  runs the video again at each step of the actions.
  """

  def __init__(self, config: cfg.TrainConfig, params: Any, frozen: Any):
    # Once on the device for both.
    split = split_lib.make(config)
    params, frozen = weights.place(params, frozen, config.model, config.sample, split)
    super().__init__(config, params, frozen)
    self._exact = agent_lib.TimedPolicy(config, params, frozen, recompute=True)
    self._errors: list[np.ndarray] = []
    self._sizes: list[np.ndarray] = []

  def warm(self, task: types.Task, observation: types.Observation) -> None:
    super().warm(task, observation)
    self._errors.clear()
    self._sizes.clear()

  def reset(self, task: types.Task, frame_BIJ3: np.ndarray, seed: int) -> None:
    super().reset(task, frame_BIJ3, seed)
    self._exact.reset(task, frame_BIJ3, seed)
    self._mask_BAU = np.asarray(task.action_mask_BAU)

  def step(
    self, observation: types.Observation, prefix: types.Prefix | None = None
  ) -> tuple[np.ndarray, np.ndarray | None]:
    action_BAU, imagined_BRIJ3 = super().step(observation, prefix)
    exact_BAU, _ = self._exact.step(observation, prefix)
    self._errors.append(np.abs(action_BAU - exact_BAU)[self._mask_BAU])
    self._sizes.append(np.abs(exact_BAU)[self._mask_BAU])
    return action_BAU, imagined_BRIJ3

  def summarize(self) -> dict[str, float]:
    """Errors of normalized actions against the exact ones, whose mean absolute size is beside."""
    errors = np.concatenate(self._errors)
    return {
      'calls': len(self._errors),
      'mean_error': float(errors.mean()),
      'p95_error': float(np.percentile(errors, 95)),
      'mean_size': float(np.concatenate(self._sizes).mean()),
    }


def show(summary: dict[str, float]) -> str:
  return (
    'kept video is an approximation for these weights: normalized actions differ from those with '
    f'the video run again by {summary["mean_error"]:.4f} on average, 95 % of them by less than '
    f'{summary["p95_error"]:.4f}; their mean size is {summary["mean_size"]:.4f}'
  )
