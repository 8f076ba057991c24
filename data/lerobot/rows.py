"""The rows of an episode, checked: their number, order, indices and times."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.lerobot import files
from data.lerobot import source as source_lib
from wam_jax import pointers

RATE_TOLERANCE = 0.05  # Share of a period: usual rates are 20 % apart.


def read(
  source: source_lib.Source, episode: source_lib.Episode, keys: Sequence[str]
) -> dict[str, Any]:
  """The rows of an episode, checked: their number, order, indices and times.

  Returns:
    Per key of `keys` and of `source.INDICES`: an array [length, ...] of the feature's shape, of
    scalars for the latter; a list of texts; or, for images, a list of encoded bytes.
  Raises:
    ValueError: the file is missing or unreadable, a column is missing or has another type or shape,
      or the rows are not those of this episode. Names episode and file.
  """
  where = f'Episode {episode.number} ({episode.rows})'
  table = _find_rows(where, source, episode, keys)
  rows = {
    key: _read_column(where, table[key].combine_chunks(), key, source) for key in table.column_names
  }
  # An episode that was cut at its beginning counts on from there.
  first = rows['frame_index'][0]
  if not np.array_equal(rows['frame_index'], first + np.arange(episode.length)):
    raise ValueError(
      f'{where}: frame_index is not 0, 1, 2, ...; its rows are out of order or incomplete.'
    )
  _check_times(where, rows['timestamp'], source.fps)
  unknown = sorted(set(rows['task_index'].tolist()) - set(source.tasks))
  if unknown:
    raise ValueError(
      f'{where}: task_index {unknown[:10]} is not in meta/tasks, which has {len(source.tasks)} '
      'tasks.'
    )
  return rows


def _check_times(where: str, stamp_T: np.ndarray, fps: float) -> None:
  """Raises ValueError if times do not grow, or grow at another rate than `fps`.

  They may begin anywhere, and be those of a clock, which no two rows are exactly a period apart by
  (huggingface/lerobot#3513).
  """
  # Times since 1970 are coarser in float32 than the rows.
  if len(stamp_T) < 2 or np.spacing(np.abs(stamp_T).max()) > 0.1 / fps:
    return
  period_T = np.diff(stamp_T.astype(np.float64))
  back = np.flatnonzero(~(period_T > 0))
  if back.size:
    t = back[0]
    raise ValueError(
      f'{where}: timestamp does not grow: {stamp_T[t]:.4f} s in row {t}, {stamp_T[t + 1]:.4f} s in '
      'the next; its rows are out of order, or those of several recordings.'
    )
  # One is not moved by rows that are missing, the other not by a clock that trembles.
  period, mean = float(np.median(period_T)), float(period_T.mean())
  if min(abs(period * fps - 1), abs(mean * fps - 1)) > RATE_TOLERANCE:
    raise ValueError(
      f'{where}: timestamp grows by {period:.4g} s a row, {1 / period:.4g} rows a second; '
      f'meta/info.json says fps={fps:g}. Correct the one that is wrong.'
    )


def read_picture(source: source_lib.Source, episode: source_lib.Episode, key: str) -> Any:
  """The first picture in the file of an episode: encoded bytes, or an array."""
  where = f'Episode {episode.number} ({episode.rows})'
  table = files.read_first(episode.rows, key)
  return _read_column(where, table[key], key, source)[0]


def _find_rows(
  where: str, source: source_lib.Source, episode: source_lib.Episode, keys: Sequence[str]
):
  """The table of an episode's rows, which version 3 keeps among those of others."""
  table = _read_table(episode.rows, tuple(dict.fromkeys((*source_lib.INDICES, *keys))))
  numbers = table['episode_index'].to_numpy()
  mine = np.flatnonzero(numbers == episode.number)
  is_alone = source.version != 'v3.0'
  if len(mine) != episode.length or (is_alone and len(numbers) != episode.length):
    raise ValueError(
      f'{where} has {len(mine)} rows of this episode and {len(numbers)} in all; the metadata say '
      f'{episode.length}.'
    )
  if mine[-1] - mine[0] != len(mine) - 1:  # Rows of other episodes lie between them.
    return table.take(mine)
  return table.slice(mine[0], len(mine))


@functools.lru_cache(maxsize=1)
def _read_table(path: pathlib.Path, columns: tuple[str, ...]):
  """A parquet file; the last one is kept, because in version 3 the next episode lies in it, too."""
  return files.read_parquet(path, columns)


def _read_column(where: str, column, key: str, source: source_lib.Source) -> Any:
  feature = source.features[key]
  if column.null_count:
    raise ValueError(f'{where}: {key!r} is empty in {column.null_count} rows.')
  if feature['dtype'] == 'string':
    return [_read_text(where, key, text) for text in column.to_pylist()]
  if feature['dtype'] == 'image':
    return [_read_image(where, source.path, image) for image in column.to_pylist()]

  # source_lib.INDICES are one number a row, though info.json gives them the shape (1,).
  shape = () if key in source_lib.INDICES else feature['shape']
  count = len(column)
  _check_widths(where, column, key, feature)
  while _is_list(column.type):
    column = column.flatten()
  if column.null_count:
    row = column.is_null().index(True).as_py() * count // len(column)
    raise ValueError(f'{where}: {key!r} has an empty number in row {row}.')
  try:
    values = np.asarray(column.to_numpy(zero_copy_only=False), feature['dtype'])
    return values.reshape((count, *shape))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{where}: {key!r} does not hold {feature["dtype"]} of shape {feature["shape"]} in each row, '
      f'as info.json says ({error}).'
    ) from error


def _check_widths(where: str, column, key: str, feature: Mapping[str, Any]) -> None:
  """Raises ValueError if rows hold more and fewer numbers, which together would be right."""
  if not _is_list(column.type) or not len(column):
    return
  width_T = column.value_lengths().to_numpy()
  odd = np.flatnonzero(width_T != width_T[0])
  if odd.size:
    raise ValueError(
      f'{where}: {key!r} does not hold {feature["dtype"]} of shape {feature["shape"]} in each row: '
      f'{width_T[0]} values in row 0, {width_T[odd[0]]} in row {odd[0]}.'
    )


def _read_text(where: str, key: str, text: Any) -> str:
  """A text; some store it as a list of one."""
  if isinstance(text, list) and len(text) == 1:
    text = text[0]
  if not isinstance(text, str):
    raise ValueError(f'{where}: {key!r} holds {text!r}, which is no text.')
  return text


def _is_list(kind) -> bool:
  types = files.import_pyarrow().types
  return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _read_image(where: str, root: pathlib.Path, image: Mapping[str, Any] | bytes) -> bytes:
  """An image is stored in the row, or beside the table in a file that the row names."""
  if isinstance(image, bytes):
    return image
  if image.get('bytes') is not None:
    return image['bytes']
  path = root / (image.get('path') or '')
  if not path.is_file():
    raise ValueError(f'{where}: there is no image file {path}.')
  content = path.read_bytes()
  pointers.check(path, content)
  return content
