"""Parameters as control keeps them on a device: in the dtype that the model computes in, or
quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.control import apart
from wam_jax.control import places
from wam_jax.control import quantize
from wam_jax.control import split as split_lib
from wam_jax.models import quantized

# The text encoder that is trained with the model computes in float32; so do norms with weights,
# which are known by having a bias beside their scale.
_WIDE = 'text_encoder'

_AS_TRAINED = cfg.SampleConfig()


def place(
  params: Any,
  frozen: Any,
  model: cfg.ModelConfig,
  sample: cfg.SampleConfig = _AS_TRAINED,
  split: split_lib.Split | None = None,
) -> tuple[Any, Any]:
  """(parameters, frozen encoders) on the device, or each part on its device of `split`; those that
  lie there so already stay. The layers are apart where that suits the devices.

  One parameter goes after the other: beside those that are given the host holds one more at a time.

  Raises:
    ValueError: `sample.precision` cannot be had of these weights or of this machine.
  """
  quantize.check_device(sample.precision, jax.devices()[0])
  platform = jax.default_backend()
  frozen_split = None
  wanted: dict[str, Any] = {}
  if split is not None:
    platform = split.platform
    frozen_split = sharding.frozen_shardings(frozen, split.mesh, split.rules)
    narrow(split.params(model), model, sample, put=wanted.__setitem__)
  were_apart = apart.is_apart(params)
  cuts = apart.suits(model, platform) and not were_apart

  def put(path: str, x: Any) -> Any:
    is_of_layers = path.startswith(f'{apart.STACK}/')
    where = None if split is None else jax.tree.map(lambda like: like.sharding, wanted[path])
    if is_of_layers and (cuts or were_apart):
      where = jax.tree.map(sharding.drop_axis, where)
    if isinstance(x, quantized.Kernel):
      one = jax.tree.map(lambda part: part[0], x) if cuts else x
      where = places.place_kernel(one, where, platform)
    to_device = apart.cut if is_of_layers and cuts else jax.device_put
    return to_device(x, where)

  placed = narrow(params, model, sample, put)
  if cuts:
    placed = apart.by_layer(placed)
  return placed, jax.device_put(frozen, frozen_split)


def count_bytes(params: Any) -> int:
  """Bytes that the buffers of the first device take."""
  shards = [x.addressable_shards[0].data for x in jax.tree.leaves(params)]
  return sum(shard.on_device_size_in_bytes() for shard in shards)


def narrow(
  params: Any,
  model: cfg.ModelConfig,
  sample: cfg.SampleConfig = _AS_TRAINED,
  put: Callable[[str, Any], Any] = lambda _, x: x,
) -> Any:
  """Parameters in the model's dtype wherever the model would round them to it at each use: what it
  computes is the same bit for bit, of half the bytes. Quantized ones are less exact.

  Args:
    params: arrays, or their shapes.
    model: the model, in the dtype of `sample.precision` where that names one.
    put: what is done with each array that is ready, which is told its path.
  Raises:
    ValueError: a rule of `sample.quantized` matches nothing.
  """
  model = cfg.choose_dtype(model, sample)
  dtype = jnp.dtype(model.dtype)
  chosen: frozenset[str] = frozenset()
  if sample.precision in quantize.SCHEMES:
    quantize.check_installed(sample.precision)
    one = {**params, apart.STACK: params[apart.STACK][0]} if apart.is_apart(params) else params
    chosen = quantize.find_kernels(one, sample.quantized)

  def walk(tree: Any, path: str, is_wide: bool = False, is_layer: bool = False) -> Any:
    name = path.rsplit('/', 1)[-1]
    is_wide = is_wide or name == _WIDE or set(tree) == {'scale', 'bias'}
    done = {}
    for key, branch in tree.items():
      below = f'{path}/{key}' if path else key
      if isinstance(branch, dict):
        done[key] = walk(branch, below, is_wide, is_layer)
      elif isinstance(branch, tuple):
        done[key] = tuple(walk(layer, below, is_layer=True) for layer in branch)
      elif is_wide:
        done[key] = put(below, branch)
      elif isinstance(branch, quantized.Kernel) or below not in chosen:
        done[key] = put(below, _cast(branch, dtype))
      else:
        make = quantize.quantize_layer if is_layer else quantize.quantize
        kernel = make(branch, tree['b'], quantize.SCHEMES[sample.precision])
        done[key] = put(below, kernel)
    return done

  return walk(params, '')


def _cast(x: Any, dtype: jnp.dtype) -> Any:
  """`x` in `dtype`, if that is narrower."""
  if isinstance(x, quantized.Kernel) or x.dtype.itemsize <= dtype.itemsize:
    return x
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
  return x.astype(dtype)
