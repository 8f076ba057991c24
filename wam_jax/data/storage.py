"""Files that appear whole or not at all, and what long work says of itself."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from etils import epath

from wam_jax import remote

T = TypeVar('T')


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
