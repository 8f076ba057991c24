"""Observations as clients name them, as the composites and states that the record says.

Images may have any size, and come one by one or as [T, rows, columns, 3]; keys are those of the
record with or without `observation/`. Owns no history and no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from wam_jax.client import wire as codec
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib

_PREFIX = 'observation/'
# RoboArena counts the cameras outside from 0, DROID and openpi from 1. Source: DreamZero
# socket_test_optimized_AR.py, _convert_observation.
_FROM_ZERO = {
  'exterior_image_0_left': 'exterior_image_1_left',
  'exterior_image_1_left': 'exterior_image_2_left',
}
MOST_FRAMES = 64


@dataclasses.dataclass(frozen=True)
class Seen:
  """What one message shows.

  Attributes:
    frames: uint8 composites [I, J, 3], oldest first.
    proprio_X: float32 state now, in the record's units.
    steps: the control step of each frame, counted from anywhere; None where the client says none.
    ignored: keys that the record does not name.
  """

  frames: list[np.ndarray]
  proprio_X: np.ndarray
  steps: np.ndarray | None
  ignored: tuple[str, ...]


def read(robot: robot_lib.Robot, given: Mapping[str, Any], fills_missing: bool = False) -> Seen:
  """What `given` shows of `robot`.

  Args:
    fills_missing: whether a view that is not there is black.
  Raises:
    client.wire.Malformed: something is missing, or has another shape than the record says.
  """
  record = robot.record
  named = name(record, given)
  try:
    views = _read_views(record, named, fills_missing)
    state = {s.key: _read_state(named, s.key) for s in record.state if s.key in named}
    count = len(next(iter(views.values())))
    frames = [robot.compose({key: view[t] for key, view in views.items()}) for t in range(count)]
    proprio_X = record_lib.read(record.state, state)
  except codec.Malformed:
    raise
  except ValueError as e:
    raise codec.Malformed(str(e)) from e
  if not np.isfinite(proprio_X).all():
    raise codec.Malformed('the state is not finite')
  known = {view.key for view in record.views} | {s.key for s in record.state} | set(_TIMES)
  return Seen(frames, proprio_X, _read_steps(record, named, count), tuple(sorted({*named} - known)))


def name(record: record_lib.Embodiment, given: Mapping[str, Any]) -> dict[str, Any]:
  """All that `given` holds by the keys of the record, as far as it has them."""
  return _rename({key.removeprefix(_PREFIX): value for key, value in given.items()}, record)


def keep_known(record: record_lib.Embodiment, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Images and states of the record alone, by its keys, as they were sent."""
  named = name(record, given)
  keys = [*(view.key for view in record.views), *(s.key for s in record.state)]
  return {key: np.asarray(named[key]) for key in keys if key in named}


def check_step(
  record: record_lib.Embodiment, shown: Mapping[str, np.ndarray], action_U: np.ndarray
) -> None:
  """Raises `Malformed` where a control step is not whole: one image of each view, the state, the
  action.
  """
  views = _read_views(record, shown, fills_missing=False)
  counts = {key: len(view) for key, view in views.items()}
  if set(counts.values()) != {1}:
    raise codec.Malformed(f'views have {counts} frames; expected one of each')
  try:
    record_lib.read(record.state, {s.key: _read_state(shown, s.key) for s in record.state})
  except (KeyError, ValueError) as e:
    raise codec.Malformed(f'the state is not whole: {e}') from e
  if len(action_U) != record.action_dim:
    raise codec.Malformed(f'action has {len(action_U)} numbers; expected {record.action_dim}')


def _rename(named: dict[str, Any], record: record_lib.Embodiment) -> dict[str, Any]:
  keys = {view.key for view in record.views}
  if 'exterior_image_0_left' not in named or 'exterior_image_0_left' in keys:
    return named
  return {_FROM_ZERO.get(key, key): value for key, value in named.items()}


def _read_views(
  record: record_lib.Embodiment, named: Mapping[str, Any], fills_missing: bool
) -> dict[str, np.ndarray]:
  """Each view as uint8 [T, rows, columns, 3], with one T."""
  views = {}
  for view in record.views:
    image = named.get(view.key)
    if image is None:
      continue
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (3, 4):
      raise codec.Malformed(f'{view.key!r} is no uint8 image [rows, columns, 3] or several of them')
    views[view.key] = image if image.ndim == 4 else image[None]
    if 0 in image.shape or image.shape[-1] != 3:
      raise codec.Malformed(f'{view.key!r} has the shape {image.shape}, of no RGB image')
  missing = [view.key for view in record.views if view.key not in views]
  if missing and not (fills_missing and views):
    expected = [f'{_PREFIX}{view.key}' for view in record.views]
    raise codec.Malformed(f'views {missing} are missing; got {sorted(named)}, expected {expected}')
  counts = {key: len(view) for key, view in views.items()}
  count = max(counts.values())
  if min(counts.values()) != count or count > MOST_FRAMES:
    raise codec.Malformed(f'views have {counts} frames; expected as many of each, to {MOST_FRAMES}')
  for view in record.views:
    if view.key in missing:
      views[view.key] = np.zeros((count, view.height, view.width, 3), np.uint8)
  return views


def _read_state(named: Mapping[str, Any], key: str) -> np.ndarray:
  """The newest row of an array of numbers."""
  try:
    array = np.asarray(named[key])
  except ValueError as e:
    raise codec.Malformed(f'{key!r} is no array of numbers') from e
  if array.dtype.kind not in 'fiub' or array.ndim > 2 or not array.size:
    raise codec.Malformed(f'{key!r} is no array of numbers [n]')
  return np.atleast_1d(array[-1] if array.ndim == 2 else array)


# What a client may say of when its frames were taken.
_TIMES = ('timestamps', 'steps')


def _read_steps(
  record: record_lib.Embodiment, named: Mapping[str, Any], count: int
) -> np.ndarray | None:
  """Control steps of the frames, from `timestamps` in seconds or `steps`."""
  for key, rate in zip(_TIMES, (record.control_hz, 1.0)):
    if key not in named:
      continue
    try:
      times = np.atleast_1d(np.asarray(named[key], np.float64))
    except (TypeError, ValueError) as e:
      raise codec.Malformed(f'{key} are no numbers') from e
    if times.shape != (count,) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
      raise codec.Malformed(f'{key} of {count} frames are {count} numbers that do not fall')
    return times * rate
  return None
