"""Values kept in memory so that they need not be made twice."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any


class Cache:
  """Least recently used values, at most `gib` of them; safe under threads.

  `get` may call `make` twice for one key when two threads miss together: cheaper than holding the
  lock meanwhile.
  """

  def __init__(self, gib: float):
    self._limit = int(gib * 2**30)
    self._clear()

  def _clear(self):
    self._lock = threading.Lock()
    self._used = 0
    self._values: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()

  @property
  def limit(self) -> int:
    """Bytes that it holds at most."""
    return self._limit

  @property
  def used(self) -> int:
    """Bytes held."""
    return self._used

  def __contains__(self, key: Hashable) -> bool:
    return key in self._values

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
