"""The ends of a dataset's shards, read once each: whether a shard is there, and which one it is.

A fingerprint is of a shard's size and its last 128 KiB, mostly the positions of its last records,
so that a shard that was written anew is noticed for the price of one read. Fingerprints are kept in
frame indices, statistics and checkpoints: a change of what they are of makes all of these stale.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath

from wam_jax import storage

_END = 128 * 1024
_THREADS = 16  # Network disks answer slowly, but many at a time.


class End(NamedTuple):
  """What is read of a shard to tell it from others.

  Attributes:
    size: bytes of the shard.
    tail: its last 128 KiB, or all of it.
  """

  size: int
  tail: bytes

  @property
  def fingerprint(self) -> str:
    """Changes when the size of the shard or its end does."""
    return hashlib.sha256(b'%d:%s' % self).hexdigest()[:16]


class Ends:
  """The ends of shards by path, each read at the first call that asks for it.

  All are held, 128 KiB a shard, since the fingerprint of a split runs over the ends of its shards
  in order, and several splits may share a shard; drop the object when the splits are open.
  """

  def __init__(self):
    self._ends: dict[str, End | None] = {}

  def read(self, paths: Sequence[str]) -> list[End | None]:
    """The ends of these shards, None for those that are not there."""
    new = [path for path in dict.fromkeys(paths) if path not in self._ends]
    self._ends.update(zip(new, read_ends(new)))
    return [self._ends[path] for path in paths]


def read_ends(paths: Iterable[str | os.PathLike[str]]) -> list[End | None]:
  """The ends of these files, None for those that are not there."""
  paths = [os.fspath(path) for path in paths]
  if any(map(storage.is_remote, paths)):
    return _read_objects(paths)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(read_end, paths))


def read_end(path: str | os.PathLike[str]) -> End | None:
  """The end of a local file, None if it is not there."""
  try:
    # One read at a place, without the buffers of a file object.
    handle = os.open(path, os.O_RDONLY)
  except FileNotFoundError:
    return None
  try:
    size = os.fstat(handle).st_size
    return End(size, os.pread(handle, _END, max(0, size - _END)))
  finally:
    os.close(handle)


def _read_objects(paths: Sequence[str]) -> list[End | None]:
  """The ends of objects: a request lists a directory with its sizes, and all ends are asked for at
  the same time.
  """
  folders = {path.rpartition('/')[0] for path in paths}
  sizes = {
    f'{folder}/{name}': size
    for folder in folders
    for name, size in storage.list_sizes(epath.Path(folder)).items()
  }
  there = [path for path in dict.fromkeys(paths) if path in sizes]
  starts = [max(0, sizes[path] - _END) for path in there]
  stops = [sizes[path] for path in there]
  tails = storage.open_store().cat_ranges(there, starts, stops, on_error='raise')
  found = {path: End(sizes[path], tail) for path, tail in zip(there, tails)}
  return [found.get(path) for path in paths]
