"""The files of weights of an export: which rows go into which, and writing them from one of our
checkpoints.

Arrays pass through memory one weight at a time, or as many layers at a time as share a chunk on
disk.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from wam_jax import progress as progress_lib
from wam_jax.interop import lazy
from wam_jax.interop import own
from wam_jax.interop.files import orbax
from wam_jax.interop.files import safetensors
from wam_jax.interop.table import rows as rows_lib


def keep_whole(name: str) -> list[str]:
  """A weight goes into the file as the row has it."""
  return [name]


@dataclasses.dataclass(frozen=True)
class Section:
  """One part of the model within a set of files.

  Attributes:
    part: 'dit', 'text', 'image' or 'tokenizer'.
    rows: its weights.
    prefix: what stands before their names in the file.
    split: the names of the tensors that, joined along their first axis, are a row's weight.
  """

  part: str
  rows: list[rows_lib.Row]
  prefix: str = ''
  split: Callable[[str], list[str]] = keep_whole


class Shards(NamedTuple):
  """One set of files, FOLDER/STEM*.safetensors, and what goes into it."""

  folder: str
  stem: str
  sections: list[Section]


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which numbers of a checkpoint of ours are exported.

  Attributes:
    source: the checkpoint.
    category: the embodiment whose action modules are exported; other layouts have room for one.
    dtype: what every weight is rounded to; None keeps it.
    zeroed: by our path, the row, along axis 1, from which on an array is written as zeros.
  """

  source: own.Own
  category: int
  dtype: np.dtype | None
  zeroed: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def announce(self, files: Shards) -> dict[str, lazy.Shape]:
    """Every tensor of the files, in their order: part by part, layer by layer."""
    shapes = {}
    for section in files.sections:
      held = self.source.part(section.part)
      layers = max((row.layers for row in section.rows), default=0)
      # What exists once comes with the first layer.
      for layer in range(max(1, layers)):
        for row in section.rows:
          if layer >= max(1, row.layers):
            continue
          shape = row.torch_shape
          dtype = self.dtype or held[row.path].dtype
          names = section.split(row.names[layer])
          # The pieces are of one size: CLIP's query, key and value.
          if len(names) > 1:
            shape = (shape[0] // len(names), *shape[1:])
          for name in names:
            shapes[section.prefix + name] = lazy.Shape(shape, dtype)
    return shapes

  def write(
    self, files: Shards, directory: pathlib.Path, shard_bytes: int, progress: progress_lib.Progress
  ) -> None:
    """Writes the files.

    Args:
      directory: where `files.folder` is made.
      shard_bytes: the size of one file, at most, but for a single larger weight.
      progress: is told of each weight.
    """
    announced = self.announce(files)
    folder = directory / files.folder
    with safetensors.Writer(folder, files.stem, announced, shard_bytes) as writer:
      for section in files.sections:
        held = self.source.part(section.part)
        for row in section.rows:
          for name, weight in self._convert(row, held[row.path]):
            names = [section.prefix + piece for piece in section.split(name)]
            pieces = np.split(weight, len(names)) if len(names) > 1 else [weight]
            for piece_name, piece in zip(names, pieces, strict=True):
              dtype = announced[piece_name].dtype
              writer.write(piece_name, piece.astype(dtype, copy=False))
            progress.add(weight.nbytes)

  def _convert(self, row: rows_lib.Row, array: orbax.Array) -> Iterator[tuple[str, np.ndarray]]:
    """(name, weight in PyTorch's layout), one after the other."""
    if not row.layers:
      part = ()
      # A slice, because the axis stays: one category.
      if _has_categories(row):
        part = slice(self.category, self.category + 1)
      numbers = array.read(part)
      if row.path in self.zeroed:
        numbers = np.array(numbers)
        numbers[:, self.zeroed[row.path] :] = 0
      yield row.torch, row.to_torch(numbers)
      return
    # As many layers as share a chunk on disk: it would be read again for each of them.
    for start in range(0, row.layers, array.layers):
      stop = min(start + array.layers, row.layers)
      block = array.read(slice(start, stop))
      for name, layer in zip(row.names[start:stop], block, strict=True):
        yield name, row.to_torch(layer)


def _has_categories(row: rows_lib.Row) -> bool:
  """Whether axis 0 of our array is the embodiment."""
  _, ours = row.layout.split('->')
  return ours.split()[:1] == ['E']
