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

from wam_jax.interop import errors


class Row(NamedTuple):
  """One weight, or one weight of every layer.

  Attributes:
    torch: the PyTorch name; `{}` stands for the layer.
    path: our path, '/'-separated; with layers, the layer is axis 0 of our array.
    layout: the einops pattern 'PyTorch axes -> our axes' of one layer.
    sizes: the size of every axis in `layout`.
    layers: the number of layers, 0 where the weight exists once.
  """

  torch: str
  path: str
  layout: str
  sizes: Mapping[str, int]
  layers: int = 0

  @property
  def names(self) -> list[str]:
    """PyTorch names of all layers."""
    if not self.layers:
      return [self.torch]
    return [self.torch.format(i) for i in range(self.layers)]

  @property
  def torch_shape(self) -> tuple[int, ...]:
    """Shape of each PyTorch array."""
    theirs, _ = self.layout.split('->')
    return _compute_shape(theirs, self.sizes)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of our array, layers included."""
    _, ours = self.layout.split('->')
    shape = _compute_shape(ours, self.sizes)
    return (self.layers, *shape) if self.layers else shape

  def to_ours(self, weight: np.ndarray) -> np.ndarray:
    """One PyTorch array, of one layer, in our layout (a view where NumPy can)."""
    return einops.rearrange(weight, self.layout, **self._select_sizes())

  def to_torch(self, parameter: np.ndarray) -> np.ndarray:
    """Inverse of `to_ours`."""
    theirs, ours = self.layout.split('->')
    return einops.rearrange(parameter, f'{ours} -> {theirs}', **self._select_sizes())

  def _select_sizes(self) -> dict[str, int]:
    """The sizes of the axes that the layout has; einops refuses others."""
    axes = set(re.findall(r'\w+', self.layout)) - {'1'}
    return {axis: self.sizes[axis] for axis in axes}


def list_mismatches(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
  """One line per PyTorch weight that is missing, unexpected or of another shape than the rows
  say.
  """
  want = {name: row.torch_shape for row in rows for name in row.names}
  missing = {name: shape for name, shape in want.items() if name not in shapes}
  unexpected = {name: shape for name, shape in shapes.items() if name not in want}
  misshapen = {
    name: shape for name, shape in want.items() if name in shapes and tuple(shapes[name]) != shape
  }
  return [
    *(f'{name} is missing; expected {list(shape)}' for name, shape in missing.items()),
    *(f'{name} {list(shape)} is unexpected' for name, shape in unexpected.items()),
    *(
      f'{name} is {list(shapes[name])}; expected {list(shape)}' for name, shape in misshapen.items()
    ),
  ]


def to_params(rows: Iterable[Row], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Nested parameters from a PyTorch state dict; for small models, large ones are streamed by
  `interop.importing`.

  Raises:
    ValueError: weights missing, left over or misshapen, up to ten.
  """
  rows = list(rows)
  problems = list_mismatches(rows, {name: w.shape for name, w in weights.items()})
  errors.fail(
    'The weights do not match the model:',
    problems,
    'Check the sizes in the config and the checkpoint layout.',
  )
  params: dict[str, Any] = {}
  for row in rows:
    arrays = [row.to_ours(np.asarray(weights[name])) for name in row.names]
    *parents, leaf = row.path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    # Our blocks are scanned over axis 0.
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
    for name, w in zip(row.names, layers, strict=True):
      weights[name] = row.to_torch(np.asarray(w))
  return weights


def look_up(params: Mapping[str, Any], path: str) -> Any:
  """The leaf of nested dicts at a '/'-separated path."""
  for part in path.split('/'):
    params = params[part]
  return params


def _compute_shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
  """The shape that one side of a pattern stands for."""
  sizes = {**sizes, '1': 1}
  shape = []
  # Axes in parentheses are folded into one.
  for group, single in re.findall(r'\(([^)]*)\)|(\w+)', side):
    axes = (group or single).split()
    shape.append(math.prod(sizes[axis] for axis in axes))
  return tuple(shape)
