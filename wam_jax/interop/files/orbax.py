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

# An array is cut along the axis that hosts divide among them, into so many pieces that each host
# reads little beyond its own, but not into smaller ones than are worth a request.
_PIECES = 256
_LEAST_BYTES = 2**17
_CHUNK_BYTES = 2**25  # No piece is larger.
# Written at once: tensorstore holds a second, compressed copy meanwhile.
_SLAB_BYTES = 2**27
_METADATA = '_METADATA'
_DICT_KEY = 2  # Orbax `KeyType.DICT`: a step of the tree path that is a key of a dict.


class ItemWriter:
  """Writes one item. The directory is readable after `finish`."""

  def __init__(
    self,
    directory: pathlib.Path,
    shapes: Mapping[str, lazy.Shape],
    stacked: frozenset[str],
    width: int = 0,
  ):
    """Makes `directory`.

    Args:
      directory: the place of the item.
      shapes: every array that will be written, by '/'-separated path.
      stacked: the paths of the arrays that are written layer by layer along axis 0.
      width: the size of the axis that readers on a mesh divide; where an array has none, they
        divide its longest.
    """
    directory.mkdir(parents=True)
    self._directory = directory
    self._shapes = shapes
    self._stacked = stacked
    self._width = width
    # Files are synced once, when all are there; see `storage.whole_directory`.
    self._context = ts.Context({'cache_pool': {'total_bytes_limit': 0}, 'file_io_sync': False})
    # Many small arrays become one file: they are held back until there is enough for it.
    self._batch = ts.Transaction()
    self._pending = 0  # Bytes in the batch.
    self._stores: dict[str, ts.TensorStore] = {}  # Arrays as the batch sees them.

  def write(self, path: str, array: np.ndarray, layer: int | None = None) -> None:
    """Writes an array, or one layer of it.

    Raises:
      OSError: the disk is full, or fails.
    """
    try:
      for slab in _list_slabs(array, self._open_store(path, layer)):
        part = array[slab]
        # Opened anew for each slab, because a commit ends the stores of its batch.
        store = self._open_store(path, layer)
        store[slab].write(part, can_reference_source_data_indefinitely=True).result()
        self._pending += part.nbytes
        if self._pending >= _SLAB_BYTES:
          self._commit()
    except ValueError as e:  # How tensorstore reports what the file system says.
      raise OSError(_find_reason(e)) from e

  def finish(self) -> None:
    """Lists the arrays, so that Orbax finds them."""
    try:
      self._commit()
    except ValueError as e:
      raise OSError(_find_reason(e)) from e
    entries = {}
    for path in self._shapes:
      keys = path.split('/')
      entries[str(tuple(keys))] = {
        'key_metadata': [{'key': key, 'key_type': _DICT_KEY} for key in keys],
        'value_metadata': {'value_type': 'np.ndarray', 'skip_deserialize': False},
      }
    content = {
      'tree_metadata': entries,
      'use_ocdbt': True,
      'use_zarr3': False,
      'store_array_data_equal_to_fill_value': True,
      'custom_metadata': None,
    }
    (self._directory / _METADATA).write_text(json.dumps(content))

  def _open_store(self, path: str, layer: int | None) -> ts.TensorStore:
    """The array or the layer as the current batch sees it; made if this is its first write."""
    if path not in self._stores:
      self._stores[path] = ts.open(
        ts.Spec(self._make_spec(path)),
        open=True,
        create=True,
        context=self._context,
        transaction=self._batch,
      ).result()
    store = self._stores[path]
    return store if layer is None else store[layer]

  def _make_spec(self, path: str) -> dict[str, Any]:
    shape, dtype = self._shapes[path]
    return _make_spec(self._directory, path, is_ocdbt=True) | {
      'store_data_equal_to_fill_value': True,
      'metadata': {
        'shape': shape,
        'chunks': self._choose_chunks(path),
        'dtype': _name_dtype(dtype),
        'compressor': {'id': 'zstd', 'level': 1},
      },
    }

  def _choose_chunks(self, path: str) -> list[int]:
    """One layer at most, cut along the axis that readers divide; then the longest, if need be."""
    shape, dtype = self._shapes[path]
    chunk = list(shape)
    axes = list(range(len(shape)))
    if path in self._stacked:
      chunk[0] = 1
      axes = axes[1:]
    count_bytes = lambda: math.prod(chunk) * dtype.itemsize

    if axes:
      longest = max(axes, key=lambda axis: shape[axis])
      divided = next((axis for axis in axes if shape[axis] == self._width), longest)
      least = shape[divided] // _PIECES
      while chunk[divided] % 2 == 0 and chunk[divided] > least and count_bytes() > _LEAST_BYTES:
        chunk[divided] //= 2
    while count_bytes() > _CHUNK_BYTES:
      even = [axis for axis, size in enumerate(chunk) if size % 2 == 0]
      if not even:
        break
      chunk[max(even, key=lambda axis: chunk[axis])] //= 2
    return chunk

  def _commit(self) -> None:
    self._batch.commit_sync()
    self._batch = ts.Transaction()
    self._pending = 0
    self._stores = {}


class Array(NamedTuple):
  """An array of an item on disk.

  Attributes:
    store: the array as tensorstore sees it.
    shape: its sizes.
    dtype: the type of its numbers.
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
  driver = 'zarr3' if content.get('use_zarr3') else 'zarr'
  context = ts.Context({'cache_pool': {'total_bytes_limit': 0}})
  arrays = {}
  for entry in content['tree_metadata'].values():
    if entry['value_metadata'].get('skip_deserialize'):  # None and empty containers hold no array.
      continue
    path = '/'.join(str(key['key']) for key in entry['key_metadata'])
    spec = _make_spec(directory, path, content['use_ocdbt'], driver)
    try:
      store = ts.open(ts.Spec(spec), open=True, read=True, context=context).result()
    except ValueError as e:
      raise ValueError(f'{path} of {directory} cannot be opened: {_find_reason(e)}') from e
    arrays[path] = Array(
      store=store,
      shape=tuple(store.shape),
      dtype=store.dtype.numpy_dtype,
      layers=_count_layers(store),
    )
  return arrays


def _count_layers(store: ts.TensorStore) -> int:
  if not store.shape:
    return 1
  chunk = store.chunk_layout.read_chunk.shape[0]
  return min(chunk or 1, store.shape[0])


def _find_reason(error: ValueError) -> str:
  """The end of tensorstore's message, after a quoted path or two."""
  return str(error).splitlines()[0].rsplit('": ', 1)[-1][:300]


def _list_slabs(array: np.ndarray, target: ts.TensorStore) -> list[Any]:
  """Parts of `array` to write one after the other, each of whole chunks."""
  if not array.ndim:
    return [()]
  chunk = target.chunk_layout.write_chunk.shape[0]
  chunks = _SLAB_BYTES * len(array) // array.nbytes // chunk
  rows = max(1, chunks) * chunk
  return [slice(start, min(start + rows, len(array))) for start in range(0, len(array), rows)]


def _make_spec(
  directory: pathlib.Path, path: str, is_ocdbt: bool, driver: str = 'zarr'
) -> dict[str, Any]:
  name = path.replace('/', '.')
  if is_ocdbt:
    # Of a bucket a URL says it all.
    is_remote = '://' in str(directory)
    base = f'{directory}/' if is_remote else {'driver': 'file', 'path': f'{directory}/'}
    store = {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
  else:
    store = {'driver': 'file', 'path': f'{directory}/{name}/'}
  return {'driver': driver, 'kvstore': store}


def _name_dtype(dtype: np.dtype) -> str:
  """The name that zarr has for it."""
  return 'bfloat16' if dtype.name == 'bfloat16' else dtype.str
