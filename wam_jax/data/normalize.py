"""The map between raw units and the model's [-1, 1], both ways, for training and control alike.

Owns the numbers; needs no dataset and no image. `statistics.py` computes them, `robot.py` holds
them beside a record, a checkpoint carries them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import record as record_lib

RANGE_FLOOR = 1e-3  # In raw units: a dimension that hardly moves must not be blown up to [-1, 1].
ARRAYS = ('q01', 'q99', 'mean', 'std', 'min', 'max')
OF_CHUNKS = 'of chunks'  # What `Statistics.rows` says of those that this version computes.
REQUIRED = ('q01', 'q99')  # The first version kept no others.


@dataclasses.dataclass(frozen=True)
class Quantiles:
  """Quantiles, moments and bounds of one vector, [N] float32 each, raw units, and the map that they
  give.

  Attributes:
    q01, q99: 1% and 99% quantiles.
    mean, std, min, max: None where nobody computed them.
    norms: what maps to -1 and 1, for each dimension; () for 'q99' everywhere. 'q99' (the quantiles)
      and 'min_max' clip what lies beyond, 'mean_std' (one deviation) and 'none' (-1 and 1) do not.
      'q99_reference' is 'q99' without a floor: a dimension without range passes as it is, clipped,
      and comes back as q01.
  Raises:
    ValueError: a dimension's norm needs what is None.
  Source: DreamZero `groot/vla/data/transform/state_action.py`, which does not floor.
  """

  q01: np.ndarray
  q99: np.ndarray
  mean: np.ndarray | None = None
  std: np.ndarray | None = None
  min: np.ndarray | None = None
  max: np.ndarray | None = None
  norms: tuple[str, ...] = ()

  def __post_init__(self):
    lacks_moments = self.mean is None and 'mean_std' in self.norms
    lacks_bounds = self.min is None and 'min_max' in self.norms
    if lacks_moments or lacks_bounds:
      raise ValueError(
        'Statistics without mean, std, min and max cannot serve the norms '
        f'{sorted(set(self.norms))}; compute them again: python -m data.statistics'
      )

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """[2, N] what maps to -1 and to 1, before any floor."""
    ends_2N = np.stack([self.q01, self.q99])
    if 'none' in self.norms:
      ends_2N = np.where(self._has('none'), np.float32([[-1], [1]]), ends_2N)
    if 'min_max' in self.norms:
      ends_2N = np.where(self._has('min_max'), [self.min, self.max], ends_2N)
    if 'mean_std' in self.norms:
      one_deviation_2N = [self.mean - self.std, self.mean + self.std]
      ends_2N = np.where(self._has('mean_std'), one_deviation_2N, ends_2N)
    return ends_2N

  def _has(self, *norms: str) -> np.ndarray:
    """[N] bool, the dimensions with one of `norms`."""
    own_N = self.norms or ('q99',) * self.q01.size
    return np.asarray([norm in norms for norm in own_N], bool)

  @functools.cached_property
  def is_flat(self) -> np.ndarray:
    """[N] bool, the dimensions that hardly vary: `half_range` is floored there, where the norm does
    that.
    """
    return self._range < np.float32(RANGE_FLOOR)

  @functools.cached_property
  def middle(self) -> np.ndarray:
    """What maps to 0."""
    return (self._ends[0] + self._ends[1]) / 2

  @functools.cached_property
  def half_range(self) -> np.ndarray:
    """What maps to 1, counted from the middle; floored."""
    floor_N = np.where(self._has('q99_reference'), np.float32(0), np.float32(RANGE_FLOOR))
    return np.maximum(self._range, floor_N) / 2

  @property
  def _range(self) -> np.ndarray:
    return self._ends[1] - self._ends[0]

  @functools.cached_property
  def _forward(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle, half range and bound that `normalize` uses."""
    # A dimension of no range at all passes as it is.
    constant_N = self.half_range == 0
    middle_N = np.where(constant_N, np.float32(0), self.middle)
    half_range_N = np.where(constant_N, np.float32(1), self.half_range)
    bound_N = np.where(self._has('mean_std', 'none'), np.float32(np.inf), np.float32(1))
    return middle_N, half_range_N, bound_N

  def normalize(self, x: np.ndarray) -> np.ndarray:
    """(x - middle) / half_range, clipped to [-1, 1] where the norm clips, float32."""
    middle, half_range, bound = self._forward
    return np.clip((x - middle) / half_range, -bound, bound).astype(np.float32)

  def unnormalize(self, x: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`, not clipped: the model may go a little beyond the quantiles."""
    # By the half range itself, not that of `_forward`: where it is 0 there was one value in all of
    # the data, and that is what comes back, whatever the model says.
    return (x * self.half_range + self.middle).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What normalization needs to know about one embodiment.

  Attributes:
    state: quantiles of the record's state vector.
    action: quantiles of its action vector; relative dimensions as differences to the state at the
      chunk's start.
    steps: control steps that were seen.
    rows: which steps these are: OF_CHUNKS for those that are trained on, '' for all of a split, as
      earlier versions counted.
  """

  state: Quantiles
  action: Quantiles
  steps: int
  rows: str = ''


def to_dict(statistics: Statistics) -> dict[str, Any]:
  """JSON-ready; `from_dict` is the inverse."""
  content = {
    'state': _quantiles_to_dict(statistics.state),
    'action': _quantiles_to_dict(statistics.action),
    'steps': statistics.steps,
  }
  # Those of earlier versions stay what they were, word for word.
  return {**content, 'rows': statistics.rows} if statistics.rows else content


def _quantiles_to_dict(quantiles: Quantiles) -> dict[str, Any]:
  arrays = {key: getattr(quantiles, key) for key in ARRAYS}
  stored = {key: array.tolist() for key, array in arrays.items() if array is not None}
  return {**stored, 'norms': list(quantiles.norms)}


def from_dict(content: Mapping[str, Any]) -> Statistics:
  """Statistics from `to_dict`'s result, also after a trip through JSON; at least q01 and q99 must
  be there.
  """
  return Statistics(
    state=_quantiles_from_dict(content['state']),
    action=_quantiles_from_dict(content['action']),
    steps=int(content['steps']),
    rows=content.get('rows', ''),
  )


def _quantiles_from_dict(stored: Mapping[str, Any]) -> Quantiles:
  keys = [key for key in ARRAYS if key in stored or key in REQUIRED]
  arrays = {key: np.asarray(stored[key], np.float32) for key in keys}
  return Quantiles(**arrays, norms=tuple(stored.get('norms', ())))


def check_widths(statistics: Statistics, record: record_lib.Embodiment, where: str) -> None:
  """Raises ValueError if the statistics are of vectors of other widths than the record's."""
  state = statistics.state.q01.size
  action = statistics.action.q01.size
  if (state, action) != (record.proprio_dim, record.action_dim):
    raise ValueError(
      f'{where} has statistics of {state} state and {action} action dimensions, but '
      f'{record.name!r} has {record.proprio_dim} and {record.action_dim}: they are of another '
      'embodiment. Compute its own: python -m data.statistics --dataset=DIR'
    )


def combine(statistics: Sequence[Statistics]) -> Statistics:
  """Over several datasets of one embodiment: the least q01 and min, the greatest q99 and max,
  pooled moments.

  Source: DreamZero `groot/vla/data/dataset/lerobot.py`.
  """
  steps = [s.steps for s in statistics]
  return Statistics(
    state=_pool([s.state for s in statistics], steps),
    action=_pool([s.action for s in statistics], steps),
    steps=sum(steps),
    rows=min(s.rows for s in statistics),
  )


def _pool(parts: Sequence[Quantiles], steps: Sequence[int]) -> Quantiles:
  norms = parts[0].norms
  # No dataset's numbers may leave the range that it was normalized to alone.
  widest = {
    key: reduce([getattr(q, key) for q in parts], axis=0)
    for key, reduce in (('q01', np.min), ('q99', np.max), ('min', np.min), ('max', np.max))
    if all(getattr(q, key) is not None for q in parts)
  }
  if any(q.mean is None for q in parts):
    return Quantiles(**widest, norms=norms)

  # The variance of all rows: the mean variance, and that of the means.
  mean = np.average([q.mean for q in parts], axis=0, weights=steps)
  squares = [np.square(q.std) + np.square(q.mean - mean) for q in parts]
  std = np.sqrt(np.average(squares, axis=0, weights=steps))
  return Quantiles(**widest, mean=mean.astype(np.float32), std=std.astype(np.float32), norms=norms)


def subtract_reference(
  record: record_lib.Embodiment, action_QSU: np.ndarray, proprio_QX: np.ndarray
) -> np.ndarray:
  """Actions minus the state at their chunk's first step, on the relative dimensions; the short way
  around, of angles that say where they go around.

  Source: DreamZero `ShardedLeRobotSubLangSingleActionChunkDatasetDROID`.
  """
  return shorten(record, action_QSU - reference(record, proprio_QX)[:, None, :])


def add_reference(
  record: record_lib.Embodiment, relative_QSU: np.ndarray, proprio_QX: np.ndarray
) -> np.ndarray:
  """Inverse of `subtract_reference`: angles come back within the numbers that they go around in."""
  action_QSU = relative_QSU + reference(record, proprio_QX)[:, None, :]
  if not _goes_around(record):
    return action_QSU
  low_U, turn_U, wraps_U = _read_wraps(record)
  around_QSU = low_U + np.mod(action_QSU - low_U, np.where(wraps_U, turn_U, 1))
  return np.where(wraps_U, around_QSU, action_QSU).astype(np.float32)


def shorten(record: record_lib.Embodiment, difference: np.ndarray) -> np.ndarray:
  """[..., U] differences of actions, by at most half a turn on relative dimensions that go
  around.
  """
  if not _goes_around(record):
    return difference
  _, turn_U, wraps_U = _read_wraps(record)
  wraps_U = wraps_U & (np.asarray(record.reference_columns, np.int64) >= 0)
  turn_U = np.where(wraps_U, turn_U, 1)
  short = difference - turn_U * np.round(difference / turn_U)
  return np.where(wraps_U, short, difference).astype(np.float32)


def _goes_around(record: record_lib.Embodiment) -> bool:
  """Whether any action does: of most robots none, which is asked of every window."""
  return any(s.wrap for s in record.action)


def _read_wraps(record: record_lib.Embodiment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """[U] lowest number and turn of each action dimension, and whether it goes around."""
  low_U, turn_U = np.asarray(record.wraps, np.float64).reshape(-1, 2).T
  return low_U, turn_U, turn_U > 0


def reference(record: record_lib.Embodiment, proprio_QX: np.ndarray) -> np.ndarray:
  """[Q, U] what relative actions count from; zero on absolute dimensions."""
  return _take(record.reference_columns, proprio_QX)


def still(record: record_lib.Embodiment, proprio_QX: np.ndarray) -> np.ndarray:
  """[Q, U] the actions that change nothing, as the model sees them: the position where it is of a
  position, and zero of differences and velocities.
  """
  rests_U = np.asarray(record.rest_columns, np.int64) >= 0
  counted_from_QU = np.where(rests_U, reference(record, proprio_QX), np.float32(0))
  return shorten(record, _take(record.rest_columns, proprio_QX) - counted_from_QU)


def _take(columns: Sequence[int], proprio_QX: np.ndarray) -> np.ndarray:
  """[Q, U] these columns of the state; zero for -1."""
  columns_U = np.asarray(columns, np.int64)
  # A state without columns could not be indexed, not even by -1.
  if not columns_U.size or columns_U.max() < 0:
    return np.zeros((proprio_QX.shape[0], columns_U.size), np.float32)
  return np.where(columns_U >= 0, proprio_QX[:, columns_U], np.float32(0))
