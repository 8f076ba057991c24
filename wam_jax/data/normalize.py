"""The map between raw units and the model's [-1, 1], both ways, for training and control alike.

Owns the numbers; needs no dataset. `statistics.py` computes them, a checkpoint carries them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax.data import embodiments

RANGE_FLOOR = 1e-3  # In raw units: a dimension that hardly moves must not be blown up to [-1, 1].
ARRAYS = ('q01', 'q99', 'mean', 'std', 'min', 'max')


@dataclasses.dataclass(frozen=True)
class Quantiles:
  """Quantiles, moments and bounds of one vector, [N] float32 each, raw units, and the map that they
  give.

  Attributes:
    q01, q99: 1% and 99% quantiles.
    mean, std, min, max: None where nobody computed them.
    norms: of each dimension, what maps to -1 and 1; () for 'q99' everywhere. 'q99' (the quantiles)
      and 'min_max' clip what lies beyond, 'mean_std' (one deviation) and 'none' (-1 and 1) do not.
      'q99_reference' is 'q99' without a
      floor: a dimension without range passes as it is, clipped, and comes back as q01.
  Raises:
    ValueError: a dimension's norm needs what is None.
  Source: spec 5.3; the reference does not floor.
  """

  q01: np.ndarray
  q99: np.ndarray
  mean: np.ndarray | None = None
  std: np.ndarray | None = None
  min: np.ndarray | None = None
  max: np.ndarray | None = None
  norms: tuple[str, ...] = ()

  def __post_init__(self):
    if (self.mean is None and 'mean_std' in self.norms) or (
      self.min is None and 'min_max' in self.norms
    ):
      raise ValueError(
        f'Statistics without mean, std, min and max cannot serve the norms {sorted(set(self.norms))}; '
        'compute them again: python -m data.statistics'
      )

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """[2, N] what maps to -1 and to 1, before any floor."""
    ends = np.stack([self.q01, self.q99])
    if 'none' in self.norms:
      ends = np.where(self._has('none'), np.float32([[-1], [1]]), ends)
    if 'min_max' in self.norms:
      ends = np.where(self._has('min_max'), [self.min, self.max], ends)
    if 'mean_std' in self.norms:
      ends = np.where(self._has('mean_std'), [self.mean - self.std, self.mean + self.std], ends)
    return ends

  def _has(self, *norms: str) -> np.ndarray:
    """[N] bool, the dimensions with one of `norms`."""
    return np.asarray([norm in norms for norm in self.norms or ('q99',) * self.q01.size], bool)

  @functools.cached_property
  def is_flat(self) -> np.ndarray:
    """[N] bool, the dimensions that hardly vary: `half_range` is floored there, where the norm does
    that.
    """
    return self._ends[1] - self._ends[0] < np.float32(RANGE_FLOOR)

  @functools.cached_property
  def middle(self) -> np.ndarray:
    """What maps to 0."""
    return (self._ends[0] + self._ends[1]) / 2

  @functools.cached_property
  def half_range(self) -> np.ndarray:
    """What maps to 1, counted from the middle; floored."""
    floor = np.where(self._has('q99_reference'), np.float32(0), np.float32(RANGE_FLOOR))
    return np.maximum(self._ends[1] - self._ends[0], floor) / 2

  @functools.cached_property
  def _forward(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle, half range and bound that `normalize` uses: a dimension of no range at all passes as
    it is.
    """
    none = self.half_range == 0
    return (
      np.where(none, np.float32(0), self.middle),
      np.where(none, np.float32(1), self.half_range),
      np.where(self._has('mean_std', 'none'), np.float32(np.inf), np.float32(1)),
    )

  def normalize(self, x: np.ndarray) -> np.ndarray:
    """(x - middle) / half_range, clipped to [-1, 1] where the norm clips, float32."""
    middle, half_range, bound = self._forward
    return np.clip((x - middle) / half_range, -bound, bound).astype(np.float32)

  def unnormalize(self, x: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`, not clipped: the model may go a little beyond the quantiles."""
    return (x * self.half_range + self.middle).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What normalization needs to know about one embodiment.

  Attributes:
    state: quantiles of the record's state vector.
    action: quantiles of its action vector; relative dimensions as differences to the state at the
      chunk's start.
    steps: control steps that were seen.
  """

  state: Quantiles
  action: Quantiles
  steps: int


def to_dict(statistics: Statistics) -> dict[str, Any]:
  """JSON-ready; `from_dict` is the inverse."""

  def plain(quantiles):
    arrays = {key: getattr(quantiles, key) for key in ARRAYS}
    return {key: x.tolist() for key, x in arrays.items() if x is not None} | {
      'norms': list(quantiles.norms)
    }

  return {
    'state': plain(statistics.state),
    'action': plain(statistics.action),
    'steps': statistics.steps,
  }


def from_dict(content: Mapping[str, Any]) -> Statistics:
  """Statistics from `to_dict`'s result, also after a trip through JSON; at least q01 and q99 must
  be there.
  """

  def read(part):
    arrays = {
      key: np.asarray(part[key], np.float32)
      for key in ARRAYS
      if key in part or key in ('q01', 'q99')
    }
    return Quantiles(**arrays, norms=tuple(part.get('norms', ())))

  return Statistics(read(content['state']), read(content['action']), int(content['steps']))


def check_widths(statistics: Statistics, record: embodiments.Embodiment, where: str) -> None:
  """Raises ValueError if the statistics are of vectors of other widths than the record's."""
  widths = statistics.state.q01.size, statistics.action.q01.size
  if widths != (record.proprio_dim, record.action_dim):
    raise ValueError(
      f'{where} has statistics of {widths[0]} state and {widths[1]} action dimensions, but {record.name!r} has '
      f'{record.proprio_dim} and {record.action_dim}: they are of another embodiment. Compute its own: '
      f'python -m data.statistics --dataset=DIR --embodiment={record.name}'
    )


def combine(statistics: Sequence[Statistics]) -> Statistics:
  """Over several datasets of one embodiment: the least q01 and min, the greatest q99 and max,
  pooled moments.

  Source: spec 5.3.
  """
  steps = [s.steps for s in statistics]
  state, action = (
    _pool([getattr(s, part) for s in statistics], steps) for part in ('state', 'action')
  )
  return Statistics(state, action, sum(steps))


def _pool(parts: Sequence[Quantiles], steps: Sequence[int]) -> Quantiles:
  extremes = {
    key: reduce([getattr(q, key) for q in parts], axis=0)
    for key, reduce in (('q01', np.min), ('q99', np.max), ('min', np.min), ('max', np.max))
    if all(getattr(q, key) is not None for q in parts)
  }
  if any(q.mean is None for q in parts):
    return Quantiles(**extremes, norms=parts[0].norms)
  mean = np.average([q.mean for q in parts], axis=0, weights=steps)
  square = np.average(
    [np.square(q.std) + np.square(q.mean - mean) for q in parts], axis=0, weights=steps
  )
  return Quantiles(
    **extremes,
    mean=mean.astype(np.float32),
    std=np.sqrt(square).astype(np.float32),
    norms=parts[0].norms,
  )


def subtract_reference(
  record: embodiments.Embodiment, action_QSU: np.ndarray, proprio_QX: np.ndarray
) -> np.ndarray:
  """Actions minus the state at their chunk's first step, on the relative dimensions.

  Source: DreamZero `ShardedLeRobotSubLangSingleActionChunkDatasetDROID` (spec 5.4 (5)).
  """
  return action_QSU - reference(record, proprio_QX)[:, None, :]


def reference(record: embodiments.Embodiment, proprio_QX: np.ndarray) -> np.ndarray:
  """[Q, U] what relative actions count from; zero on absolute dimensions."""
  columns_U = np.asarray(record.reference_columns, np.int64)
  if not columns_U.size or columns_U.max() < 0:
    return np.zeros((proprio_QX.shape[0], columns_U.size), np.float32)
  return np.where(columns_U >= 0, proprio_QX[:, columns_U], np.float32(0))
