"""Quantiles, moments and bounds of a dataset's states and actions, computed once and kept beside
it.

Never decodes an image. All steps of the split count, also those of episodes and ranges that
training leaves out, so that another choice of these does not change what a number means to the
model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from wam_jax.data import beside
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import scan
from wam_jax.data import sources

ROWS = 1 << 20  # Rows kept per quantile; more are subsampled uniformly.


class QuantileSketch:
  """Quantiles, moments and bounds of a stream of rows, in bounded memory.

  Moments (float64) and bounds are of all rows. Quantiles are exact up to `rows` of them, then those
  of a uniform subsample of at least `rows` / 2 (fixed seed): each row draws a number in [0, 1) and
  stays while that is below a threshold, which halves whenever memory is full. Of 2**19 rows, the
  rank of the 1% quantile has a standard error of 0.014%.

  Attributes:
    count: rows so far.
  """

  def __init__(self, rows: int = ROWS):
    self.count = 0
    self._limit = rows
    # The rows that are held, each with the number it drew.
    self._parts: list[tuple[np.ndarray, np.ndarray]] = []
    self._held = 0
    self._threshold = 1.0
    self._rng = np.random.default_rng(0)
    # Of all rows: mean, sum of squared deviations from it, [min, max].
    self._mean = 0.0
    self._squares = 0.0
    self._bounds: list[np.ndarray] | None = None

  def add(self, rows: np.ndarray) -> None:
    """Adds [n, width] rows."""
    if not len(rows):
      return
    self._add_moments(rows)
    self._add_bounds(rows)

    draw = self._rng.random(len(rows))
    self._hold(rows, draw)
    while self._held > self._limit:
      self._threshold /= 2
      held, draws = (np.concatenate(part) for part in zip(*self._parts))
      self._parts = []
      self._held = 0
      self._hold(held, draws)

  def _add_moments(self, rows: np.ndarray) -> None:
    """Of two sets of rows, the mean and squares of their union. Source: Chan, Golub, LeVeque."""
    mean = rows.mean(axis=0, dtype=np.float64)
    shift = mean - self._mean
    total = self.count + len(rows)
    self._squares = (
      self._squares
      + np.square(rows - mean).sum(axis=0, dtype=np.float64)
      + np.square(shift) * self.count * len(rows) / total
    )
    self._mean = self._mean + shift * len(rows) / total
    self.count = total

  def _add_bounds(self, rows: np.ndarray) -> None:
    low = rows.min(axis=0)
    high = rows.max(axis=0)
    if self._bounds is not None:
      low = np.minimum(self._bounds[0], low)
      high = np.maximum(self._bounds[1], high)
    self._bounds = [low, high]

  def _hold(self, rows: np.ndarray, draw: np.ndarray) -> None:
    """Keeps the rows whose draw is below the threshold."""
    stays = draw < self._threshold
    self._parts.append((rows[stays], draw[stays]))
    self._held += int(stays.sum())

  def quantiles(self) -> normalize.Quantiles:
    """Of all rows so far; there must be some."""
    rows = np.concatenate([rows for rows, _ in self._parts])
    # Linear between rows; numpy knows no quantiles of rows without columns.
    if rows.shape[1]:
      q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
    else:
      q01, q99 = np.zeros((2, 0))
    std = np.sqrt(self._squares / self.count)
    numbers = (q01, q99, self._mean, std, *self._bounds)
    return normalize.Quantiles(*(np.asarray(x, np.float32) for x in numbers))


class Computation:
  """Statistics over episodes that are added one by one.

  Relative actions pool the differences to the state of step i over all i where a chunk of actions
  fits and all steps of that chunk, as the reference does (spec 5.1).
  """

  def __init__(self, record: record_lib.Embodiment):
    self._record = record
    self._is_relative_U = np.asarray(record.reference_columns, np.int64) >= 0
    self._state = QuantileSketch()
    self._action = QuantileSketch()
    self._relative = QuantileSketch()

  def add(self, state_TX: np.ndarray, action_TU: np.ndarray) -> None:
    """Adds an episode, in raw units."""
    state_TX = record_lib.convert(self._record.state, state_TX)
    action_TU = record_lib.convert(self._record.action, action_TU)
    self._state.add(state_TX)
    self._action.add(action_TU)

    S = self._record.steps_per_chunk
    starts_C = np.arange(len(state_TX) - S + 1)
    if self._is_relative_U.any() and starts_C.size:
      action_CSU = action_TU[starts_C[:, None] + np.arange(S)]
      relative_CSU = normalize.subtract_reference(self._record, action_CSU, state_TX[starts_C])
      self._relative.add(relative_CSU.reshape(-1, self._is_relative_U.size))

  def finish(self, where: str) -> normalize.Statistics:
    """The statistics of all episodes.

    Args:
      where: the dataset and its split, for messages.
    Raises:
      ValueError: actions are relative, and no episode is as long as a chunk.
    """
    record = self._record
    action = self._action.quantiles()
    if self._is_relative_U.any():
      if not self._relative.count:
        raise ValueError(
          f'{where}: no episode is as long as one chunk ({record.steps_per_chunk} steps), so the '
          f'relative actions of {record.name!r} have none.'
        )
      action = self._merge(action, self._relative.quantiles())
    return normalize.Statistics(
      state=dataclasses.replace(self._state.quantiles(), norms=_list_norms(record.state)),
      action=dataclasses.replace(action, norms=_list_norms(record.action)),
      steps=self._state.count,
    )

  def _merge(
    self, absolute: normalize.Quantiles, relative: normalize.Quantiles
  ) -> normalize.Quantiles:
    """Those of the relative columns from `relative`, all others from `absolute`."""
    return normalize.Quantiles(
      *(
        np.where(self._is_relative_U, getattr(relative, key), getattr(absolute, key))
        for key in normalize.ARRAYS
      )
    )


class Finding:
  """The statistics of a dataset as `scan` finds and keeps them.

  Attributes:
    episodes: of the dataset.
    statistics: None before they are loaded or saved.
  """

  def __init__(self, episodes: sources.Episodes):
    self.episodes = episodes
    self.statistics: normalize.Statistics | None = None
    self._computation = Computation(episodes.record)
    self._of = {
      'dataset': episodes.fingerprint,
      'split': episodes.split,
      **_describe(episodes.record),
    }

  def load(self) -> bool:
    """Takes the file's, if they are true of this dataset.

    Raises:
      ValueError: the file is of another embodiment, or damaged.
    """
    record = self.episodes.record
    content = beside.read(self.episodes.path, file_name(record))
    if content is None:
      return False
    stored = _parse(content, find(self.episodes))
    if stored.get('embodiment', record.name) != record.name:
      raise ValueError(_is_of_another(find(self.episodes), stored, record))
    # Of an older state of the dataset they are computed again without a word.
    is_current = _reduce(stored.get('of', {})) == _reduce(self._of)
    if is_current and _serves(stored, record):
      self._take(stored)
    return self.statistics is not None

  def add(self, number: int, outline: sources.Outline) -> None:
    """Adds an episode."""
    del number  # Episodes come in order.
    self._computation.add(*outline.numeric())

  def save(self) -> None:
    """Keeps the statistics of the episodes that were added."""
    record = self.episodes.record
    found = self._computation.finish(_show_place(self.episodes))
    stored = {**normalize.to_dict(found), 'embodiment': record.name, 'of': self._of}
    content = json.dumps(stored, indent=1).encode()
    self.episodes.keep(file_name(record), content)
    self._take(stored)

  def _take(self, stored: Mapping[str, Any]) -> None:
    self.statistics = _make(stored, self.episodes.record)
    _warn_constant(self.episodes, self.statistics)


class Glance(Finding):
  """The statistics of a split that are looked at once, and kept nowhere."""

  def load(self) -> bool:
    """Nothing is kept."""
    return False

  def save(self) -> None:
    self.statistics = self._computation.finish(_show_place(self.episodes))


def _show_place(episodes: sources.Episodes) -> str:
  return f'{episodes.path} split {episodes.split!r}'


def _list_norms(slices: tuple[record_lib.Slice, ...]) -> tuple[str, ...]:
  """The norm of each column."""
  return tuple(s.norm for s in slices for _ in range(s.width))


def file_name(record: record_lib.Embodiment) -> str:
  """Name of the statistics file beside a dataset."""
  return f'wam_statistics_{record.name}.json'


def load_or_compute(episodes: sources.Episodes, file: str = '') -> normalize.Statistics:
  """The statistics kept beside a dataset, computed and kept now if absent or no longer true of it.

  Args:
    file: take those in this file instead, as they are.
  Raises:
    ValueError: the file is of another embodiment, or damaged.
  """
  if file:
    return load(file, episodes.record)
  finding = Finding(episodes)
  scan.complete([finding])
  return finding.statistics


def load(file: epath.PathLike, record: record_lib.Embodiment) -> normalize.Statistics:
  """The statistics in a file that `load_or_compute` wrote, for example of the data a checkpoint was
  trained on.

  Raises:
    ValueError: there is no such file, it is damaged, or of another embodiment: of other slices than
      the record's.
  """
  path = epath.Path(file).expanduser()
  if not path.exists():
    raise ValueError(
      f'There is no statistics file {path}; correct the path, or make it: python -m data.statistics'
    )
  stored = _parse(path.read_bytes(), path)
  anywhere = {
    key: value for key, value in stored.get('of', {}).items() if key not in ('dataset', 'split')
  }
  if _reduce(anywhere) != _reduce(_describe(record)):
    raise ValueError(_is_of_another(path, stored, record))
  return _make(stored, record)


def find(episodes: sources.Episodes) -> epath.Path:
  """The file that `load_or_compute` keeps: beside the dataset, or in the cache where that is
  read-only.
  """
  return beside.find(episodes.path, file_name(episodes.record))


def _describe(record: record_lib.Embodiment) -> dict[str, Any]:
  """What a file says that its numbers are of; JSON-ready."""
  slices = {
    part: [dataclasses.asdict(s) for s in getattr(record, part)] for part in ('state', 'action')
  }
  return {'steps_per_chunk': record.steps_per_chunk, **slices}


def _reduce(of: Mapping[str, Any]) -> dict[str, Any]:
  """What the numbers of a file depend on, comparable; slices of an older file lack the fields that
  came later.
  """
  slices = {
    part: [record_lib.slice_from_dict(s) for s in of.get(part, ())] for part in ('state', 'action')
  }
  # A unit is a word, and a norm chooses among numbers that are all in the file.
  plain = {
    part: [dataclasses.replace(s, unit='', rest='', norm='q99') for s in slices[part]]
    for part in slices
  }
  # Only differences to a chunk's first step depend on how long a chunk is.
  steps = of.get('steps_per_chunk') if any(s.relative_to for s in slices['action']) else None
  return {**of, **plain, 'steps_per_chunk': steps}


def _serves(stored: Mapping[str, Any], record: record_lib.Embodiment) -> bool:
  """Whether a file has the numbers that the record's norms need; older ones have quantiles only."""
  return 'mean' in stored['action'] or not {'mean_std', 'min_max'} & {
    *_list_norms(record.state),
    *_list_norms(record.action),
  }


def _make(stored: Mapping[str, Any], record: record_lib.Embodiment) -> normalize.Statistics:
  """The statistics in a file, with the record's norms."""
  found = normalize.from_dict(stored)
  return dataclasses.replace(
    found,
    state=dataclasses.replace(found.state, norms=_list_norms(record.state)),
    action=dataclasses.replace(found.action, norms=_list_norms(record.action)),
  )


def _parse(content: bytes, path: epath.Path) -> dict[str, Any]:
  try:
    stored = json.loads(content)
    normalize.from_dict(stored)
    _reduce(stored.get('of', {}))
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(
      f'{path} is no statistics file ({type(e).__name__}: {e}); delete it and compute it again: '
      'python -m data.statistics'
    ) from e
  return stored


def _is_of_another(
  path: epath.Path, stored: Mapping[str, Any], record: record_lib.Embodiment
) -> str:
  """What to say of a file that is not of the record's slices."""
  found = stored.get('embodiment', 'an unnamed embodiment')
  return (
    f'{path} holds statistics of another embodiment: of {found!r}, {_show(stored.get("of", {}))}; '
    f'{record.name!r} has {_show(_describe(record))}. Delete the file or name another; '
    'python -m data.statistics computes the right one.'
  )


def _show(of: Mapping[str, Any]) -> str:
  """What numbers are of, in words."""
  parts = []
  for part in ('state', 'action'):
    slices = [record_lib.slice_from_dict(s) for s in of.get(part, ())]
    parts.append(f'{part} {", ".join(record_lib.names(slices)) or "nothing"}')
  return f'{", ".join(parts)}, {of.get("steps_per_chunk")} steps a chunk'


def _warn_constant(episodes: sources.Episodes, statistics: normalize.Statistics) -> None:
  """Names the columns that hardly vary."""
  record = episodes.record
  for part in ('state', 'action'):
    names = record_lib.names(getattr(record, part))
    is_flat = getattr(statistics, part).is_flat
    flat = [name for name, is_one in zip(names, is_flat) if is_one]
    if flat:
      _warn_once(
        f'{episodes.path}: {part} dimensions {", ".join(flat)} of {record.name} hardly vary (by '
        f'less than {normalize.RANGE_FLOOR:g}); their range is floored there.'
      )


@functools.cache
def _warn_once(message: str) -> None:
  logging.warning('%s', message)
