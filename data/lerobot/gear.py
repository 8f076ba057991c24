"""GEAR's metadata, which the reference adds under meta/: names for columns, cameras and texts,
their statistics, and the steps and episodes that are left out.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.lerobot import files

# Files under meta/ that are read here.
FILES = (
  *('modality.json', 'stats.json', 'relative_stats_dreamzero.json'),
  *('embodiment.json', 'step_filter.jsonl'),
)
# What stats.json must hold of a feature; it may hold more.
STATISTICS = ('q01', 'q99', 'mean', 'std', 'min', 'max')


@dataclasses.dataclass(frozen=True)
class Part:
  """A GEAR sub-key: columns `start ... stop - 1` of feature `key`."""

  key: str
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Gear:
  """The reference's metadata; empty where a directory has none.

  Attributes:
    state, action: sub-key to columns.
    video, annotation: sub-key to feature.
    tag: the name of the embodiment.
    relative: the action sub-keys that count from the state sub-key of the same name.
    statistics: per part and sub-key, the six lists of the columns; those of relative sub-keys are
      of the differences.
    removed: per episode, the steps that must not begin a sample.
    discarded: the episodes not to be used.
  """

  state: dict[str, Part] = dataclasses.field(default_factory=dict)
  action: dict[str, Part] = dataclasses.field(default_factory=dict)
  video: dict[str, str] = dataclasses.field(default_factory=dict)
  annotation: dict[str, str] = dataclasses.field(default_factory=dict)
  tag: str = ''
  relative: frozenset[str] = frozenset()
  statistics: dict[str, dict[str, dict[str, np.ndarray]]] = dataclasses.field(default_factory=dict)
  removed: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
  discarded: frozenset[int] = frozenset()


def read(path: pathlib.Path, info: dict[str, Any]) -> Gear:
  """What is there of it.

  Raises:
    ValueError: a file is unreadable, or does not fit info.json.
  """

  def read_optional(name: str) -> dict[str, Any]:
    file = path / 'meta' / name
    return files.read_json(file) if file.exists() else {}

  modality = read_optional('modality.json')
  state = _read_parts(path, info, modality.get('state'), 'observation.state')
  action = _read_parts(path, info, modality.get('action'), 'action')
  video = _read_names(path, info, modality.get('video'), 'observation.images.')
  annotation = _read_names(path, info, modality.get('annotation'), 'annotation.')

  relative = read_optional('relative_stats_dreamzero.json')
  unknown = [key for key in relative if key not in state or key not in action]
  if unknown:
    raise ValueError(
      f'{path}/meta/relative_stats_dreamzero.json is about {unknown}; modality.json does not have '
      'them as both state and action.'
    )

  whole = read_optional('stats.json')
  statistics = {
    'state': _cut_all_statistics(path, whole, state),
    'action': _cut_all_statistics(path, whole, action),
  }
  # Those of the differences take the place of those of the values.
  for key, lists in relative.items():
    width = action[key].stop - action[key].start
    statistics['action'][key] = _cut_statistics(path, lists, Part(key, 0, width))

  return Gear(
    state=state,
    action=action,
    video=video,
    annotation=annotation,
    tag=read_optional('embodiment.json').get('embodiment_tag', ''),
    relative=frozenset(relative),
    statistics=statistics,
    removed=_read_removed(path),
    discarded=frozenset(info.get('discarded_episode_indices') or ()),
  )


def _read_removed(path: pathlib.Path) -> dict[int, np.ndarray]:
  """Per episode, the steps that step_filter.jsonl removes; it is optional."""
  file = path / 'meta/step_filter.jsonl'
  if not file.exists():
    return {}
  return {
    row['episode_index']: np.asarray(row['step_indices'], np.int64)
    for row in files.read_lines(file, 'episode_index', 'step_indices')
  }


def _read_parts(
  path: pathlib.Path, info: dict[str, Any], entries: Mapping[str, Any] | None, default: str
) -> dict[str, Part]:
  """The slices of a section of modality.json; `default` is the feature of those that name none."""
  parts = {
    key: Part(entry.get('original_key') or default, entry['start'], entry['end'])
    for key, entry in (entries or {}).items()
  }
  wrong = [
    f'{key!r}: columns {p.start} to {p.stop} of {p.key!r}'
    for key, p in parts.items()
    if not 0 <= p.start < p.stop <= width(info['features'].get(p.key, {'shape': [0]}))
  ]
  if wrong:
    raise ValueError(
      f'{path}/meta/modality.json asks for columns that info.json does not have: '
      f'{", ".join(wrong[:10])}.'
    )
  return parts


def _read_names(
  path: pathlib.Path, info: dict[str, Any], entries: Mapping[str, Any] | None, prefix: str
) -> dict[str, str]:
  """The features of a section of modality.json; one that is not named has the `prefix`."""
  names = {key: entry.get('original_key') or prefix + key for key, entry in (entries or {}).items()}
  unknown = [name for name in names.values() if name not in info['features']]
  if unknown:
    raise ValueError(
      f'{path}/meta/modality.json asks for features that info.json does not have: {unknown[:10]}.'
    )
  return names


def _cut_all_statistics(
  path: pathlib.Path, whole: Mapping[str, Any], parts: Mapping[str, Part]
) -> dict[str, dict[str, np.ndarray]]:
  """Those of every part that has them."""
  found = {key: _cut_statistics(path, whole.get(part.key), part) for key, part in parts.items()}
  return {key: arrays for key, arrays in found.items() if arrays}


def _cut_statistics(
  path: pathlib.Path, lists: Mapping[str, Any] | None, part: Part
) -> dict[str, np.ndarray]:
  """The six lists for the columns of `part`; empty if not all of them are there."""
  if not lists or not all(name in lists for name in STATISTICS):
    return {}
  arrays = {name: np.atleast_1d(np.asarray(lists[name], np.float32)) for name in STATISTICS}
  short = [name for name, array in arrays.items() if array.shape[0] < part.stop]
  if short:
    raise ValueError(
      f'{path}/meta has statistics {short} of {part.key!r} with fewer than {part.stop} columns.'
    )
  return {name: array[part.start : part.stop] for name, array in arrays.items()}


def width(feature: Mapping[str, Any]) -> int:
  """The count of numbers in a feature."""
  return int(np.prod(feature['shape'], dtype=int))
