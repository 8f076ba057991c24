"""Weights in safetensors files, one at a time: any order in, any order out, never a whole file in
memory.

A file is an 8-byte little-endian length, a JSON header of that length {name: {dtype, shape,
data_offsets}} with offsets counted from its end, and the raw little-endian arrays
(github.com/huggingface/safetensors). It is read and written here rather than by that library
because mapped pages would count as memory, and because shards are filled out of order.

A weight that is not in memory is anything with `shape`, `dtype` and `read()`; see `Weight`.
"""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import ml_dtypes
import numpy as np
from etils import epath

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(bool),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # Of the format.
_BLOCK = 256


class Weight(Protocol):
  """An array that is read when it is needed, and forgotten."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  def read(self) -> np.ndarray: ...


class Stored(NamedTuple):
  """A contiguous array in a file.

  Attributes:
    path, start: where its first byte is.
  """

  path: epath.Path
  start: int
  shape: tuple[int, ...]
  dtype: np.dtype

  def read(self) -> np.ndarray:
    """The array, read-only."""
    size = nbytes(self)
    with self.path.open('rb') as f:
      f.seek(self.start)
      content = f.read(size)
    if len(content) != size:
      raise ValueError(
        f'{self.path} ends inside an array; it was cut while it was read. Copy or download it again.'
      )
    return np.frombuffer(content, self.dtype).reshape(self.shape)


def nbytes(weight: Weight) -> int:
  """Bytes of an array that need not be in memory."""
  return math.prod(weight.shape) * weight.dtype.itemsize


def fail(title: str, problems: Iterable[str], remedy: str) -> None:
  """Raises ValueError with up to ten of `problems`, if there are any."""
  problems = list(problems)
  if problems:
    more = f'\n  ... and {len(problems) - 10} more' if len(problems) > 10 else ''
    raise ValueError(f'{title}\n  ' + '\n  '.join(problems[:10]) + f'{more}\n{remedy}')


def open_weights(directory: epath.Path, stem: str) -> dict[str, Stored]:
  """Every array of `STEM.safetensors`, or of the shards of `STEM.safetensors.index.json`, by name;
  reads headers only.

  Raises:
    ValueError: neither file is there, or files are missing, cut or contradict the index; all of
      them, up to ten.
  """
  index_path = directory / f'{stem}.safetensors.index.json'
  single = directory / f'{stem}.safetensors'
  if not index_path.exists():
    if not single.exists():
      raise ValueError(f'{directory} has neither {single.name} nor {index_path.name}.')
    return open_file(single)
  shard_of = read_json(index_path).get('weight_map')
  if not isinstance(shard_of, dict) or not shard_of:
    raise ValueError(f'{index_path} has no weight_map; download it again.')
  weights: dict[str, Stored] = {}
  problems: list[str] = []
  for shard in sorted(set(shard_of.values())):
    try:
      found = open_file(directory / shard)
    except ValueError as e:
      problems.append(str(e))
      continue
    wanted = {name for name, place in shard_of.items() if place == shard}
    problems += [
      f'{name} is not in {shard}, against {index_path.name}' for name in sorted(wanted - set(found))
    ]
    problems += [
      f'{name} is in {shard}, against {index_path.name}' for name in sorted(set(found) - wanted)
    ]
    weights |= found
  fail(
    f'The shards of {index_path} are not whole:', problems, 'Copy or download these files again.'
  )
  return weights


def open_file(path: epath.Path) -> dict[str, Stored]:
  """Every array of one safetensors file, by name; reads its header only.

  Raises:
    ValueError: no such file, or it is cut or not of this format.
  """
  if not path.exists():
    raise ValueError(f'{path} does not exist')
  size = path.stat().length
  with path.open('rb') as f:
    length = int.from_bytes(f.read(8), 'little')
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
      raise ValueError(f'{path} is cut or is no safetensors file: {size} bytes, header of {length}')
    text = f.read(length)
  try:
    header = json.loads(text)
    header.pop('__metadata__', None)
    arrays = {name: _parse_entry(path, 8 + length, name, entry) for name, entry in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} has an unreadable header: {e}') from e
  end = max((a.start + nbytes(a) for a in arrays.values()), default=8 + length)
  if end != size:
    raise ValueError(
      f'{path} is {"cut" if end > size else "too long"}: {size} bytes, its header describes {end}'
    )
  return arrays


def _parse_entry(path: epath.Path, start: int, name: str, entry: Mapping[str, Any]) -> Stored:
  if entry['dtype'] not in DTYPES:
    raise ValueError(f'{name} has dtype {entry["dtype"]}; known are {", ".join(DTYPES)}')
  first, last = entry['data_offsets']
  stored = Stored(path, start + first, tuple(entry['shape']), DTYPES[entry['dtype']])
  if last - first != nbytes(stored):
    raise ValueError(f'{name} has {last - first} bytes for {entry["dtype"]} {entry["shape"]}')
  return stored


def read_json(path: epath.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: no such file, or another content.
  """
  if not path.exists():
    raise ValueError(f'{path} does not exist.')
  try:
    content = json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}); copy or download it again.') from e
  if not isinstance(content, dict):
    raise ValueError(f'{path} holds {type(content).__name__}, not an object of named values.')
  return content


class Shape(NamedTuple):
  """What is known of an array before it is written."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Writer:
  """Safetensors files of arrays that arrive in any order, each once.

  One file STEM.safetensors, or shards of at most `shard_bytes` (or one array) and their index, as
  the `transformers` library names them.
  """

  def __init__(
    self, directory: pathlib.Path, stem: str, shapes: Mapping[str, Shape], shard_bytes: int
  ):
    directory.mkdir(parents=True, exist_ok=True)
    shards = _split(shapes, shard_bytes)
    names = (
      [f'{stem}.safetensors']
      if len(shards) == 1
      else [f'{stem}-{i:05d}-of-{len(shards):05d}.safetensors' for i in range(1, len(shards) + 1)]
    )
    self._missing: dict[str, tuple[int, int, Shape]] = {}
    self._files: list[int] = []
    for name, shard in zip(names, shards, strict=True):
      header, offsets = _make_header(shard)
      self._files.append(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
      _write_at(self._files[-1], header, 0)
      for key, shape in shard.items():
        self._missing[key] = self._files[-1], len(header) + offsets[key], shape
    if len(shards) > 1:
      index = {
        'metadata': {'total_size': sum(map(nbytes, shapes.values()))},
        'weight_map': {key: name for name, shard in zip(names, shards) for key in shard},
      }
      (directory / f'{stem}.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n')

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error_type, error, traceback) -> None:
    for file in self._files:
      if error_type is None:
        os.fsync(file)
      os.close(file)
    if error_type is None and self._missing:
      raise ValueError(
        f'{len(self._missing)} arrays were never written, among them {next(iter(self._missing))}.'
      )

  def write(self, name: str, array: np.ndarray) -> None:
    """Puts one array where it belongs.

    Raises:
      ValueError: it was not announced, is there already, or has another shape or dtype.
    """
    if name not in self._missing:
      raise ValueError(f'{name} was not announced, or is written twice.')
    file, start, shape = self._missing.pop(name)
    if (array.shape, array.dtype) != shape:
      raise ValueError(
        f'{name} is {array.dtype} {array.shape}, announced as {shape.dtype} {shape.shape}.'
      )
    _write_at(file, _dense(array).reshape(-1).view(np.uint8).data, start)


def _dense(array: np.ndarray) -> np.ndarray:
  """`array` in C order. A transposed matrix goes block by block, which the processor's cache makes
  twice as fast.
  """
  if array.flags.c_contiguous or array.ndim != 2:
    return np.ascontiguousarray(array)
  dense = np.empty(array.shape, array.dtype)
  for row in range(0, array.shape[0], _BLOCK):
    for column in range(0, array.shape[1], _BLOCK):
      block = slice(row, row + _BLOCK), slice(column, column + _BLOCK)
      dense[block] = array[block]
  return dense


def _split(shapes: Mapping[str, Shape], shard_bytes: int) -> list[dict[str, Shape]]:
  shards: list[dict[str, Shape]] = [{}]
  used = 0
  for name, shape in shapes.items():
    if shards[-1] and used + nbytes(shape) > shard_bytes:
      shards.append({})
      used = 0
    shards[-1][name] = shape
    used += nbytes(shape)
  return shards


def _make_header(shapes: Mapping[str, Shape]) -> tuple[bytes, dict[str, int]]:
  """(length and header, offset of each array after them)."""
  ends = np.cumsum([0, *map(nbytes, shapes.values())]).tolist()
  offsets = dict(zip(shapes, ends))
  header: dict[str, Any] = {
    '__metadata__': {'format': 'pt'}
  }  # `transformers` refuses files without it.
  header |= {
    name: {
      'dtype': _CODES[shape.dtype],
      'shape': list(shape.shape),
      'data_offsets': [offsets[name], offsets[name] + nbytes(shape)],
    }
    for name, shape in shapes.items()
  }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # Arrays begin at a multiple of 8.
  return len(text).to_bytes(8, 'little') + text, offsets


def _write_at(file: int, content: Any, start: int) -> None:
  view = memoryview(content)
  while len(view):
    written = os.pwrite(file, view, start)
    view, start = view[written:], start + written


def count_dtypes(weights: Iterable[Weight]) -> dict[str, int]:
  """Parameters by dtype name."""
  counts: collections.Counter[str] = collections.Counter()
  for weight in weights:
    counts[str(weight.dtype)] += math.prod(weight.shape)
  return dict(counts)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """`content` as indented JSON."""
  path.write_text(json.dumps(content, indent=2) + '\n')
