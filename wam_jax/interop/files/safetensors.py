"""Safetensors files, any order in, any order out, never a whole file in memory.

A file is an 8-byte little-endian length, a JSON header of that length {name: {dtype, shape,
data_offsets}} with offsets counted from its end, and the raw little-endian arrays
(github.com/huggingface/safetensors). It is read and written here rather than by that library
because mapped pages would count as memory, and because shards are filled out of order.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
from etils import epath

from wam_jax import pointers
from wam_jax.interop import errors
from wam_jax.interop import lazy
from wam_jax.interop.files import jsonfile

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
_LENGTH = 8  # Bytes of the number before the header.
_LARGEST_HEADER = 100_000_000  # The limit of the format, in bytes.
_BLOCK = 256  # Rows and columns that are transposed at once.


def open_weights(directory: epath.Path, stem: str) -> dict[str, lazy.Stored]:
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

  shard_of = jsonfile.read(index_path).get('weight_map')
  if not isinstance(shard_of, dict) or not shard_of:
    raise ValueError(f'{index_path} has no weight_map; download it again.')

  weights: dict[str, lazy.Stored] = {}
  problems: list[str] = []
  # One error for all shards, so that all that is damaged can be copied at once.
  for shard in sorted(set(shard_of.values())):
    try:
      found = open_file(directory / shard)
    except ValueError as e:
      problems.append(str(e))
      continue
    wanted = {name for name, place in shard_of.items() if place == shard}
    lost = sorted(wanted - found.keys())
    stray = sorted(found.keys() - wanted)
    problems += [f'{name} is not in {shard}, against {index_path.name}' for name in lost]
    problems += [f'{name} is in {shard}, against {index_path.name}' for name in stray]
    weights |= found
  errors.fail(
    f'The shards of {index_path} are not whole:', problems, 'Copy or download these files again.'
  )
  return weights


def open_file(path: epath.Path) -> dict[str, lazy.Stored]:
  """Every array of one safetensors file, by name; reads its header only.

  Raises:
    ValueError: no such file, or it is cut or not of this format.
  """
  if not path.exists():
    raise ValueError(f'{path} does not exist')
  pointers.check(path)
  size = path.stat().length
  with path.open('rb') as f:
    length = int.from_bytes(f.read(_LENGTH), 'little')
    # A file of another kind announces any length.
    if size < _LENGTH or length > min(size - _LENGTH, _LARGEST_HEADER):
      raise ValueError(f'{path} is cut or is no safetensors file: {size} bytes, header of {length}')
    text = f.read(length)

  start = _LENGTH + length
  try:
    header = json.loads(text)
    header.pop('__metadata__', None)
    arrays = {name: _parse_entry(path, start, name, entry) for name, entry in header.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} has an unreadable header: {e}') from e

  # Downloads that stop early look whole but for this.
  end = max((a.start + lazy.nbytes(a) for a in arrays.values()), default=start)
  if end != size:
    raise ValueError(
      f'{path} is {"cut" if end > size else "too long"}: {size} bytes, its header describes {end}'
    )
  _check_layout(path, start, arrays)
  return arrays


def _check_layout(path: epath.Path, start: int, arrays: Mapping[str, lazy.Stored]) -> None:
  """Raises ValueError unless each array begins where another ends, as the format demands: no byte
  is part of two, or of none.
  """
  ordered = sorted(arrays.items(), key=lambda item: (item[1].start, lazy.nbytes(item[1])))
  end = start
  before = 'the header'
  for name, array in ordered:
    if array.start != end:
      fault = 'overlaps with' if array.start < end else 'leaves a hole after'
      raise ValueError(
        f'{path} is damaged: {name} begins at byte {array.start} and {fault} {before}, which ends '
        f'at byte {end}; download it again'
      )
    end += lazy.nbytes(array)
    before = name


def _parse_entry(path: epath.Path, start: int, name: str, entry: Mapping[str, Any]) -> lazy.Stored:
  if entry['dtype'] not in DTYPES:
    raise ValueError(f'{name} has dtype {entry["dtype"]}; known are {", ".join(DTYPES)}')
  first, last = entry['data_offsets']
  stored = lazy.Stored(path, start + first, tuple(entry['shape']), DTYPES[entry['dtype']])
  if last - first != lazy.nbytes(stored):
    raise ValueError(f'{name} has {last - first} bytes for {entry["dtype"]} {entry["shape"]}')
  return stored


class _Place(NamedTuple):
  """Where an array goes.

  Attributes:
    file: the descriptor of the open shard.
    start: the offset of its first byte there.
    shape: what was announced.
  """

  file: int
  start: int
  shape: lazy.Shape


class Writer:
  """Safetensors files of arrays that arrive in any order, each once.

  One file STEM.safetensors, or shards of at most `shard_bytes` (or one array) and their index, as
  the `transformers` library names them.
  """

  def __init__(
    self, directory: pathlib.Path, stem: str, shapes: Mapping[str, lazy.Shape], shard_bytes: int
  ):
    directory.mkdir(parents=True, exist_ok=True)
    self._missing: dict[str, _Place] = {}
    self._files: list[int] = []
    shards = _split(shapes, shard_bytes)
    shard_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
      name = f'{stem}.safetensors'
      if len(shards) > 1:
        name = f'{stem}-{number:05d}-of-{len(shards):05d}.safetensors'
      self._begin(directory / name, shard)
      shard_of |= dict.fromkeys(shard, name)

    if len(shards) > 1:
      size = sum(map(lazy.nbytes, shapes.values()))
      index = {'metadata': {'total_size': size}, 'weight_map': shard_of}
      jsonfile.write(directory / f'{stem}.safetensors.index.json', index)

  def _begin(self, path: pathlib.Path, shard: Mapping[str, lazy.Shape]) -> None:
    """Makes a file with its header; the arrays follow in any order."""
    header, offsets = _make_header(shard)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    self._files.append(file)
    _write_at(file, header, 0)
    # Places are known before any array is there, so that they may come in any order.
    for name, shape in shard.items():
      self._missing[name] = _Place(file, len(header) + offsets[name], shape)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, error_type, error, traceback) -> None:
    # After an error nobody looks at the files: they need not reach the disk.
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
    content = _make_dense(array).reshape(-1).view(np.uint8)
    _write_at(file, content.data, start)


def _make_dense(array: np.ndarray) -> np.ndarray:
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


def _split(shapes: Mapping[str, lazy.Shape], shard_bytes: int) -> list[dict[str, lazy.Shape]]:
  """The arrays of each shard, in their order."""
  shards: list[dict[str, lazy.Shape]] = [{}]
  used = 0
  for name, shape in shapes.items():
    if shards[-1] and used + lazy.nbytes(shape) > shard_bytes:
      shards.append({})
      used = 0
    shards[-1][name] = shape
    used += lazy.nbytes(shape)
  return shards


def _make_header(shapes: Mapping[str, lazy.Shape]) -> tuple[bytes, dict[str, int]]:
  """(length and header, offset of each array after them)."""
  # The `transformers` library refuses files without this entry.
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offsets = {}
  end = 0
  for name, shape in shapes.items():
    offsets[name] = end
    end += lazy.nbytes(shape)
    header[name] = {
      'dtype': _CODES[shape.dtype],
      'shape': list(shape.shape),
      'data_offsets': [offsets[name], end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  # Spaces up to a multiple of 8, so that arrays are aligned.
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(_LENGTH, 'little') + text, offsets


def _write_at(file: int, content: Any, start: int) -> None:
  """All of `content`; the system may write less than it is given at once."""
  view = memoryview(content)
  while len(view):
    written = os.pwrite(file, view, start)
    view = view[written:]
    start += written
