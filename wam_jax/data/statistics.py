"""Quantiles of the states and actions of a dataset, computed once and kept beside it. Never decodes an image."""
from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from absl import logging
from etils import epath
import numpy as np

from wam_jax.data import embodiments
from wam_jax.data import normalize
from wam_jax.data import sources
from wam_jax.data import storage

ROWS = 1 << 20  # Rows kept per quantile; more are subsampled uniformly.


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

  def quantiles(self) -> normalize.Quantiles:
    """The 1% and 99% quantiles per column, linear between samples."""
    rows = np.concatenate([rows for rows, _ in self._parts])
    if not rows.shape[1]:
      return normalize.Quantiles(*np.zeros((2, 0), np.float32))
    return normalize.Quantiles(*np.quantile(rows, (0.01, 0.99), axis=0).astype(np.float32))


def compute(episodes: sources.Episodes) -> normalize.Statistics:
  """Statistics of a dataset, streaming, no image decoded.

  Relative actions pool the differences to the state of step i over all i where a chunk of actions fits and all steps of
  that chunk, as the reference does (spec 5.1).
  """
  record = episodes.record
  state, action, relative = QuantileSketch(), QuantileSketch(), QuantileSketch()
  is_relative_U = np.asarray(record.reference_columns, np.int64) >= 0
  total = 0
  for i in storage.progress(range(len(episodes)), len(episodes), f'statistics of {episodes.path}'):
    state_TX, action_TU = episodes.numeric(i)
    total += len(state_TX)
    state.add(state_TX)
    action.add(action_TU)
    starts = np.arange(len(state_TX) - record.steps_per_chunk + 1)
    if is_relative_U.any() and starts.size:
      action_QSU = action_TU[starts[:, None] + np.arange(record.steps_per_chunk)]
      relative.add(normalize.subtract_reference(record, action_QSU, state_TX[starts]).reshape(-1, is_relative_U.size))
  quantiles = action.quantiles()
  if is_relative_U.any():
    other = relative.quantiles()
    quantiles = normalize.Quantiles(np.where(is_relative_U, other.q01, quantiles.q01),
                          np.where(is_relative_U, other.q99, quantiles.q99))
  return normalize.Statistics(state.quantiles(), quantiles, total)


def file_name(record: embodiments.Embodiment) -> str:
  """Name of the statistics file beside a dataset."""
  return f'wam_statistics_{record.name}.json'


def load_or_compute(episodes: sources.Episodes) -> normalize.Statistics:
  """The statistics kept beside a dataset, computed and kept now if absent or no longer true of it."""
  key = _key(episodes)
  content = storage.read_beside(episodes.path, file_name(episodes.record))
  stored = json.loads(content) if content is not None else {}
  if stored.get('of') != key:
    stored = {**normalize.to_dict(compute(episodes)), 'of': key}
    storage.write_beside(episodes.path, file_name(episodes.record), json.dumps(stored, indent=1).encode())
  statistics = normalize.from_dict(stored)
  _warn_constant(episodes, statistics)
  return statistics


def find(episodes: sources.Episodes) -> epath.Path:
  """The file that `load_or_compute` keeps: beside the dataset, or in the cache where that is read-only."""
  return storage.find_beside(episodes.path, file_name(episodes.record))


def _key(episodes: sources.Episodes) -> dict[str, Any]:
  """What the numbers depend on."""
  record = json.loads(json.dumps(dataclasses.asdict(episodes.record)))
  return {'dataset': episodes.fingerprint, 'split': episodes.split, 'steps_per_chunk': episodes.record.steps_per_chunk,
          'state': record['state'], 'action': record['action']}


def _warn_constant(episodes: sources.Episodes, statistics: normalize.Statistics) -> None:
  for part, q in (('state', statistics.state), ('action', statistics.action)):
    dimensions = np.flatnonzero(q.q99 - q.q01 < normalize.RANGE_FLOOR).tolist()
    if dimensions:
      _warn_once(f'{episodes.path}: {part} dimensions {dimensions} of {episodes.record.name} hardly vary (q99 - q01 < '
                 f'{normalize.RANGE_FLOOR:g}); their range is floored there.')


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning('%s', message)
