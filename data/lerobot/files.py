"""What LeRobot keeps its rows and metadata in: parquet, JSON, and JSON by lines.

What cannot be read is a ValueError that names the file, and a Git LFS pointer is called that.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from wam_jax import pointers

ENCODING = 'utf-8-sig'  # Editors on Windows mark a file's beginning.
_BLANK = re.compile(r'\s*')


def read_parquet(path: pathlib.Path, columns: Sequence[str] | None = None):
  """The table in a file, of these columns, or of all."""
  with _open_parquet(path) as file:
    missing = [column for column in columns or () if column not in file.schema_arrow.names]
    if missing:
      raise ValueError(
        f'{path} has no column {", ".join(missing[:10])}; it has {file.schema_arrow.names}.'
      )
    return file.read(columns and list(columns))


def read_first(path: pathlib.Path, column: str):
  """A table of the first row of a file, with one column; reads little else."""
  with _open_parquet(path) as file:
    if column not in file.schema_arrow.names:
      raise ValueError(f'{path} has no column {column}; it has {file.schema_arrow.names}.')
    return next(file.iter_batches(batch_size=1, row_groups=[0], columns=[column]))


def list_columns(path: pathlib.Path) -> list[str]:
  """Names of the columns of a parquet file."""
  with _open_parquet(path) as file:
    return list(file.schema_arrow.names)


@contextlib.contextmanager
def _open_parquet(path: pathlib.Path):
  if not path.exists():
    raise ValueError(f'There is no file {path}. Restore it.')
  pointers.check(path)
  pa = import_pyarrow()
  parquet = importlib.import_module('pyarrow.parquet')
  try:
    with parquet.ParquetFile(path) as file:
      yield file
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f'{path} is not a readable parquet file ({error}). Restore it.') from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file."""
  pointers.check(path)
  try:
    return json.loads(path.read_text(ENCODING))
  except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} is missing or not JSON ({error}). Restore it.') from error


def read_lines(path: pathlib.Path, *keys: str) -> list[dict[str, Any]]:
  """The objects of a file with one JSON object a line, each of which has `keys`."""
  rows = []
  for number, row in number_lines(path):
    missing = [key for key in keys if key not in row]
    if missing:
      raise _unusable(path, number, f'it has no {", ".join(missing)}')
    rows.append(row)
  return rows


def number_lines(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields line, from 1, and object of a file with one JSON object a line; people who edit such a
  file spread an object over lines, too.
  """
  pointers.check(path)
  decoder = json.JSONDecoder()
  number, stop = 1, 0
  try:
    text = path.read_text(ENCODING)
    while (at := _BLANK.match(text, stop).end()) < len(text):
      number += text.count('\n', stop, at)
      # Told by its end: a text in it may hold what Unicode takes for the end of a line.
      row, end = decoder.raw_decode(text, at)
      if not isinstance(row, dict):
        raise ValueError(f'it holds {str(row)[:40]!r}; expected an object a line')
      yield number, row
      number += text.count('\n', at, end)
      stop = end
  except FileNotFoundError as error:
    raise ValueError(f'There is no file {path}. Restore it.') from error
  except ValueError as error:  # JSON's, Unicode's and ours.
    raise _unusable(path, number, error) from error


def _unusable(path: pathlib.Path, number: int, why: object) -> ValueError:
  return ValueError(f'Line {number} of {path} cannot be used: {why}.')


def import_pyarrow():
  """PyArrow, which is optional."""
  try:
    return importlib.import_module('pyarrow')
  except ImportError as error:
    raise ValueError("Reading LeRobot data needs pyarrow: pip install -e '.[lerobot]'.") from error
