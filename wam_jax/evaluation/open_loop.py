"""Predictions on recorded episodes: actions against what the robot did, imagined frames against
what it saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.data import robot as robot_lib


@dataclasses.dataclass
class Forecast:
  """Predictions of a batch of windows; every chunk is predicted from the real frames before it.

  Attributes:
    action_BAU, hold_BAU: normalized [B, Q*A, U]: predicted, and what would hold the robot still.
    frames_BRIJ3: [B, Q*r, I, J, 3] uint8 imagined.
    batch: what really happened.
  """

  action_BAU: np.ndarray
  hold_BAU: np.ndarray
  frames_BRIJ3: np.ndarray
  batch: types.Batch


class Forecaster:
  """Chunk-by-chunk prediction of recorded windows."""

  def __init__(
    self,
    policy: agent_lib.TimedPolicy,
    model: cfg.ModelConfig,
    robots: Sequence[robot_lib.Robot],
    seed: int,
  ):
    self._policy, self._model, self._robots, self._seed = (
      policy,
      model,
      {r.id: r for r in robots},
      seed,
    )

  def __call__(self, batch: types.Batch) -> Forecast:
    m, frames = self._model, batch.frames_BRIJ3
    r = m.camera_frames_per_chunk
    masks = np.stack(
      [agent_lib.action_mask(m, self._robots[int(robot)].record) for robot in batch.embodiment_B]
    )
    self._policy.reset(batch.prompt_ids_BP, batch.embodiment_B, masks, frames[:, 0], self._seed)
    actions, imagined = [], []
    for q in range(m.max_chunks):
      seen = (
        np.repeat(frames[:, :1], r, axis=1) if q == 0 else frames[:, 1 + (q - 1) * r : 1 + q * r]
      )
      action_BAU, imagined_BRIJ3 = self._policy.step(
        types.Observation(frames_BRIJ3=seen, proprio_BX=batch.proprio_BQX[:, q])
      )
      actions.append(action_BAU)
      imagined.append(imagined_BRIJ3)
    return Forecast(
      np.concatenate(actions, 1),
      np.repeat(self._hold(batch), m.actions_per_chunk, axis=1),
      np.concatenate(imagined, 1),
      batch,
    )

  def _hold(self, batch):
    """[B, Q, U] normalized actions that change nothing."""
    held = np.zeros((*batch.proprio_BQX.shape[:2], self._model.action_dim), np.float32)
    for i, robot in enumerate(batch.embodiment_B):
      known = self._robots[int(robot)]
      columns_U = np.asarray(known.record.rest_columns, int)
      state_QX = known.statistics.state.unnormalize(
        batch.proprio_BQX[i, :, : known.record.proprio_dim]
      )
      still_QU = np.where(columns_U >= 0, state_QX[:, columns_U], 0)
      held[i, :, : len(columns_U)] = known.statistics.action.normalize(still_QU)
    return held


def summarize(forecasts: Sequence[Forecast]) -> dict[str, float]:
  """Mean absolute action errors (normalized units, real dimensions) and video errors (dB), model
  against baselines.

  `action_error` against `action_error_hold`; `video_psnr_db` of imagined frames against
  `video_psnr_db_still`, which repeats the last frame that the model saw before the chunk.
  """
  count = sum(f.batch.action_mask_BAU.sum() for f in forecasts)
  error = lambda pick: float(
    sum((np.abs(pick(f) - f.batch.action_BAU) * f.batch.action_mask_BAU).sum() for f in forecasts)
    / max(count, 1)
  )
  return {
    'windows': sum(len(f.action_BAU) for f in forecasts),
    'action_error': error(lambda f: f.action_BAU),
    'action_error_hold': error(lambda f: f.hold_BAU),
    'video_psnr_db': _psnr(forecasts, lambda f: f.frames_BRIJ3),
    'video_psnr_db_still': _psnr(forecasts, _still),
  }


def _still(f: Forecast) -> np.ndarray:
  """Frames that repeat the one before each chunk."""
  r = f.frames_BRIJ3.shape[1] // f.batch.chunk_mask_BQ.shape[1]
  return np.repeat(f.batch.frames_BRIJ3[:, :-1:r], r, axis=1)


def _psnr(forecasts, pick):
  squares = pixels = 0.0
  for f in forecasts:
    frame_mask = np.repeat(
      f.batch.chunk_mask_BQ, f.frames_BRIJ3.shape[1] // f.batch.chunk_mask_BQ.shape[1], axis=1
    )
    difference = pick(f).astype(np.float32) - f.batch.frames_BRIJ3[:, 1:]
    squares += float((np.square(difference).mean((2, 3, 4)) * frame_mask).sum())
    pixels += float(frame_mask.sum())
  return float(10 * np.log10(255**2 / max(squares / max(pixels, 1), 1e-9)))
