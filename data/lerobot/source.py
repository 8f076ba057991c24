"""Reads LeRobot directories of versions 2.0, 2.1 and 3.0: which episodes there are, their rows,
where their video lies.

Version 2 keeps one parquet and one MP4 file per episode. Version 3 packs many episodes into each
file, and meta/episodes says in which one each lies and when its video begins there. The GEAR
metadata that the reference adds under meta/ is read where present. Decodes no video.
Source: LeRobot's `LeRobotDatasetMetadata`; spec 5.1.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

VERSIONS = ('v2.0', 'v2.1', 'v3.0')
INDICES = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')
PLACE = ('chunk_index', 'file_index')  # Where a file of version 3 lies; it holds many episodes.
# What stats.json must hold of a feature; it may hold more.
STATISTICS = ('q01', 'q99', 'mean', 'std', 'min', 'max')


@dataclasses.dataclass(frozen=True)
class Clip:
  """The video of one camera in one episode: the file, when it begins there, and whether nothing
  else is in the file.
  """

  path: pathlib.Path
  start_s: float
  whole: bool


@dataclasses.dataclass(frozen=True)
class Episode:
  """Where an episode lies.

  Attributes:
    number: the episode_index.
    length: the number of rows.
    rows: the parquet file.
    clips: by feature, the video of every camera.
  """

  number: int
  length: int
  rows: pathlib.Path
  clips: dict[str, Clip]


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
    episodes: all of them, in order.
    splits: name to episode numbers.
    gear: the reference's metadata.
  """

  path: pathlib.Path
  version: str
  robot: str
  fps: float
  features: dict[str, dict[str, Any]]
  tasks: dict[int, str]
  episodes: tuple[Episode, ...]
  splits: dict[str, range]
  gear: Gear


def load(path: pathlib.Path) -> Source:
  """Reads everything under meta/.

  Raises:
    ValueError: not a LeRobot directory, of another version, or metadata that is missing, unreadable
      or contradicts itself. Names the file.
  """
  file = path / 'meta/info.json'
  if not file.exists():
    raise ValueError(f'{path} has no meta/info.json; give the directory of a LeRobot dataset.')
  info = _read_json(file)
  if info.get('codebase_version') not in VERSIONS:
    raise ValueError(
      f'{file} says codebase_version={info.get("codebase_version")!r}; supported are '
      f"{', '.join(VERSIONS)}. Convert the dataset with LeRobot's own tools first."
    )
  missing = [key for key in ('fps', 'features', 'data_path') if not info.get(key)]
  missing += [f'feature {key!r}' for key in INDICES if key not in info.get('features', {})]
  if missing:
    raise ValueError(f'{file} has no {", ".join(missing)}.')

  is_old = info['codebase_version'] != 'v3.0'
  episodes = _old_episodes(path, info) if is_old else _packed_episodes(path, info)
  return Source(
    path=path,
    version=info['codebase_version'],
    robot=info.get('robot_type') or '',
    fps=float(info['fps']),
    features=info['features'],
    tasks=_old_tasks(path) if is_old else _packed_tasks(path),
    episodes=episodes,
    splits=_read_splits(file, info, len(episodes)),
    gear=_read_gear(path, info),
  )


def videos(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The features that are video files."""
  return [key for key, feature in features.items() if feature['dtype'] == 'video']


def _old_episodes(path: pathlib.Path, info: dict[str, Any]) -> tuple[Episode, ...]:
  file = path / 'meta/episodes.jsonl'
  episodes = []
  for row in _read_lines(file, 'episode_index', 'length'):
    number = row['episode_index']
    place = dict(episode_chunk=number // info.get('chunks_size', 1000), episode_index=number)
    clips = {
      key: Clip(
        path=path / _fill(info, 'video_path', video_key=key, **place), start_s=0.0, whole=True
      )
      for key in videos(info['features'])
    }
    rows = path / _fill(info, 'data_path', **place)
    episodes.append(Episode(number, row['length'], rows, clips))
  return _in_order(file, episodes)


def _packed_episodes(path: pathlib.Path, info: dict[str, Any]) -> tuple[Episode, ...]:
  folder = path / 'meta/episodes'
  keys = videos(info['features'])
  clip_columns = (*PLACE, 'from_timestamp', 'to_timestamp')
  columns = [
    'episode_index',
    'length',
    *(f'data/{name}' for name in PLACE),
    *(f'videos/{key}/{name}' for key in keys for name in clip_columns),
  ]
  files = sorted(folder.glob('**/*.parquet'))
  if not files:
    raise ValueError(f'{folder} holds no parquet file. Restore the directory.')

  episodes = []
  for file in files:
    for row in _read_parquet(file, columns).to_pylist():
      place = {name: row[f'data/{name}'] for name in PLACE}
      episode = Episode(
        number=row['episode_index'],
        length=row['length'],
        rows=path / _fill(info, 'data_path', **place),
        clips={key: _packed_clip(path, info, row, key) for key in keys},
      )
      episodes.append(episode)
  return _in_order(folder, episodes)


def _packed_clip(
  path: pathlib.Path, info: dict[str, Any], row: Mapping[str, Any], key: str
) -> Clip:
  prefix = f'videos/{key}/'
  mine = {
    name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)
  }
  seconds = mine['to_timestamp'] - mine['from_timestamp']
  # Half a frame: the times are rounded, and a frame more or less is another episode's.
  frames = seconds * info['fps']
  if abs(frames - row['length']) > 0.5:
    raise ValueError(
      f'{path}/meta/episodes says that episode {row["episode_index"]} has {row["length"]} rows, '
      f'but {seconds:.4f} s of {key}; at {info["fps"]:g} frames a second that is {frames:.1f} '
      'frames.'
    )
  place = {name: mine[name] for name in PLACE}
  file = _fill(info, 'video_path', video_key=key, **place)
  return Clip(path=path / file, start_s=mine['from_timestamp'], whole=False)


def _fill(info: dict[str, Any], key: str, **place: Any) -> str:
  try:
    return info[key].format(**place)
  except (KeyError, AttributeError, IndexError, ValueError) as error:
    raise ValueError(
      f'meta/info.json says {key}={info.get(key)!r}; expected a path with {sorted(place)}.'
    ) from error


def _in_order(where: pathlib.Path, episodes: Sequence[Episode]) -> tuple[Episode, ...]:
  episodes = sorted(episodes, key=lambda episode: episode.number)
  numbers = [episode.number for episode in episodes]
  if not numbers or numbers != list(range(len(numbers))):
    raise ValueError(
      f'{where} lists {len(numbers)} episodes, which are not 0, 1, 2, ... each once.'
    )
  empty = [episode.number for episode in episodes if episode.length < 1]
  if empty:
    raise ValueError(f'{where} says that episodes {empty[:10]} have no rows.')
  return tuple(episodes)


def _old_tasks(path: pathlib.Path) -> dict[int, str]:
  rows = _read_lines(path / 'meta/tasks.jsonl', 'task_index', 'task')
  return {row['task_index']: row['task'] for row in rows}


def _packed_tasks(path: pathlib.Path) -> dict[int, str]:
  file = path / 'meta/tasks.parquet'
  table = _read_parquet(file)
  # The text is the index of a pandas table; it may be called `task`, or have no name.
  texts = [name for name in table.column_names if name != 'task_index']
  if 'task_index' not in table.column_names or not texts:
    raise ValueError(
      f'{file} has the columns {table.column_names}; expected task_index and the text.'
    )
  text = 'task' if 'task' in texts else texts[0]
  return dict(zip(table['task_index'].to_pylist(), table[text].to_pylist()))


def _read_splits(file: pathlib.Path, info: dict[str, Any], count: int) -> dict[str, range]:
  splits = {}
  for name, text in (info.get('splits') or {'train': f'0:{count}'}).items():
    start, _, stop = str(text).partition(':')
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop) <= count):
      raise ValueError(
        f'{file} says that split {name!r} is {text!r}; expected START:STOP within its {count} '
        'episodes.'
      )
    splits[name] = range(int(start), int(stop))
  return splits


def _read_gear(path: pathlib.Path, info: dict[str, Any]) -> Gear:
  def read_optional(name: str) -> dict[str, Any]:
    file = path / 'meta' / name
    return _read_json(file) if file.exists() else {}

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
    for row in _read_lines(file, 'episode_index', 'step_indices')
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


def read_rows(source: Source, episode: Episode, keys: Sequence[str]) -> dict[str, Any]:
  """The rows of an episode, checked: their number, order, indices and times.

  Returns:
    Per key of `keys` and of `INDICES`: an array [length, ...] of the feature's shape, scalars for
    `INDICES`; a list of texts; or, for images, a list of encoded bytes.
  Raises:
    ValueError: the file is missing or unreadable, a column is missing or has another type or shape,
      or the rows are not those of this episode. Names episode and file.
  """
  where = f'Episode {episode.number} ({episode.rows})'
  table = _find_rows(where, source, episode, keys)
  rows = {
    key: _read_column(where, table[key].combine_chunks(), key, source) for key in table.column_names
  }
  if not np.array_equal(rows['frame_index'], np.arange(episode.length)):
    raise ValueError(
      f'{where}: frame_index is not 0, 1, 2, ...; its rows are out of order or incomplete.'
    )

  # Frames are found by these times, so a row's must be nearer to its own than to another's.
  expected_s = np.arange(episode.length) / source.fps
  late = np.flatnonzero(np.abs(rows['timestamp'] - expected_s) > 0.5 / source.fps)
  if late.size:
    raise ValueError(
      f'{where}: row {late[0]} has the timestamp {rows["timestamp"][late[0]]:.4f} s, which at '
      f"{source.fps:g} rows a second is another row's."
    )
  unknown = sorted(set(rows['task_index'].tolist()) - set(source.tasks))
  if unknown:
    raise ValueError(
      f'{where}: task_index {unknown[:10]} is not in meta/tasks, which has {len(source.tasks)} '
      'tasks.'
    )
  return rows


def _find_rows(where: str, source: Source, episode: Episode, keys: Sequence[str]):
  """The table of an episode's rows, which version 3 keeps among those of others."""
  table = _read_table(episode.rows, tuple(dict.fromkeys((*INDICES, *keys))))
  numbers = table['episode_index'].to_numpy()
  mine = np.flatnonzero(numbers == episode.number)
  is_alone = source.version != 'v3.0'
  if len(mine) != episode.length or (is_alone and len(numbers) != episode.length):
    raise ValueError(
      f'{where} has {len(mine)} rows of this episode and {len(numbers)} in all; the metadata say '
      f'{episode.length}.'
    )
  if mine[-1] - mine[0] != len(mine) - 1:
    raise ValueError(f'{where}: its rows are interrupted by those of other episodes.')
  return table.slice(mine[0], len(mine))


@functools.lru_cache(maxsize=1)
def _read_table(path: pathlib.Path, columns: tuple[str, ...]):
  """A parquet file; the last one is kept, because in version 3 the next episode lies in it, too."""
  return _read_parquet(path, columns)


def _read_column(where: str, column, key: str, source: Source) -> Any:
  feature = source.features[key]
  if column.null_count:
    raise ValueError(f'{where}: {key!r} is empty in {column.null_count} rows.')
  if feature['dtype'] == 'string':
    return [str(text) for text in column.to_pylist()]
  if feature['dtype'] == 'image':
    return [_read_image(where, source.path, image) for image in column.to_pylist()]

  count = len(column)
  while _is_list(column.type):
    column = column.flatten()
  # INDICES are one number a row, though info.json gives them the shape (1,).
  shape = () if key in INDICES else feature['shape']
  try:
    values = np.asarray(column.to_numpy(zero_copy_only=False), feature['dtype'])
    return values.reshape((count, *shape))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{where}: {key!r} does not hold {feature["dtype"]} of shape {feature["shape"]} in each row, '
      f'as info.json says ({error}).'
    ) from error


def _is_list(kind) -> bool:
  types = _pyarrow().types
  return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _read_image(where: str, root: pathlib.Path, image: Mapping[str, Any]) -> bytes:
  """An image is stored in the row, or beside the table in a file that the row names."""
  if image.get('bytes') is not None:
    return image['bytes']
  path = root / (image.get('path') or '')
  if not path.is_file():
    raise ValueError(f'{where}: there is no image file {path}.')
  return path.read_bytes()


def _read_parquet(path: pathlib.Path, columns: Sequence[str] | None = None):
  if not path.exists():
    raise ValueError(f'There is no file {path}. Restore it.')
  pa = _pyarrow()
  parquet = importlib.import_module('pyarrow.parquet')
  try:
    file = parquet.ParquetFile(path)
    missing = [column for column in columns or () if column not in file.schema_arrow.names]
    if missing:
      raise ValueError(
        f'{path} has no column {", ".join(missing[:10])}; it has {file.schema_arrow.names}.'
      )
    return file.read(columns and list(columns))
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f'{path} is not a readable parquet file ({error}). Restore it.') from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} is missing or not JSON ({error}). Restore it.') from error


def _read_lines(path: pathlib.Path, *keys: str) -> list[dict[str, Any]]:
  """The objects of a file with one JSON object a line, each of which has `keys`."""
  rows = []
  number = 0
  try:
    for line in path.read_text().splitlines():
      number += 1  # Not by `enumerate`: a file that is no text has no line.
      if not line.strip():
        continue
      row = json.loads(line)
      missing = [key for key in keys if key not in row]
      if missing:
        raise ValueError(f'it has no {", ".join(missing)}')
      rows.append(row)
  except FileNotFoundError as error:
    raise ValueError(f'There is no file {path}. Restore it.') from error
  except ValueError as error:  # JSON's, Unicode's and ours.
    raise ValueError(f'Line {number} of {path} cannot be used: {error}.') from error
  return rows


def _pyarrow():
  try:
    return importlib.import_module('pyarrow')
  except ImportError as error:
    raise ValueError("Reading LeRobot data needs pyarrow: pip install -e '.[lerobot]'.") from error
