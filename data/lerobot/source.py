"""Reads the metadata of LeRobot directories of versions 2.0, 2.1 and 3.0: which episodes there are,
where their rows and videos lie.

Version 2 keeps one parquet and one MP4 file per episode. Version 3 packs many episodes into each
file; meta/episodes says in which one each lies, and when its video begins there, which places.py
holds against counts. Where metadata contradict each other or have holes, `Source.notes` says so.
Source: LeRobot's `LeRobotDatasetMetadata`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data.lerobot import choice
from data.lerobot import files
from data.lerobot import gear as gear_lib

VERSIONS = ('v2.0', 'v2.1', 'v3.0')
INDICES = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')
PLACE = ('chunk_index', 'file_index')  # Where a file of version 3 lies; it holds many episodes.


@dataclasses.dataclass(frozen=True)
class Clip:
  """The video of one camera in one episode.

  Attributes:
    path: the file.
    span_s: when the episode begins and ends there, as meta/episodes says; None where nothing else
      is in the file.
  """

  path: pathlib.Path
  span_s: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Episode:
  """Where an episode lies.

  Attributes:
    number: the episode_index.
    length: the number of rows.
    rows: the parquet file.
    clips: by feature, the video of every camera; none of one that meta/episodes has no place of.
  """

  number: int
  length: int
  rows: pathlib.Path
  clips: dict[str, Clip]


@dataclasses.dataclass(frozen=True)
class Source:
  """A LeRobot directory.

  Attributes:
    path: the directory itself.
    version: the codebase_version, such as 'v2.1'.
    robot: the robot_type, perhaps ''.
    fps: rows, and frames of every camera, per second.
    features: the features as in info.json.
    tasks: task_index to text.
    episodes: all that have rows, by number, in order.
    splits: name to episode numbers.
    gear: the reference's metadata.
    notes: what metadata say differently, and which side counts.
  """

  path: pathlib.Path
  version: str
  robot: str
  fps: float
  features: dict[str, dict[str, Any]]
  tasks: dict[int, str]
  episodes: dict[int, Episode]
  splits: dict[str, tuple[int, ...]]
  gear: gear_lib.Gear
  notes: tuple[str, ...] = ()


def load(path: pathlib.Path) -> Source:
  """Reads everything under meta/.

  Raises:
    ValueError: not a LeRobot directory, of another version, or metadata that is missing or
      unreadable. Names the file.
  """
  file = path / 'meta/info.json'
  if not file.exists():
    raise ValueError(f'{path} has no meta/info.json; give the directory of a LeRobot dataset.')
  info = files.read_json(file)
  if info.get('codebase_version') not in VERSIONS:
    raise ValueError(
      f'{file} says codebase_version={info.get("codebase_version")!r}; supported are '
      f"{', '.join(VERSIONS)}. Convert the dataset with LeRobot's own tools first."
    )
  missing = [key for key in ('fps', 'features', 'data_path') if not info.get(key)]
  missing += [f'feature {key!r}' for key in INDICES if key not in info.get('features', {})]
  missing += [
    f'{part} of feature {key!r}'
    for key, feature in info.get('features', {}).items()
    for part in ('dtype', 'shape')
    if part not in feature
  ]
  if missing:
    raise ValueError(f'{file} has no {", ".join(missing[:10])}.')
  fps = info['fps']
  if not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
    raise ValueError(f'{file} says fps={fps!r}; expected rows a second, a number above 0.')

  is_old = info['codebase_version'] != 'v3.0'
  listed = _old_episodes(path, info) if is_old else _packed_episodes(path, info)
  notes: list[str] = []
  episodes = _in_order(path, listed, notes)
  return Source(
    path=path,
    version=info['codebase_version'],
    robot=info.get('robot_type') or '',
    fps=float(info['fps']),
    features=info['features'],
    tasks=_old_tasks(path) if is_old else _packed_tasks(path),
    episodes=episodes,
    splits=_read_splits(file, info, sorted(episode.number for episode in listed), episodes, notes),
    gear=gear_lib.read(path, info),
    notes=tuple(notes),
  )


def videos(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The features that are video files."""
  return [key for key, feature in features.items() if feature['dtype'] == 'video']


def _old_episodes(path: pathlib.Path, info: dict[str, Any]) -> list[Episode]:
  episodes = []
  for row in files.read_lines(path / 'meta/episodes.jsonl', 'episode_index', 'length'):
    number = row['episode_index']
    place = dict(episode_chunk=number // info.get('chunks_size', 1000), episode_index=number)
    clips = {
      key: Clip(path / _fill(info, 'video_path', video_key=key, **place))
      for key in videos(info['features'])
    }
    rows = path / _fill(info, 'data_path', **place)
    episodes.append(Episode(number, row['length'], rows, clips))
  return episodes


def _packed_episodes(path: pathlib.Path, info: dict[str, Any]) -> list[Episode]:
  folder = path / 'meta/episodes'
  keys = videos(info['features'])
  clip_columns = (*PLACE, 'from_timestamp', 'to_timestamp')
  columns = [
    'episode_index',
    'length',
    *(f'data/{name}' for name in PLACE),
    *(f'videos/{key}/{name}' for key in keys for name in clip_columns),
  ]
  found = sorted(folder.glob('**/*.parquet'))
  if not found:
    raise ValueError(f'{folder} holds no parquet file. Restore the directory.')

  episodes = []
  for file in found:
    for row in files.read_parquet(file, columns).to_pylist():
      place = _read_place(row, 'data')
      if place is None:
        raise ValueError(
          f'{file} does not say in which file the rows of episode {row["episode_index"]} lie.'
        )
      clips = {key: _packed_clip(path, info, row, key) for key in keys}
      episode = Episode(
        number=row['episode_index'],
        length=row['length'],
        rows=path / _fill(info, 'data_path', **place),
        clips={key: clip for key, clip in clips.items() if clip is not None},
      )
      episodes.append(episode)
  return episodes


def _packed_clip(
  path: pathlib.Path, info: dict[str, Any], row: Mapping[str, Any], key: str
) -> Clip | None:
  place = _read_place(row, f'videos/{key}')
  begin, end = (row[f'videos/{key}/{name}'] for name in ('from_timestamp', 'to_timestamp'))
  if place is None or not _is_number(begin) or not _is_number(end):
    return None
  return Clip(path / _fill(info, 'video_path', video_key=key, **place), (begin, end))


def _read_place(row: Mapping[str, Any], prefix: str) -> dict[str, int] | None:
  """Chunk and file of a row of meta/episodes; None where they are empty, or NaN, as of pandas."""
  values = {name: row[f'{prefix}/{name}'] for name in PLACE}
  if not all(map(_is_number, values.values())):
    return None
  return {name: int(value) for name, value in values.items()}


def _is_number(value: Any) -> bool:
  return value is not None and math.isfinite(value)


def _fill(info: dict[str, Any], key: str, **place: Any) -> str:
  try:
    return info[key].format(**place)
  except (KeyError, AttributeError, IndexError, ValueError) as error:
    raise ValueError(
      f'meta/info.json says {key}={info.get(key)!r}; expected a path with {sorted(place)}.'
    ) from error


def _in_order(
  path: pathlib.Path, listed: Sequence[Episode], notes: list[str]
) -> dict[int, Episode]:
  """Those that have rows, by number."""
  numbers = sorted(episode.number for episode in listed)
  twice = sorted({a for a, b in itertools.pairwise(numbers) if a == b})
  if twice or not numbers:
    raise ValueError(
      f'The metadata of {path} list the episodes {twice[:10]} twice. Restore them.'
      if twice
      else f'The metadata of {path} list no episode. Restore them.'
    )
  gaps = sorted(set(range(numbers[-1])) - set(numbers))
  if gaps:
    notes.append(f'the numbers {choice.write(gaps)} are of no episode: they were deleted')
  empty = [episode.number for episode in listed if episode.length < 1]
  if empty:
    notes.append(f'{len(empty)} episodes have no rows and are left out: {choice.write(empty)}')
  return {
    episode.number: episode
    for episode in sorted(listed, key=lambda episode: episode.number)
    if episode.length > 0
  }


def _old_tasks(path: pathlib.Path) -> dict[int, str]:
  rows = files.read_lines(path / 'meta/tasks.jsonl', 'task_index', 'task')
  return {row['task_index']: row['task'] for row in rows}


def _packed_tasks(path: pathlib.Path) -> dict[int, str]:
  file = path / 'meta/tasks.parquet'
  table = files.read_parquet(file)
  # The text is the index of a pandas table; it may be called `task`, or have no name.
  texts = [name for name in table.column_names if name != 'task_index']
  if 'task_index' not in table.column_names or not texts:
    raise ValueError(
      f'{file} has the columns {table.column_names}; expected task_index and the text.'
    )
  text = 'task' if 'task' in texts else texts[0]
  return dict(zip(table['task_index'].to_pylist(), table[text].to_pylist()))


def _read_splits(
  file: pathlib.Path,
  info: dict[str, Any],
  listed: Sequence[int],
  episodes: Mapping[int, Episode],
  notes: list[str],
) -> dict[str, tuple[int, ...]]:
  """The episodes of each split: places in the list of numbers or, where numbers have gaps and the
  splits end with them, numbers.
  """
  said = info.get('splits') or {'train': f'0:{len(listed)}'}
  ranges = {name: _parse_range(file, name, text) for name, text in said.items()}
  stop = max(one.stop for one in ranges.values())
  if stop not in (len(listed), listed[-1] + 1):
    notes.append(
      f'{file} has splits {said}, but the metadata list {len(listed)} episodes, which count'
    )
    if len(ranges) == 1:  # Where there is one, it is of all.
      ranges = {name: range(listed[-1] + 1) for name in ranges}
  counted = dict(enumerate(listed)) if stop == len(listed) else {n: n for n in listed}

  splits = {}
  for name, one in ranges.items():
    chosen = tuple(counted[i] for i in sorted(counted) if i in one and counted[i] in episodes)
    if chosen:
      splits[name] = chosen
    else:
      notes.append(f'split {name!r} ({said[name]!r}) holds no episode and is left out')
  if not splits:
    raise ValueError(f'{file} has splits {said}, none of which holds an episode.')
  lost = sorted(set(episodes).difference(*splits.values()))
  if lost:
    notes.append(f'{len(lost)} episodes are in no split and are left out: {choice.write(lost)}')
  return splits


def _parse_range(file: pathlib.Path, name: str, text: Any) -> range:
  start, _, stop = str(text).partition(':')
  if not (start.isdigit() and stop.isdigit()):
    raise ValueError(f'{file} says that split {name!r} is {text!r}; expected START:STOP.')
  return range(int(start), int(stop))
