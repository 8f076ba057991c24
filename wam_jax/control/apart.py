"""The layers' weights one by one, in place of arrays of all layers.

On CPUs and GPUs XLA copies a layer's part of such an array before it multiplies by it: every pass
then writes and reads all weights once more. TPUs read the part where it lies, and compile one layer
in a loop in place of all of them. Narrow layers are copied by a CPU in less time than it takes to
hand over so many arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.models import quantized

STACK = 'blocks'  # Where the layers lie among the parameters.
LEAST_WIDTH = 256  # Of layers that a CPU is given one by one.


def suits(model: cfg.ModelConfig, platform: str) -> bool:
  """Whether layers are to be apart on 'cpu', 'gpu' or 'tpu'."""
  return platform == 'gpu' or (platform == 'cpu' and model.dim >= LEAST_WIDTH)


def is_apart(params: Any) -> bool:
  """Whether the layers of parameters are a tuple."""
  return isinstance(params[STACK], tuple)


def cut(stack: Any, where: Any = None) -> tuple[Any, ...]:
  """Each layer's part of an array of all layers, or of a quantized kernel, on the device.

  Args:
    where: its sharding, as `jax.device_put` takes it.
  """

  def put(layer: int) -> Any:
    return jax.device_put(jax.tree.map(lambda x: _take(x, layer), stack), where)

  return tuple(map(put, range(len(jax.tree.leaves(stack)[0]))))


def _take(x: Any, layer: int) -> Any:
  # From the host's view of it: nothing is compiled for a slice.
  on_host = isinstance(x, jax.Array) and next(iter(x.devices())).platform == 'cpu'
  return (np.asarray(x) if on_host else x)[layer]


def take(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters whose layers are apart, of those of all layers."""
  is_kernel = lambda x: isinstance(x, quantized.Kernel)
  return by_layer({**params, STACK: jax.tree.map(cut, params[STACK], is_leaf=is_kernel)})


def by_layer(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters with a tuple of layers, of those with a tuple for each array of all layers."""
  is_cut = lambda x: isinstance(x, tuple)
  layers = len(jax.tree.leaves(params[STACK], is_leaf=is_cut)[0])
  pick = lambda layer: jax.tree.map(lambda parts: parts[layer], params[STACK], is_leaf=is_cut)
  return {**params, STACK: tuple(pick(layer) for layer in range(layers))}


def describe(params: dict[str, Any]) -> dict[str, Any]:
  """Shapes of parameters whose layers are apart, of those of all layers, with their shardings."""

  def describe_layer(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding.drop_axis(x.sharding))

  layers = jax.tree.leaves(params[STACK])[0].shape[0]
  return {**params, STACK: (jax.tree.map(describe_layer, params[STACK]),) * layers}
