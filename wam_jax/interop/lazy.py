"""Weights that are not in memory: anything with a shape, a dtype and `read()`.

A checkpoint is opened as a dict of these by name. Converting it then reads one after the other, so
that no whole file is ever in memory.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
from etils import epath

# What weights can be rounded to, by the name that users give; None keeps them as they are.
DTYPES = {
  'keep': None,
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float32': np.dtype(np.float32),
}


class Weight(Protocol):
  """An array that is read when it is needed, and forgotten."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  def read(self) -> np.ndarray: ...


class Shape(NamedTuple):
  """What is known of an array before it is written."""

  shape: tuple[int, ...]
  dtype: np.dtype


class Stored(NamedTuple):
  """A contiguous array in a file.

  Attributes:
    path: the file.
    start: the offset of its first byte there.
    shape: its sizes.
    dtype: the type of its numbers, little-endian.
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
        f'{self.path} ends inside an array; it was cut while it was read. Copy or download it '
        'again.'
      )
    return np.frombuffer(content, self.dtype).reshape(self.shape)


def nbytes(weight: Weight | Shape) -> int:
  """Bytes of an array that need not be in memory."""
  return math.prod(weight.shape) * weight.dtype.itemsize


def count_dtypes(weights: Iterable[Weight]) -> dict[str, int]:
  """Parameters by dtype name."""
  counts: collections.Counter[str] = collections.Counter()
  for weight in weights:
    counts[str(weight.dtype)] += math.prod(weight.shape)
  return dict(counts)
