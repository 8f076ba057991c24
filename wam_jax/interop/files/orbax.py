"""The arrays of one checkpoint item, slice by slice, in the format that Orbax reads and writes.

An item is a directory: zarr arrays named by their tree path with dots, inside one OCDBT key-value
store, and `_METADATA`, JSON that lists the paths. Orbax itself writes whole arrays only; the
stacked weights of a large model do not fit in memory, so here each layer goes to disk by itself,
through tensorstore as Orbax does it.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from wam_jax.interop import lazy
from wam_jax.interop.files import jsonfile

_CHUNK_BYTES = (
  2**25
)  # Small enough that a host of a mesh reads little beyond its shard, large enough for a disk.
_SLAB_BYTES = 2**27  # Written at once: tensorstore holds a second, compressed copy meanwhile.
_METADATA = '_METADATA'


class ItemWriter:
  """Writes one item. The directory is readable after `finish`."""

  def __init__(
    self, directory: pathlib.Path, shapes: Mapping[str, lazy.Shape], stacked: frozenset[str]
  ):
    """`shapes` by '/'-separated path; the arrays in `stacked` are written layer by layer along axis
    0.
    """
    directory.mkdir(parents=True)
    self._directory, self._shapes, self._stacked = directory, shapes, stacked
    # Files are synced once, when all are there; see `output.staged`.
    self._context = ts.Context({'cache_pool': {'total_bytes_limit': 0}, 'file_io_sync': False})
    # Many small arrays become one file: they are held back until there is enough for it.
    self._batch, self._pending = ts.Transaction(), 0
    self._stores: dict[str, ts.TensorStore] = {}  # Of the batch.

  def write(self, path: str, array: np.ndarray, layer: int | None = None) -> None:
    """Writes an array, or one layer of it.

    Raises:
      OSError: the disk is full, or fails.
    """
    try:
      for slab in _slabs(array, self._store(path, layer)):
        self._store(path, layer)[slab].write(
          array[slab], can_reference_source_data_indefinitely=True
        ).result()
        self._pending += array[slab].nbytes
        if self._pending >= _SLAB_BYTES:
          self._commit()
    except ValueError as e:  # How tensorstore reports what the file system says.
      raise OSError(_reason(e)) from e

  def finish(self) -> None:
    """Lists the arrays, so that Orbax finds them."""
    try:
      self._commit()
    except ValueError as e:
      raise OSError(_reason(e)) from e
    entries = {
      str(tuple(path.split('/'))): {
        'key_metadata': [{'key': key, 'key_type': 2} for key in path.split('/')],
        'value_metadata': {'value_type': 'np.ndarray', 'skip_deserialize': False},
      }
      for path in self._shapes
    }
    (self._directory / _METADATA).write_text(
      json.dumps(
        {
          'tree_metadata': entries,
          'use_ocdbt': True,
          'use_zarr3': False,
          'store_array_data_equal_to_fill_value': True,
          'custom_metadata': None,
        }
      )
    )

  def _store(self, path: str, layer: int | None) -> ts.TensorStore:
    """The array or the layer as the current batch sees it; made if this is its first write."""
    if path not in self._stores:
      self._stores[path] = ts.open(
        ts.Spec(self._make_spec(path)),
        open=True,
        create=True,
        context=self._context,
        transaction=self._batch,
      ).result()
    return self._stores[path] if layer is None else self._stores[path][layer]

  def _make_spec(self, path: str) -> dict[str, Any]:
    shape, dtype = self._shapes[path]
    return _spec(self._directory, path, True) | {
      'store_data_equal_to_fill_value': True,
      'metadata': {
        'shape': shape,
        'chunks': _chunks(shape, dtype, path in self._stacked),
        'dtype': _zarr_name(dtype),
        'compressor': {'id': 'zstd', 'level': 1},
      },
    }

  def _commit(self) -> None:
    self._batch.commit_sync()
    self._batch, self._pending, self._stores = ts.Transaction(), 0, {}


class Array(NamedTuple):
  """An array of an item on disk.

  Attributes:
    layers: how many of axis 0 share a chunk; reading fewer at a time reads the chunk again.
  """

  store: Any
  shape: tuple[int, ...]
  dtype: np.dtype
  layers: int

  def read(self, part: Any = ()) -> np.ndarray:
    """The array, or `array[part]`."""
    return self.store[part].read().result()


def open_item(directory: pathlib.Path) -> dict[str, Array]:
  """Every array of an item, by '/'-separated path; reads no numbers.

  Raises:
    ValueError: it is not an item, or damaged.
  """
  content = jsonfile.read(directory / _METADATA)
  context = ts.Context({'cache_pool': {'total_bytes_limit': 0}})
  arrays = {}
  for entry in content['tree_metadata'].values():
    if entry['value_metadata'].get('skip_deserialize'):  # None and empty containers hold no array.
      continue
    path = '/'.join(str(key['key']) for key in entry['key_metadata'])
    spec = _spec(
      directory, path, content['use_ocdbt'], 'zarr3' if content.get('use_zarr3') else 'zarr'
    )
    try:
      store = ts.open(ts.Spec(spec), open=True, read=True, context=context).result()
    except ValueError as e:
      raise ValueError(f'{path} of {directory} cannot be opened: {_reason(e)}') from e
    shape = tuple(store.shape)
    chunk = store.chunk_layout.read_chunk.shape
    arrays[path] = Array(
      store, shape, store.dtype.numpy_dtype, min(chunk[0] or 1, shape[0]) if shape else 1
    )
  return arrays


def _reason(error: ValueError) -> str:
  """The end of tensorstore's message, after a quoted path or two."""
  return str(error).splitlines()[0].rsplit('": ', 1)[-1][:300]


def _slabs(array: np.ndarray, target: ts.TensorStore) -> list[Any]:
  """Parts of `array` to write one after the other, each of whole chunks."""
  if not array.ndim:
    return [()]
  chunk = target.chunk_layout.write_chunk.shape[0]
  rows = max(1, _SLAB_BYTES * len(array) // array.nbytes // chunk) * chunk
  return [slice(i, min(i + rows, len(array))) for i in range(0, len(array), rows)]


def _spec(directory: pathlib.Path, path: str, ocdbt: bool, driver: str = 'zarr') -> dict[str, Any]:
  name = path.replace('/', '.')
  file = {'driver': 'file', 'path': f'{directory}/' if ocdbt else f'{directory}/{name}/'}
  store = {'driver': 'ocdbt', 'base': file, 'path': f'{name}/'} if ocdbt else file
  return {'driver': driver, 'kvstore': store}


def _chunks(shape: tuple[int, ...], dtype: np.dtype, stacked: bool) -> list[int]:
  """One layer at most, its longest axis halved until it is small."""
  chunk = [1, *shape[1:]] if stacked else list(shape)
  while math.prod(chunk) * dtype.itemsize > _CHUNK_BYTES and any(n % 2 == 0 for n in chunk):
    axis = max((i for i, n in enumerate(chunk) if n % 2 == 0), key=lambda i: chunk[i])
    chunk[axis] //= 2
  return chunk


def _zarr_name(dtype: np.dtype) -> str:
  return 'bfloat16' if dtype.name == 'bfloat16' else dtype.str
