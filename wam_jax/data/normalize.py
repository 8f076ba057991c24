"""Statistics of states and actions, and the map between raw units and the model's [-1, 1].

Owns the numbers and their file; never decodes an image.
"""
from __future__ import annotations

import dataclasses
import json
from typing import Any, Mapping, Sequence

from absl import logging
import numpy as np

from wam_jax.data import embodiments
from wam_jax.data import sources
from wam_jax.data import windows

RANGE_FLOOR = 1e-3  # In raw units: a dimension that hardly moves must not be blown up to [-1, 1].
ROWS = 1 << 20      # Rows kept per quantile; more are subsampled uniformly.


@dataclasses.dataclass(frozen=True)
class Quantiles:
  """1% and 99% quantiles of one vector, [N] float32 each, raw units."""

  q01: np.ndarray
  q99: np.ndarray

  @property
  def middle(self) -> np.ndarray:
    """What maps to 0."""
    return (self.q01 + self.q99) / 2

  @property
  def half_range(self) -> np.ndarray:
    """What maps to 1, counted from the middle; floored."""
    return np.maximum(self.q99 - self.q01, np.float32(RANGE_FLOOR)) / 2

  def normalize(self, x: np.ndarray) -> np.ndarray:
    """clip(2 (x - q01) / (q99 - q01) - 1, -1, 1), float32. Source: spec 5.3."""
    return np.clip((x - self.middle) / self.half_range, -1, 1).astype(np.float32)

  def unnormalize(self, x: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`, not clipped: the model may go a little beyond the quantiles."""
    return (x * self.half_range + self.middle).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What normalization needs to know about one embodiment.

  Attributes:
    state: quantiles of the record's state vector.
    action: quantiles of its action vector; relative dimensions as differences to the state at the chunk's start.
    steps: control steps that were seen.
  """

  state: Quantiles
  action: Quantiles
  steps: int


def to_dict(statistics: Statistics) -> dict[str, Any]:
  """JSON-ready; `from_dict` is the inverse."""
  quantiles = {part: {'q01': q.q01.tolist(), 'q99': q.q99.tolist()}
               for part, q in (('state', statistics.state), ('action', statistics.action))}
  return {**quantiles, 'steps': statistics.steps}


def from_dict(content: Mapping[str, Any]) -> Statistics:
  """Statistics from `to_dict`'s result, also after a trip through JSON."""
  state, action = (Quantiles(*(np.asarray(content[part][q], np.float32) for q in ('q01', 'q99')))
                   for part in ('state', 'action'))
  return Statistics(state, action, int(content['steps']))


def combine(statistics: Sequence[Statistics]) -> Statistics:
  """Over several datasets of one embodiment: q01 the least, q99 the greatest. Source: spec 5.3."""
  def widest(quantiles):
    return Quantiles(np.min([q.q01 for q in quantiles], axis=0), np.max([q.q99 for q in quantiles], axis=0))
  return Statistics(widest([s.state for s in statistics]), widest([s.action for s in statistics]),
                    sum(s.steps for s in statistics))


class QuantileSketch:
  """Quantiles of a stream of rows: exact up to `rows`, then of a uniform subsample (fixed seed).

  Every row draws a number in [0, 1) and stays while that is below a threshold, which halves whenever memory is full.
  """

  def __init__(self, rows: int = ROWS):
    self._limit, self._threshold, self._rng = rows, 1.0, np.random.default_rng(0)
    self._parts: list[tuple[np.ndarray, np.ndarray]] = []
    self._held = 0

  def add(self, rows: np.ndarray) -> None:
    """Adds [n, width] rows."""
    draw = self._rng.random(len(rows))
    self._append(rows[draw < self._threshold], draw[draw < self._threshold])
    while self._held > self._limit:
      self._threshold /= 2
      values, draws = (np.concatenate(part) for part in zip(*self._parts))
      self._parts, self._held = [], 0
      self._append(values[draws < self._threshold], draws[draws < self._threshold])

  def _append(self, rows, draw):
    self._parts.append((rows, draw))
    self._held += len(rows)

  def quantiles(self) -> Quantiles:
    """The 1% and 99% quantiles per column, linear between samples."""
    rows = np.concatenate([rows for rows, _ in self._parts])
    if not rows.shape[1]:
      return Quantiles(*np.zeros((2, 0), np.float32))
    return Quantiles(*np.quantile(rows, (0.01, 0.99), axis=0).astype(np.float32))


def compute(episodes: sources.Episodes) -> Statistics:
  """Statistics of a dataset, streaming, no image decoded.

  Relative actions pool the differences to the state of step i over all i where a chunk of actions fits and all steps of
  that chunk, as the reference does (spec 5.1).
  """
  record = episodes.record
  state, action, relative = QuantileSketch(), QuantileSketch(), QuantileSketch()
  is_relative_U = np.asarray(record.reference_columns, np.int64) >= 0
  total = 0
  for i in sources.progress(range(len(episodes)), len(episodes), f'statistics of {episodes.path}'):
    state_TX, action_TU = episodes.numeric(i)
    total += len(state_TX)
    state.add(state_TX)
    action.add(action_TU)
    starts = np.arange(len(state_TX) - record.steps_per_chunk + 1)
    if is_relative_U.any() and starts.size:
      action_QSU = action_TU[starts[:, None] + np.arange(record.steps_per_chunk)]
      relative.add(windows.subtract_reference(record, action_QSU, state_TX[starts]).reshape(-1, is_relative_U.size))
  quantiles = action.quantiles()
  if is_relative_U.any():
    other = relative.quantiles()
    quantiles = Quantiles(np.where(is_relative_U, other.q01, quantiles.q01),
                          np.where(is_relative_U, other.q99, quantiles.q99))
  return Statistics(state.quantiles(), quantiles, total)


def file_name(record: embodiments.Embodiment) -> str:
  """Name of the statistics file beside a dataset."""
  return f'wam_statistics_{record.name}.json'


def load_or_compute(episodes: sources.Episodes) -> Statistics:
  """The statistics kept beside a dataset, computed and kept now if absent or no longer true of it."""
  key = _key(episodes)
  content = sources.read_beside(episodes.path, file_name(episodes.record))
  stored = json.loads(content) if content is not None else {}
  if stored.get('of') != key:
    stored = {**to_dict(compute(episodes)), 'of': key}
    sources.write_beside(episodes.path, file_name(episodes.record), json.dumps(stored, indent=1).encode())
  statistics = from_dict(stored)
  _warn_constant(episodes, statistics)
  return statistics


def _key(episodes: sources.Episodes) -> dict[str, Any]:
  """What the numbers depend on."""
  record = json.loads(json.dumps(dataclasses.asdict(episodes.record)))
  return {'dataset': episodes.fingerprint, 'split': episodes.split, 'steps_per_chunk': episodes.record.steps_per_chunk,
          'state': record['state'], 'action': record['action']}


def _warn_constant(episodes: sources.Episodes, statistics: Statistics) -> None:
  for part, q in (('state', statistics.state), ('action', statistics.action)):
    dimensions = np.flatnonzero(q.q99 - q.q01 < RANGE_FLOOR).tolist()
    if dimensions:
      logging.warning('%s: %s dimensions %s of %s hardly vary (q99 - q01 < %g); their range is floored there.',
                      episodes.path, part, dimensions, episodes.record.name, RANGE_FLOOR)


def normalize_proprio(statistics: Statistics, proprio: np.ndarray, proprio_dim: int) -> np.ndarray:
  """Raw [..., X] state to the model's [..., proprio_dim] float32, zero on padded dimensions."""
  return _pad(statistics.state.normalize(proprio), proprio_dim)


def normalize_action(statistics: Statistics, action: np.ndarray, action_dim: int) -> np.ndarray:
  """Raw, already relative [..., U] actions to the model's [..., action_dim] float32, zero on padded dimensions."""
  return _pad(statistics.action.normalize(action), action_dim)


def unnormalize_action(statistics: Statistics, record: embodiments.Embodiment, action_AU: np.ndarray,
                       proprio: np.ndarray) -> np.ndarray:
  """The model's actions of one chunk as the robot takes them: [steps_per_chunk, record.action_dim], raw, absolute.

  Args:
    action_AU: [A, U] normalized and padded, as the model gives them.
    proprio: [record.proprio_dim] raw state at the chunk's first step, from which relative actions count.
  Raises:
    ValueError: `action_AU` or `proprio` is too small for the record.
  """
  if action_AU.shape[0] < record.steps_per_chunk or action_AU.shape[1] < record.action_dim:
    raise ValueError(f'Actions of shape {action_AU.shape} are too small for {record.name!r}: expected at least '
                     f'({record.steps_per_chunk}, {record.action_dim}).')
  if proprio.shape != (record.proprio_dim,):
    raise ValueError(f'Proprio of {record.name!r} has shape {proprio.shape}; expected ({record.proprio_dim},).')
  action_SU = statistics.action.unnormalize(action_AU[:record.steps_per_chunk, :record.action_dim])
  return action_SU + windows.reference(record, proprio[None])


def _pad(x: np.ndarray, width: int) -> np.ndarray:
  padded = np.zeros(x.shape[:-1] + (width,), np.float32)
  padded[..., :x.shape[-1]] = x
  return padded
