"""What a row of the weight tables is: PyTorch name, our path, and the change of layout, exact in
both directions.

The tables beside this file (`dit`, `vae`, `text`, `image`) are the only places that know PyTorch
spelling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import einops
import numpy as np


class Row(NamedTuple):
  """One weight, or one weight of every layer.

  Attributes:
    torch: PyTorch name; `{}` stands for the layer.
    path: ours, '/'-separated; with layers, the layer is axis 0 of our array.
    layout: einops pattern 'PyTorch axes -> our axes' of one layer.
    sizes: of every axis in `layout`.
    layers: how many, 0 where the weight exists once.
  """

  torch: str
  path: str
  layout: str
  sizes: Mapping[str, int]
  layers: int = 0

  @property
  def names(self) -> list[str]:
    """PyTorch names of all layers."""
    return [self.torch.format(i) for i in range(self.layers)] if self.layers else [self.torch]

  @property
  def torch_shape(self) -> tuple[int, ...]:
    """Shape of each PyTorch array."""
    return _shape(self.layout.split('->')[0], self.sizes)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of our array, layers included."""
    shape = _shape(self.layout.split('->')[1], self.sizes)
    return (self.layers, *shape) if self.layers else shape

  def to_ours(self, weight: np.ndarray) -> np.ndarray:
    """One PyTorch array, of one layer, in our layout (a view where NumPy can)."""
    return einops.rearrange(weight, self.layout, **self._sizes())

  def to_torch(self, parameter: np.ndarray) -> np.ndarray:
    """Inverse of `to_ours`."""
    left, right = self.layout.split('->')
    return einops.rearrange(parameter, f'{right} -> {left}', **self._sizes())

  def _sizes(self):
    return {axis: self.sizes[axis] for axis in _axes(self.layout)}


def list_mismatches(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
  """One line per PyTorch weight that is missing, unexpected or of another shape than the rows
  say.
  """
  want = {name: row.torch_shape for row in rows for name in row.names}
  return (
    [f'{name} is missing; expected {list(want[name])}' for name in want if name not in shapes]
    + [f'{name} {list(shape)} is unexpected' for name, shape in shapes.items() if name not in want]
    + [
      f'{name} is {list(shapes[name])}; expected {list(shape)}'
      for name, shape in want.items()
      if name in shapes and tuple(shapes[name]) != shape
    ]
  )


def to_params(rows: Iterable[Row], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Nested parameters from a PyTorch state dict; for small models, large ones are streamed by
  `interop.io`.

  Raises:
    ValueError: weights missing, left over or misshapen, up to ten.
  """
  rows = list(rows)
  problems = list_mismatches(rows, {name: w.shape for name, w in weights.items()})
  if problems:
    raise ValueError(
      'The weights do not match the model:\n  '
      + '\n  '.join(problems[:10])
      + '\nCheck the sizes in the config and the checkpoint layout.'
    )
  params: dict[str, Any] = {}
  for row in rows:
    arrays = [row.to_ours(np.asarray(weights[name])) for name in row.names]
    *parents, leaf = row.path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.stack(arrays) if row.layers else arrays[0]
  return params


def to_weights(rows: Iterable[Row], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """PyTorch state dict of nested parameters (or gradients of their form); inverse of
  `to_params`.
  """
  weights = {}
  for row in rows:
    leaf = look_up(params, row.path)
    layers = leaf if row.layers else [leaf]
    weights.update(
      {name: row.to_torch(np.asarray(w)) for name, w in zip(row.names, layers, strict=True)}
    )
  return weights


def look_up(params: Mapping[str, Any], path: str) -> Any:
  """The leaf of nested dicts at a '/'-separated path."""
  for part in path.split('/'):
    params = params[part]
  return params


def _axes(pattern: str) -> set[str]:
  return {axis for axis in re.findall(r'\w+', pattern) if axis != '1'}


def _shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
  groups = re.findall(r'\(([^)]*)\)|(\w+)', side)
  return tuple(
    math.prod(int(axis) if axis == '1' else sizes[axis] for axis in (group or single).split())
    for group, single in groups
  )
