"""What a policy is given, looked at before anything runs: a program that fails loses the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wam_jax import types
from wam_jax.data import record as record_lib


class Frame(NamedTuple):
  """What frames look like.

  Attributes:
    shape: [B, I, J, 3].
    dtype: of the pixels.
  """

  shape: tuple[int, ...]
  dtype: np.dtype


def list_frame_problems(frames_BRIJ3: types.Array, frame: Frame, count: int) -> list[str]:
  """What is wrong with `count` frames of each robot."""
  B, *image = frame.shape
  wanted = (B, count, *image)
  if tuple(frames_BRIJ3.shape) != wanted:
    return [
      f'frames_BRIJ3 has shape {tuple(frames_BRIJ3.shape)}, expected {wanted}: of {B} robots the '
      f'{count} frames since the last call, views tiled as at reset'
    ]
  if frames_BRIJ3.dtype != frame.dtype:
    return [f'frames_BRIJ3 is {frames_BRIJ3.dtype}, expected {frame.dtype} as at reset']
  if np.issubdtype(frame.dtype, np.floating) and not np.isfinite(frames_BRIJ3).all():
    return ['frames_BRIJ3 has pixels that are not finite']
  return []


def read_state(record: record_lib.Embodiment, proprio_BX: np.ndarray) -> np.ndarray:
  """[B, X] float32 of what robots sense, in the units of their record.

  Raises:
    ValueError: it is none. The episode is as it was; normalized, some of this would not show.
  """
  try:
    state_BX = np.asarray(proprio_BX, np.float32)
  except (TypeError, ValueError) as e:
    raise ValueError(f'The observation was not used: proprio_BX is no array of numbers: {e}') from e
  X = record.proprio_dim
  if state_BX.ndim != 2 or state_BX.shape[1] != X:
    refuse([f'proprio_BX of {record.name!r} has shape {state_BX.shape}, expected (robots, {X})'])
  refuse(_list_infinite(state_BX))
  return state_BX


def list_proprio_problems(proprio_BX: types.Array, batch: int, width: int) -> list[str]:
  """What is wrong with normalized states."""
  if tuple(proprio_BX.shape) != (batch, width):
    return [f'proprio_BX has shape {tuple(proprio_BX.shape)}, expected {(batch, width)}']
  return _list_infinite(np.asarray(proprio_BX, np.float32))


def _list_infinite(proprio_BX: np.ndarray) -> list[str]:
  finite = np.isfinite(proprio_BX)
  if finite.all():
    return []
  where = [tuple(map(int, index)) for index in np.argwhere(~finite)[:10]]
  return [f'proprio_BX is not finite at {where} (robot, dimension)']


def list_prefix_problems(
  prefix: types.Prefix | None, batch: int, overlap: int, width: int
) -> list[str]:
  """What is wrong with a prefix; None, for no commitment, is never wrong.

  Args:
    overlap: the most steps of it that the weights know, `ModelConfig.action_overlap`.
    width: U.
  """
  if prefix is None:
    return []
  if not overlap:
    return [
      'it has a prefix, and these weights were trained without one: model.action_overlap=0; wait '
      'for the chunk before the next is asked for'
    ]
  shape, lengths = tuple(prefix.action_BDU.shape), np.asarray(prefix.length_B)
  if shape != (batch, overlap, width) or lengths.shape != (batch,):
    return [
      f'prefix.action_BDU has shape {shape} and length_B {lengths.shape}, expected '
      f'{(batch, overlap, width)} and {(batch,)}: model.action_overlap={overlap} steps of each'
    ]
  if not np.issubdtype(lengths.dtype, np.integer) or (lengths < 0).any():
    return [f'prefix.length_B={lengths.tolist()} must be whole numbers from 0 on']
  if (lengths > overlap).any():
    return [
      f'prefix.length_B={lengths.tolist()} is more than the model.action_overlap={overlap} steps '
      'that the weights were trained for'
    ]
  if not np.isfinite(np.asarray(prefix.action_BDU, np.float32)).all():
    return ['prefix.action_BDU is not finite']
  return []


def refuse(problems: Sequence[str]) -> None:
  """Raises ValueError with all of them; the state is as it was."""
  if problems:
    raise ValueError('The observation was not used: ' + '; '.join(problems) + '.')
