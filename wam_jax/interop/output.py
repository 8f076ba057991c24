"""Where a conversion writes: a directory that appears only when it is complete, and what stderr
says meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator


@contextlib.contextmanager
def staged(output: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
  """A hidden directory beside `output` that takes its name when the block ends well, and vanishes
  otherwise.

  Args:
    size: bytes that are about to be written.
  Raises:
    ValueError: `output` is there already, or the disk is or becomes full.
  """
  if output.exists() and not (output.is_dir() and not any(output.iterdir())):
    raise ValueError(
      f'--output={output} exists already; nothing was changed. Pass another directory, or delete it.'
    )
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if size > free:
      raise ValueError(
        f'{output.parent} has {free / 1e9:.1f} GB free; up to {size / 1e9:.1f} GB are needed. Make '
        'room, or pass --output on another disk.'
      )
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{output.name}.', dir=output.parent))
  except OSError as e:
    raise ValueError(
      f'--output={output} cannot be written: {e.strerror}. Pass a directory you may write to.'
    ) from e
  try:
    yield partial
    partial.chmod(0o777 & ~_umask())
    _sync(partial)
    partial.replace(output)
    _sync_directory(output.parent)
  except OSError as e:
    raise ValueError(
      f'--output={output} could not be written ({shutil.disk_usage(output.parent).free / 1e9:.1f} GB '
      f'free): {e}. What was written is removed again; make room and repeat.'
    ) from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _sync(directory: pathlib.Path) -> None:
  for place, _, names in os.walk(directory):
    for name in names:
      with open(os.path.join(place, name), 'rb') as f:
        os.fsync(f.fileno())
    _sync_directory(pathlib.Path(place))


def _sync_directory(directory: pathlib.Path) -> None:
  handle = os.open(directory, os.O_RDONLY)
  os.fsync(handle)
  os.close(handle)


class Progress:
  """Tells stderr, every few seconds, how many bytes are done, how fast, and how long the rest
  takes.
  """

  def __init__(self, what: str, total: int, every_s: float = 5.0):
    self._what, self._total, self._every_s = what, total, every_s
    self._done, self._start = 0, time.monotonic()
    self._last = self._start

  def add(self, size: int) -> None:
    """`size` more bytes are done."""
    self._done += size
    now = time.monotonic()
    if now - self._last > self._every_s:
      self._last = now
      rate = self._done / (now - self._start)
      print(
        f'{self._what}: {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB, {rate / 1e6:.0f} MB/s, '
        f'{(self._total - self._done) / rate:.0f} s left',
        file=sys.stderr,
        flush=True,
      )
