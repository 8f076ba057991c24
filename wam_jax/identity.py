"""Which weights these are: a hash of nested arrays, the same whoever holds which part of them.

SHA-256 wants all bytes in one order and in one place. Here each number is mixed with its place to
64 bits, and these are added up: every host adds what lies on its own devices, an import adds layer
after layer, and all come to the same sum. It tells weights apart that differ by accident; it does
not stop somebody who wants two to be taken for the same.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wam_jax import hosts

# Odd constants of splitmix64, whose output is uniform. Source: Steele, Lea and Flood, "Fast
# splittable pseudorandom number generators", 2014; Stafford's variant 13 of the finalizer.
_PLACE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_BLOCK = 2**16  # Numbers at a time, so that they stay in a core's cache.
_THREADS = 8
_MODULUS = 2**64


class Part(NamedTuple):
  """Some of the numbers of an array.

  Attributes:
    path: the array's name.
    shape: that of the whole array.
    starts: where the part begins in it, for each axis.
    numbers: the part.
  """

  path: str
  shape: tuple[int, ...]
  starts: tuple[int, ...]
  numbers: np.ndarray


def add_up(part: Part) -> int:
  """The sum of a part, of 64 bits; the sums of disjoint parts of arrays add up to that of all."""
  bits = np.asarray(part.numbers)
  if not bits.size:
    return 0
  described = _describe(part.path, part.shape, bits.dtype)
  seed = np.frombuffer(hashlib.sha256(described.encode()).digest()[:8], '<u8')[0]

  # Axes from `run_axis` on lie in one piece in the whole array, too.
  run_axis = bits.ndim - 1
  while run_axis > 0 and bits.shape[run_axis] == part.shape[run_axis]:
    run_axis -= 1
  strides = [math.prod(part.shape[axis + 1 :]) for axis in range(bits.ndim)]
  rows = np.zeros((1,), np.uint64)
  for axis in range(max(run_axis, 0)):
    along = np.arange(bits.shape[axis], dtype=np.uint64) + np.uint64(part.starts[axis])
    rows = (rows[:, None] + along * np.uint64(strides[axis])).reshape(-1)
  if bits.ndim:
    rows += np.uint64(part.starts[run_axis] * strides[run_axis])

  bits = np.ascontiguousarray(bits).view(f'u{bits.dtype.itemsize}').reshape(len(rows), -1)
  total = 0
  for some_rows, some_columns in _list_blocks(*bits.shape):
    places = np.arange(some_columns.start, some_columns.stop, dtype=np.uint64)
    mixed = (rows[some_rows, None] + places) * _PLACE
    mixed += seed
    mixed += bits[some_rows, some_columns]
    total += int(_mix(mixed).sum())
  return total % _MODULUS


def make_hash(kinds: Mapping[str, tuple[tuple[int, ...], np.dtype]], total: int) -> str:
  """32 hexadecimal digits for arrays of these shapes and dtypes, by name, whose sum is `total`."""
  lines = [_describe(path, *kind) for path, kind in sorted(kinds.items())]
  lines.append(f'{total % _MODULUS:016x}')
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:32]


def hash_arrays(tree: Any) -> str:
  """`make_hash` of a nested dict of arrays, NumPy's or JAX's, on whatever devices; every process of
  a job must call it.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  arrays = {jax.tree_util.keystr(path, simple=True, separator='/'): x for path, x in leaves}
  is_spread = not all(_is_whole(x) for x in arrays.values())
  parts = []
  for path, x in arrays.items():
    # What every process holds whole is the first one's to count.
    if not (is_spread and _is_whole(x) and jax.process_index() > 0):
      parts += _list_own_parts(path, x)
  with concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
    total = sum(threads.map(lambda part: add_up(part()), parts))
  if is_spread:
    total = sum(hosts.exchange('adding up the weights', total))
  kinds = {path: (tuple(x.shape), np.dtype(x.dtype)) for path, x in arrays.items()}
  return make_hash(kinds, total)


def _list_own_parts(path: str, x: Any):
  """Calls that fetch the parts of `x` that this process has to add up."""
  shape = tuple(x.shape)
  if _is_whole(x):
    starts = (0,) * len(shape)
    return [lambda: Part(path, shape, starts, np.asarray(x))]
  calls = []
  for shard in x.addressable_shards:
    # Of copies, the first one counts.
    if shard.replica_id == 0:
      starts = tuple(index.start or 0 for index in shard.index)
      calls.append(
        lambda shard=shard, starts=starts: Part(path, shape, starts, np.asarray(shard.data))
      )
  return calls


def _is_whole(x: Any) -> bool:
  return not isinstance(x, jax.Array) or x.is_fully_addressable


def _list_blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
  """Slices of a matrix of about `_BLOCK` numbers each."""
  height = max(1, _BLOCK // columns)
  for top in range(0, rows, height):
    for left in range(0, columns, _BLOCK):
      yield (
        slice(top, min(top + height, rows)),
        slice(left, min(left + _BLOCK, columns)),
      )


def _mix(x: np.ndarray) -> np.ndarray:
  """Every bit of each number depends on every bit that it had; in place."""
  x ^= x >> np.uint64(30)
  x *= _MIX_1
  x ^= x >> np.uint64(27)
  x *= _MIX_2
  x ^= x >> np.uint64(31)
  return x


def _describe(path: str, shape: Sequence[int], dtype: np.dtype) -> str:
  return f'{path} {np.dtype(dtype)} {tuple(shape)}'
