"""Predictions on recorded episodes: actions against what the robot did, imagined frames against
what it saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import agent as agent_lib
from wam_jax.data import normalize
from wam_jax.data import robot as robot_lib


@dataclasses.dataclass
class Forecast:
  """Predictions of a batch of windows; every chunk is predicted from the real frames before it.

  Attributes:
    action_BAU, hold_BAU: normalized [B, Q*A, U]: predicted, and what would hold the robot still.
    frames_BRIJ3: [B, Q*r, I, J, 3] uint8 imagined; None where nothing is.
    batch: what really happened.
  """

  action_BAU: np.ndarray
  hold_BAU: np.ndarray
  frames_BRIJ3: np.ndarray | None
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
    """All that is needed but the windows.

    Args:
      robots: every robot that a window may come from.
      seed: of the noise, together with the number of the batch: the first is 0.
    """
    self._policy = policy
    self._model = model
    self._robots = {robot.id: robot for robot in robots}
    self._seed = seed
    self._batches = 0

  def __call__(self, batch: types.Batch) -> Forecast:
    robots = [self._robots[int(robot)] for robot in batch.embodiment_B]
    task = agent_lib.make_task(self._model, robots, batch.prompt_ids_BP)
    # Mixed, so that no batch of another seed has the same noise, and no step of training.
    mixed = np.random.SeedSequence([self._seed, self._batches]).generate_state(1)
    self._batches += 1
    self._policy.reset(task, batch.frames_BRIJ3[:, 0], int(mixed[0]))

    # A window has as many chunks as the policy takes between two anchors: frame 0 is the only one.
    actions = []
    imagined = []
    for chunk in range(self._model.max_chunks):
      observation = types.Observation(
        frames_BRIJ3=self._find_past(batch.frames_BRIJ3, chunk),
        proprio_BX=batch.proprio_BQX[:, chunk],
      )
      action_BAU, imagined_BRIJ3 = self._policy.step(observation)
      actions.append(action_BAU)
      if imagined_BRIJ3 is not None:
        imagined.append(imagined_BRIJ3)
    held_BQU = self._hold(batch, robots)
    return Forecast(
      action_BAU=np.concatenate(actions, axis=1),
      hold_BAU=np.repeat(held_BQU, self._model.action_horizon, axis=1),
      frames_BRIJ3=np.concatenate(imagined, axis=1) if imagined else None,
      batch=batch,
    )

  def _find_past(self, frames_BRIJ3: np.ndarray, chunk: int) -> np.ndarray:
    """What was really seen of the chunk before, as many frames as a call takes; at first the
    conditioning frame alone, again and again.
    """
    count = self._policy.frames_per_call
    if chunk == 0:
      return np.repeat(frames_BRIJ3[:, :1], count, axis=1)
    stop = 1 + chunk * self._model.camera_frames_per_chunk
    return frames_BRIJ3[:, stop - count : stop]

  def _hold(self, batch: types.Batch, robots: Sequence[robot_lib.Robot]) -> np.ndarray:
    """[B, Q, U] normalized actions that change nothing."""
    B, Q, _ = batch.proprio_BQX.shape
    held_BQU = np.zeros((B, Q, self._model.action_dim), np.float32)
    for i, robot in enumerate(robots):
      record = robot.record
      statistics = robot.statistics
      state_QX = statistics.state.unnormalize(batch.proprio_BQX[i, :, : record.proprio_dim])
      still_QU = normalize.still(record, state_QX)
      held_BQU[i, :, : record.action_dim] = statistics.action.normalize(still_QU)
    return held_BQU


def summarize(forecasts: Sequence[Forecast]) -> dict[str, float]:
  """Mean absolute action errors (normalized units, real dimensions) and video errors (dB), model
  against baselines.

  `action_error` against `action_error_hold`; `video_psnr_db` of imagined frames against
  `video_psnr_db_still`, which repeats the last frame that the model saw before the chunk; no video
  errors where nothing is imagined.
  """
  summary = {
    'windows': sum(len(f.action_BAU) for f in forecasts),
    'action_error': _compute_error(forecasts, lambda f: f.action_BAU),
    'action_error_hold': _compute_error(forecasts, lambda f: f.hold_BAU),
  }
  if any(f.frames_BRIJ3 is None for f in forecasts):
    return summary
  return summary | {
    'video_psnr_db': _compute_psnr(forecasts, lambda f: f.frames_BRIJ3),
    'video_psnr_db_still': _compute_psnr(forecasts, _repeat_last_frames),
  }


Pick = Callable[[Forecast], np.ndarray]


def _compute_error(forecasts: Sequence[Forecast], pick: Pick) -> float:
  """Mean absolute error of the actions that `pick` takes."""
  masks = [_imitated(f.batch) for f in forecasts]
  count = sum(mask_BAU.sum() for mask_BAU in masks)
  total = 0  # Summed over everything and divided once: windows have different numbers of actions.
  for f, mask_BAU in zip(forecasts, masks):
    # Padded steps and dimensions count nowhere.
    error_BAU = np.abs(pick(f) - f.batch.action_BAU)
    total += (error_BAU * mask_BAU).sum()
  return float(total / max(count, 1))


def _imitated(batch: types.Batch) -> np.ndarray:
  """[B, A, U] bool: real actions but those that a chunk begins with and nobody is to imitate."""
  mask_BAU = np.asarray(batch.action_mask_BAU)
  if batch.given_BQ is None:
    return mask_BAU
  B, Q = batch.given_BQ.shape
  step_S = np.arange(mask_BAU.shape[1] // Q)
  is_given_BQS = step_S < np.asarray(batch.given_BQ)[..., None]
  return mask_BAU & ~is_given_BQS.reshape(B, -1, 1)


def _compute_psnr(forecasts: Sequence[Forecast], pick: Pick) -> float:
  """Peak signal-to-noise ratio, dB, of the frames that `pick` takes, over all whole chunks."""
  squares = frames = 0.0
  for f in forecasts:
    mask_BR = np.repeat(f.batch.chunk_mask_BQ, count_frames_per_chunk(f), axis=1)
    difference = pick(f).astype(np.float32) - f.batch.frames_BRIJ3[:, 1:]
    square_BR = np.square(difference).mean((2, 3, 4))
    squares += float((square_BR * mask_BR).sum())
    frames += float(mask_BR.sum())
  # The floor keeps the ratio finite where every pixel is right, or where there is none.
  mean_square = max(squares / max(frames, 1), 1e-9)
  peak = 255
  return float(10 * np.log10(peak**2 / mean_square))


def _repeat_last_frames(f: Forecast) -> np.ndarray:
  """Frames that repeat the one before each chunk."""
  r = count_frames_per_chunk(f)
  return np.repeat(f.batch.frames_BRIJ3[:, :-1:r], r, axis=1)


def count_frames_per_chunk(f: Forecast) -> int:
  """Camera frames that are imagined for each chunk."""
  return f.frames_BRIJ3.shape[1] // f.batch.chunk_mask_BQ.shape[1]
