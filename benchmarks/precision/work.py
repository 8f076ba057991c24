"""What `benchmarks.precision` measures, without flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.control import weights


class Beside(agent_lib.TimedPolicy):
  """The baseline, which acts, and others that see what it sees.

  Attributes:
    actions: normalized real actions of each policy, by name, one array a step.
  """

  def __init__(self, trained: Any, names: Sequence[str]):
    """The first of the precisions `names` is the baseline."""
    self._placed = {name: place(trained, name) for name in names}
    self._first, *others = names
    super().__init__(*self._placed[self._first])
    self.others = {name: agent_lib.TimedPolicy(*self._placed[name]) for name in others}
    self.actions: dict[str, list[np.ndarray]] = {name: [] for name in names}

  def count_bytes(self, name: str) -> dict[str, int]:
    """Bytes of the parameters on the device: all, and those of the layers."""
    _, params, _ = self._placed[name]
    return {'bytes': weights.count_bytes(params), 'layers': weights.count_bytes(params['blocks'])}

  def reset(self, task: types.Task, frame_BIJ3: types.Array, seed: int) -> None:
    self._mask_BAU = np.asarray(task.action_mask_BAU)
    super().reset(task, frame_BIJ3, seed)
    for policy in self.others.values():
      policy.reset(task, frame_BIJ3, seed)

  def step(
    self, observation: types.Observation, prefix: types.Prefix | None = None
  ) -> tuple[np.ndarray, np.ndarray | None]:
    given = super().step(observation, prefix)
    self._note(self._first, given[0])
    for name, policy in self.others.items():
      self._note(name, policy.step(observation, prefix)[0])
    return given

  def _note(self, name: str, action_BAU: np.ndarray) -> None:
    self.actions[name].append(np.asarray(action_BAU, np.float32)[self._mask_BAU])

  def compare(self) -> dict[str, dict[str, float]]:
    """Differences of actions from those of the first policy, by name."""
    joined = {name: np.concatenate(actions) for name, actions in self.actions.items()}
    wanted = joined[self._first]
    rows = {}
    for name, got in joined.items():
      error = np.abs(got - wanted)
      rows[name] = {
        'mean_error': float(error.mean()),
        'p95_error': float(np.percentile(error, 95)),
        'relative_error': float(error.mean() / np.abs(wanted).mean()),
      }
    return rows


def place(trained: Any, precision: str) -> tuple[cfg.TrainConfig, Any, Any]:
  """(config, parameters on the device, encoders) in a precision: what `TimedPolicy` takes."""
  sample = cfg.override_sampling(trained.config.sample, {'precision': precision})
  config = dataclasses.replace(trained.config, sample=sample)
  return config, *weights.place(trained.params, trained.frozen, config.model, sample)
