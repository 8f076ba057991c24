"""What is kept so that it need not be made twice: values in memory, and small derived files beside
a dataset.
"""

from __future__ import annotations

import collections
import hashlib
import pathlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from wam_jax import remote

T = TypeVar('T')
FALLBACK = pathlib.Path('~/.cache/wam_jax')  # For what belongs beside a dataset that is read-only.


class Cache:
  """Least recently used values, at most `gib` of them; safe under threads.

  `get` may call `make` twice for one key when two threads miss together: cheaper than holding the
  lock meanwhile.
  """

  def __init__(self, gib: float):
    self._limit = int(gib * 2**30)
    self._clear()

  def _clear(self):
    self._lock, self._used = threading.Lock(), 0
    self._values: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()

  @property
  def used(self) -> int:
    """Bytes held."""
    return self._used

  def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
    """The value of `key`, made now if it is not held. Values have `nbytes`."""
    with self._lock:
      if key in self._values:
        self._values.move_to_end(key)
        return self._values[key][0]
    value = make()
    with self._lock:
      if key not in self._values:
        self._values[key] = value, value.nbytes
        self._used += value.nbytes
      while self._used > self._limit and self._values:
        self._used -= self._values.popitem(last=False)[1][1]
    return value

  def __getstate__(self):  # A worker process starts with an empty cache.
    return self._limit

  def __setstate__(self, limit):
    self._limit = limit
    self._clear()


def read_beside(path: epath.Path, name: str) -> bytes | None:
  """What `write_beside` left for the dataset at `path`, or None."""
  found = find_beside(path, name)
  return found.read_bytes() if found.exists() else None


def find_beside(path: epath.Path, name: str) -> epath.Path:
  """Where `read_beside` looks first: the file beside the dataset, or the fallback if only that
  exists.
  """
  beside, fallback = _beside(path, name)
  return fallback if fallback.exists() and not beside.exists() else beside


def write_beside(path: epath.Path, name: str, content: bytes) -> epath.Path:
  """Writes a small derived file into the dataset's directory, or under ~/.cache/wam_jax where that
  is read-only.

  A reader sees the old file or the whole new one. Returns where it went.
  """
  beside, fallback = _beside(path, name)
  try:
    return write_atomic(beside, content)
  except OSError:
    fallback.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(fallback, content)


def _beside(path: epath.Path, name: str) -> tuple[epath.Path, epath.Path]:
  home = epath.Path(FALLBACK).expanduser()
  return path / name, home / hashlib.sha256(str(path).encode()).hexdigest()[:16] / name


def write_atomic(target: epath.Path, content: bytes) -> epath.Path:
  """Writes a small file; a reader sees the old one or the whole new one. Returns `target`."""
  if remote.is_remote(target):
    target.write_bytes(content)
    return target
  partial = target.parent / f'.{target.name}.{uuid.uuid4().hex[:8]}'
  try:
    partial.write_bytes(content)
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)
  return target


def progress(
  items: Iterable[T],
  total: float,
  what: str,
  every_s: float = 5.0,
  amount: Callable[[T], float] = lambda item: 1,
  unit: str = '',
) -> Iterator[T]:
  """Yields `items`, telling stderr rate and time left every few seconds.

  Args:
    total: of what `amount` counts, in `unit`: items, gigabytes, ...
  """
  start = last = time.monotonic()
  done = 0.0
  for item in items:
    yield item
    done += amount(item)
    if time.monotonic() - last > every_s:
      last = time.monotonic()
      rate = max(done, 1e-9) / (last - start)
      print(
        f'{what}: {round(done, 2):.10g}/{round(total, 2):.10g}{unit}, {rate:.3g}{unit}/s, '
        f'{(total - done) / rate:.0f} s left',
        file=sys.stderr,
      )
