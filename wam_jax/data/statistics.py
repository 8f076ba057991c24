"""Quantiles, moments and bounds of a dataset's states and actions, computed once and kept beside
it.

Never decodes an image. What counts is what is trained on: the actions that a chunk can hold and the
states that such a chunk goes through, of the episodes and steps that are chosen. The last action of
an RLDS episode, which was never executed and is often zero, is in no chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from wam_jax import pointers
from wam_jax.data import angles
from wam_jax.data import beside
from wam_jax.data import choice as choice_lib
from wam_jax.data import episode as episode_lib
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import scan
from wam_jax.data import sketch
from wam_jax.data import sources

# What a file may be of, in words.
_WORDS = {
  'dataset': 'state of the dataset or its exclusions',
  'split': 'split',
  'choice': 'choice of steps (ranges, failures, skip_unlabeled)',
  'language': 'choice of instructions',
  'rows': 'version, which counted other steps',
  'plain': 'norm of seldom motion (q99_reference)',
  'steps_per_chunk': 'length of a chunk',
  'action_overlap': 'overlap of chunks',
  'state': 'state',
  'action': 'action',
}


class Counted(NamedTuple):
  """The actions of one episode that statistics are of.

  Attributes:
    action_KU, step_K: as they are stored, and their steps.
    relative_RU, step_R: those counted from the state at their chunk's start, a step once for each
      chunk that it is in, and their steps; none of a robot without.
  """

  action_KU: np.ndarray
  step_K: np.ndarray
  relative_RU: np.ndarray
  step_R: np.ndarray


class Computation:
  """Statistics over the chunks of episodes that are added one by one.

  A step that several chunks share counts once. Relative actions pool the differences to the state
  of step i over all i where a chunk starts and all steps of that chunk, as the reference does (spec
  5.1), and of its overlap with the next one.

  Attributes:
    seams: of the state and the action, jumps of a whole turn.
    action, relative: sketches of the actions as they are stored, and of their differences.
    seldom: names of the dimensions that seldom but fully move, as `finish` found them.
  """

  def __init__(self, record: record_lib.Embodiment, overlap: int = 0):
    """`overlap` is that of the model's chunks, `ModelConfig.action_overlap`."""
    self.seams = {part: angles.Seams(getattr(record, part)) for part in ('state', 'action')}
    self.seldom: list[str] = []
    self._record = record
    self._is_relative_U = np.asarray(record.reference_columns, np.int64) >= 0
    self._state = sketch.QuantileSketch()
    self.action = sketch.QuantileSketch()
    self._horizon = record.steps_per_chunk + overlap
    self.relative = sketch.QuantileSketch(repeats=self._horizon)

  def add(
    self, state_TX: np.ndarray, action_TU: np.ndarray, starts_C: np.ndarray, number: int = 0
  ) -> None:
    """Adds an episode, in raw units.

    Args:
      starts_C: every step where a chunk that counts starts, in order.
      number: of the episode, for messages.
    """
    state_TX = record_lib.convert(self._record.state, state_TX)
    action_TU = record_lib.convert(self._record.action, action_TU)
    self.add_converted(state_TX, action_TU, starts_C, number)

  def add_converted(
    self, state_TX: np.ndarray, action_TU: np.ndarray, starts_C: np.ndarray, number: int = 0
  ) -> Counted:
    """As `add`, in the units of the record's slices; the actions that were added."""
    if not len(starts_C):
      nothing = np.zeros(0, np.int64)
      return Counted(action_TU[:0], nothing, action_TU[:0], nothing)
    S = self._record.steps_per_chunk
    is_acted_T = find_covered(starts_C, len(action_TU), S)
    # The last frame of a chunk shows the state after its actions.
    is_seen_T = find_covered(starts_C, len(state_TX), S + 1)
    self._state.add(state_TX[is_seen_T])
    self.action.add(action_TU[is_acted_T])
    for part, rows, is_one_T in (
      ('state', state_TX, is_seen_T),
      ('action', action_TU, is_acted_T),
    ):
      for start, stop in choice_lib.list_runs(is_one_T):
        self.seams[part].add(rows[start:stop], number, start)
    relative_RU, step_R = self._subtract(state_TX, action_TU, starts_C, is_acted_T)
    self.relative.add(relative_RU)
    return Counted(action_TU[is_acted_T], np.flatnonzero(is_acted_T), relative_RU, step_R)

  def _subtract(
    self,
    state_TX: np.ndarray,
    action_TU: np.ndarray,
    starts_C: np.ndarray,
    is_acted_T: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """`relative_RU` and `step_R` of `Counted`."""
    if not self._is_relative_U.any():
      return action_TU[:0], np.zeros(0, np.int64)
    steps_CS = starts_C[:, None] + np.arange(self._horizon)
    # An overlap may go on beyond the last chunk that counts.
    is_real_CS = np.append(is_acted_T, False)[np.minimum(steps_CS, len(action_TU))]
    action_CSU = action_TU[np.minimum(steps_CS, len(action_TU) - 1)]
    relative_CSU = normalize.subtract_reference(self._record, action_CSU, state_TX[starts_C])
    return relative_CSU[is_real_CS], steps_CS[is_real_CS]

  def list_unsafe(self, where: Callable[[int], str]) -> list[str]:
    """What no difference may be learnt of, a sentence each, see `angles.list_unsafe`."""
    return list(angles.list_unsafe(self._record, **self.seams, where=where))

  @property
  def steps(self) -> int:
    """Control steps that were seen."""
    return self._state.count

  def finish(self, where: str) -> normalize.Statistics:
    """The statistics of all episodes.

    Args:
      where: the dataset and its split, for messages.
    Raises:
      ValueError: no chunk counts in any episode.
    """
    record = self._record
    if not self._state.count:
      raise ValueError(
        f'{where}: none of its language spans that count is longer than one chunk of '
        f'{record.steps_per_chunk} steps, so there are no statistics; shorten chunk_s of '
        f'{record.name!r} or use longer episodes.'
      )
    plain_X, plain_U = list_plain(record)
    state = self._state.quantiles(plain_X)
    action = self.action.quantiles(plain_U)
    seldom_U = self.action.seldom_N
    if self._is_relative_U.any():
      action = self._merge(action, self.relative.quantiles(plain_U))
      seldom_U = np.where(self._is_relative_U, self.relative.seldom_N, seldom_U)
    names = [f'state {name}' for name in record_lib.names(record.state)]
    names += [f'action {name}' for name in record_lib.names(record.action)]
    is_seldom = [*self._state.seldom_N, *seldom_U]
    self.seldom = [name for name, is_one in zip(names, is_seldom) if is_one]
    return normalize.Statistics(
      state=dataclasses.replace(state, norms=_list_norms(record.state)),
      action=dataclasses.replace(action, norms=_list_norms(record.action)),
      steps=self._state.count,
      rows=normalize.OF_CHUNKS,
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


def find_covered(starts_C: np.ndarray, length: int, steps: int) -> np.ndarray:
  """[length] bool, the steps that are among the first `steps` after one of these starts."""
  counts_T = np.zeros(length + 1, np.int64)
  np.add.at(counts_T, starts_C, 1)
  np.add.at(counts_T, np.minimum(starts_C + steps, length), -1)
  return counts_T.cumsum()[:length] > 0


class Finding:
  """The statistics of a dataset as `scan` finds and keeps them.

  Attributes:
    episodes: of the dataset.
    statistics: None before they are loaded or saved.
    stale: in what the file's are of something else, in words; after `load`.
  """

  def __init__(self, episodes: sources.Episodes, overlap: int = 0):
    """`overlap` as of `Computation`."""
    self.episodes = episodes
    self.statistics: normalize.Statistics | None = None
    self.stale: list[str] = []
    self._file = file_name(episodes, overlap)
    self._computation = Computation(episodes.record, overlap)
    self._of = {
      'dataset': episodes.fingerprint,
      'split': episodes.split,
      'left_out': episodes.list_left_out(),
      'choice': episodes.choice.description,
      'language': list(episodes.record.language),
      'rows': normalize.OF_CHUNKS,
      'plain': [plain_N.tolist() for plain_N in list_plain(episodes.record)],
      **_describe(episodes.record, overlap),
    }

  @functools.cached_property
  def _selection(self) -> choice_lib.Selection:
    """Made where episodes are looked at: ranges may be tens of megabytes."""
    return choice_lib.Selection(
      self.episodes.record, self.episodes.choice, _show_place(self.episodes)
    )

  @property
  def file(self) -> epath.Path:
    """Where they are kept: beside the dataset, or in the cache where that is read-only."""
    return beside.find(self.episodes.path, self._file)

  def load(self) -> bool:
    """Takes the file's, if they are true of this dataset.

    Raises:
      ValueError: the file is of another embodiment, or damaged.
    """
    record = self.episodes.record
    content = beside.read(self.episodes.path, self._file)
    if content is None:
      earlier = f'wam_statistics_{record.name}.json'
      if beside.read(self.episodes.path, earlier) is not None:
        _warn_once(
          f'{self.episodes.path / earlier} is of an earlier version, which counted steps that are '
          'not trained on, too, and told no splits apart; statistics are computed again.'
        )
      return False
    stored = _parse(content, self.file)
    if stored.get('embodiment', record.name) != record.name:
      raise ValueError(_is_of_another(self.file, stored, record))
    self.stale = self._list_stale(stored.get('of', {}))
    if self.stale:
      _warn_once(
        f'{self.file} is of another {", ".join(self.stale)}; statistics are computed again.'
      )
    elif _serves(stored, record):
      self._take(stored)
    return self.statistics is not None

  def _list_stale(self, of: Mapping[str, Any]) -> list[str]:
    """In what the file's numbers are of something else, in words."""
    stored, wanted = _reduce(of), _reduce(self._of)
    # Which chunks there are depends on how long one is, whatever the slices.
    stored['steps_per_chunk'], wanted['steps_per_chunk'] = (
      each.get('steps_per_chunk') for each in (of, self._of)
    )
    return [_WORDS[key] for key in wanted if stored.get(key) != wanted[key]]

  def add(self, number: int, outline: episode_lib.Outline) -> None:
    """Adds an episode; one of which nothing counts is not even parsed."""
    starts_C, _ = scan.find_starts(self._selection, number, outline)
    if len(starts_C):
      self._computation.add(*outline.numeric(), starts_C, number)

  def save(self) -> None:
    """Keeps the statistics of the episodes that were added.

    Raises:
      ValueError: nothing counts, or differences would be taken across the seam of an angle.
    """
    record = self.episodes.record
    if unsafe := self._computation.list_unsafe(self.episodes.where):
      raise ValueError(
        f'{_show_place(self.episodes)}: differences of {record.name!r} would be a whole turn off: '
        f'{"; ".join(unsafe[:10])}.'
      )
    found = self._computation.finish(_show_place(self.episodes))
    stored = {
      **normalize.to_dict(found),
      'embodiment': record.name,
      'of': self._of,
      'seldom': self._computation.seldom,
    }
    content = json.dumps(stored, indent=1).encode()
    self.episodes.keep(self._file, content)
    self._take(stored)

  def _take(self, stored: Mapping[str, Any]) -> None:
    self.statistics = _make(stored, self.episodes.record)
    _warn_constant(self.episodes, self.statistics)
    if seldom := stored.get('seldom'):
      _warn_once(
        f'{self.episodes.path}: {", ".join(seldom)} of {self.episodes.record.name} seldom move, '
        'and then far: q01 and q99 are how far they go, not their quantiles.'
      )


class Glance(Finding):
  """The statistics of a split that are looked at once, and kept nowhere."""

  def load(self) -> bool:
    """Nothing is kept."""
    return False

  def save(self) -> None:
    self.statistics = self._computation.finish(_show_place(self.episodes))


def _show_place(episodes: sources.Episodes) -> str:
  return f'{episodes.path} split {episodes.split!r}'


def list_plain(record: record_lib.Embodiment) -> tuple[np.ndarray, np.ndarray]:
  """Of each dimension of the state [X] and the action [U], whether its quantiles are the
  reference's, which knows no seldom motion.
  """
  state, action = (
    np.asarray([norm == 'q99_reference' for norm in _list_norms(slices)], bool)
    for slices in (record.state, record.action)
  )
  return state, action


def _list_norms(slices: tuple[record_lib.Slice, ...]) -> tuple[str, ...]:
  """The norm of each column."""
  return tuple(s.norm for s in slices for _ in range(s.width))


def file_name(episodes: sources.Episodes, overlap: int = 0) -> str:
  """Name of the statistics file beside a dataset: that of each split and choice is its own, and
  where an overlap of chunks counts, of each overlap.
  """
  said = {key: value for key, value in episodes.choice.description.items() if value}
  said |= _describe_overlap(episodes.record, overlap)
  return scan.name_file('wam_statistics', episodes, json.dumps(said) if said else '') + '.json'


def load_or_compute(
  episodes: sources.Episodes, file: str = '', overlap: int = 0
) -> normalize.Statistics:
  """The statistics kept beside a dataset, computed and kept now if absent or no longer true of it.

  Args:
    file: take those in this file instead, as they are.
    overlap: as of `Computation`.
  Raises:
    ValueError: the file is of another embodiment, or damaged.
  """
  if file:
    return load(file, episodes.record, overlap)
  finding = Finding(episodes, overlap)
  scan.complete([finding])
  return finding.statistics


def load(
  file: epath.PathLike, record: record_lib.Embodiment, overlap: int = 0
) -> normalize.Statistics:
  """The statistics in a file that `load_or_compute` wrote, for example of the data a checkpoint was
  trained on.

  Args:
    overlap: as of `Computation`.
  Raises:
    ValueError: there is no such file, it is damaged, or of another embodiment: of other slices than
      the record's, or of chunks that reach less far.
  """
  path = epath.Path(file).expanduser()
  if not path.exists():
    raise ValueError(
      f'There is no statistics file {path}; correct the path, or make it: python -m data.statistics'
    )
  pointers.check(path)
  stored = _parse(path.read_bytes(), path)
  wanted = _describe(record)
  anywhere = {key: stored.get('of', {}).get(key) for key in wanted}
  if _reduce(anywhere) != _reduce(wanted):
    raise ValueError(_is_of_another(path, stored, record))
  _check_overlap(path, stored.get('of', {}), record, overlap)
  return _make(stored, record)


def describe_file(file: epath.PathLike) -> str:
  """What the numbers of a file are of, in words."""
  path = epath.Path(file).expanduser()
  of = _parse(path.read_bytes(), path).get('of', {})
  chosen = [f'{key} {value}' for key, value in of.get('choice', {}).items() if value]
  left_out = [f'{count} {reason}' for reason, count in of.get('left_out', {}).items()]
  parts = [f'split {of.get("split")!r} of the dataset with fingerprint {of.get("dataset")}']
  parts += [f'without {", ".join(left_out)}'] if left_out else []
  return ', '.join([*parts, *chosen])


def find(episodes: sources.Episodes, overlap: int = 0) -> epath.Path:
  """The file that `load_or_compute` keeps: beside the dataset, or in the cache where that is
  read-only.
  """
  return beside.find(episodes.path, file_name(episodes, overlap))


def _describe(record: record_lib.Embodiment, overlap: int = 0) -> dict[str, Any]:
  """What a file says that its numbers are of; JSON-ready."""
  slices = {
    part: [dataclasses.asdict(s) for s in getattr(record, part)] for part in ('state', 'action')
  }
  of_chunks = {'steps_per_chunk': record.steps_per_chunk, **_describe_overlap(record, overlap)}
  return {**of_chunks, **slices}


def _describe_overlap(record: record_lib.Embodiment, overlap: int) -> dict[str, int]:
  """The overlap where numbers depend on it: those of differences to a chunk's first step."""
  counts = overlap and any(s.relative_to for s in record.action)
  return {'action_overlap': overlap} if counts else {}


def _check_overlap(
  path: epath.Path, of: Mapping[str, Any], record: record_lib.Embodiment, overlap: int
) -> None:
  """Raises ValueError where actions go on further from their chunk's start than those of a file."""
  wanted = _describe_overlap(record, overlap).get('action_overlap', 0)
  if wanted > of.get('action_overlap', 0):
    raise ValueError(
      f'{path} has differences over {of.get("steps_per_chunk")} steps and an overlap of '
      f'{of.get("action_overlap", 0)}; with model.action_overlap={overlap} they go further, and '
      'would be cut. Take the statistics of the data, or a file that python -m data.statistics '
      f'writes with --action_overlap={overlap}.'
    )


def _reduce(of: Mapping[str, Any]) -> dict[str, Any]:
  """What the numbers of a file depend on, comparable; slices of an older file lack the fields that
  came later.
  """
  slices = {
    part: [record_lib.slice_from_dict(s) for s in of.get(part) or ()]
    for part in ('state', 'action')
  }
  # A unit is a word, and a norm chooses among numbers that are all in the file.
  plain = {
    part: [dataclasses.replace(s, unit='', rest='', norm='q99') for s in slices[part]]
    for part in slices
  }
  # Only differences to a chunk's first step depend on how long a chunk is.
  steps = of.get('steps_per_chunk') if any(s.relative_to for s in slices['action']) else None
  # What is left out is counted for people; the fingerprint of the dataset knows it.
  said = {key: value for key, value in of.items() if key != 'left_out'}
  return {**said, **plain, 'steps_per_chunk': steps}


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
