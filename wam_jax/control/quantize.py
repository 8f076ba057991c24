"""Parameters with one byte a number: which of them, how they are made, and which machine can
multiply them.

Products are of `models.quantized`; the way to the device is of `control.weights`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from wam_jax import chips
from wam_jax import finetuning
from wam_jax.models import quantized

# What all kernels lie below that can be quantized: the scanned stack of layers.
_STACK = 'blocks'
# First of NVIDIA's generations that multiplies a type. Source: CUDA C++ programming guide, table of
# arithmetic by compute capability.
_CAPABILITIES = {'int8': (7, 5), 'float8_e4m3fn': (8, 9)}


class Scheme(NamedTuple):
  """How a precision quantizes.

  Attributes:
    dtype: type of the values.
    rounds_inputs: as `quantized.Kernel` has it.
  """

  dtype: str
  rounds_inputs: bool


SCHEMES = {
  'int8': Scheme('int8', rounds_inputs=False),
  'w8a8': Scheme('int8', rounds_inputs=True),
  'fp8': Scheme('float8_e4m3fn', rounds_inputs=True),
}


def find_kernels(params: Mapping[str, Any], rules: Sequence[str]) -> frozenset[str]:
  """Paths of the kernels that rules match.

  Args:
    rules: patterns of paths or of modules, as `config.trainable` has them.
  Raises:
    ValueError: a rule matches no kernel of the layers: what else there is cannot be quantized.
  """
  kernels = [
    path
    for path in finetuning.list_paths(params)
    if path.startswith(f'{_STACK}/') and path.endswith('/w')
  ]
  found: set[str] = set()
  unmatched = []
  for rule in rules:
    matched = [path for path in kernels if finetuning.matches(path, rule)]
    if not matched:
      unmatched.append(rule)
    found.update(matched)
  if unmatched or not rules:
    raise ValueError(
      f'sample.quantized={tuple(rules)}: no kernel of the layers matches '
      f'{", ".join(map(repr, unmatched)) or "an empty tuple"}; use {_STACK!r} or patterns of '
      f'{", ".join(kernel.removesuffix("/w") for kernel in kernels)}. Attention itself, norms and '
      'everything outside of the layers stay as they are.'
    )
  return frozenset(found)


def check_installed(precision: str) -> None:
  """Raises ValueError where the library is missing."""
  if precision in SCHEMES and importlib.util.find_spec('qwix') is None:
    raise ValueError(
      f"sample.precision={precision!r} needs the package qwix: pip install -e '.[quant]'."
    )


def check_device(precision: str, device: Any) -> None:
  """Raises ValueError where a device does not multiply what a precision has.

  Processors pass: they convert, slowly and to the same numbers.
  """
  if not _multiplies_narrow(precision) or device.platform == 'cpu':
    return
  chip = chips.of_kind(device.device_kind)
  if chip is not None:
    check_chip(precision, chip)
    return
  capability = str(device.compute_capability)
  if tuple(map(int, capability.split('.'))) < _CAPABILITIES[SCHEMES[precision].dtype]:
    _refuse(precision, f'{device.device_kind} (compute capability {capability})')


def check_chip(precision: str, chip: chips.Chip) -> None:
  """`check_device` of a chip that is not there."""
  if _multiplies_narrow(precision) and SCHEMES[precision].dtype not in chip.narrow_flops:
    _refuse(precision, chip.name)


def _multiplies_narrow(precision: str) -> bool:
  return precision in SCHEMES and SCHEMES[precision].rounds_inputs


def _refuse(precision: str, machine: str) -> None:
  raise ValueError(
    f'{machine} does not multiply {SCHEMES[precision].dtype}, which '
    f'sample.precision={precision!r} (--precision) asks for: it would be slower than bfloat16, and '
    "less exact. Take 'int8', whose products are bfloat16's, 'bfloat16', or another machine."
  )


def quantize(w: Any, bias: Any, scheme: Scheme) -> quantized.Kernel:
  """The kernels of all layers, quantized on the host one layer at a time; leaves may be abstract.

  Args:
    w: [L, ...], summed axes first.
    bias: [L, ...], of the axes that are not summed over.
  """
  kept = bias.ndim - 1
  summed = w.ndim - 1 - kept
  if w.shape[1 + summed :] != bias.shape[1:]:
    raise ValueError(f'No bias {bias.shape} is of a kernel {w.shape} whose last axes it has.')
  shape = (w.shape[0], *(1,) * summed, *w.shape[1 + summed :])
  if isinstance(w, jax.ShapeDtypeStruct):
    values, scale = _describe(w, scheme, shape)
  else:
    values = np.empty(w.shape, jnp.dtype(scheme.dtype))
    scale = np.empty(shape, np.float32)
    for layer, (one, scale_of_one) in enumerate(_quantize_layers(w, summed, scheme)):
      values[layer] = one
      scale[layer] = scale_of_one
  return quantized.Kernel(values=values, scale=scale, rounds_inputs=scheme.rounds_inputs)


def quantize_layer(w: Any, bias: Any, scheme: Scheme) -> quantized.Kernel:
  """`quantize` of the kernel of one layer, whose arrays have no axis of layers."""
  return jax.tree.map(lambda x: x[0], quantize(w[None], bias[None], scheme))


def _quantize_layers(
  w: Any, summed: int, scheme: Scheme
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  host = jax.local_devices(backend='cpu')[0]
  per_output = tuple(range(summed, w.ndim - 1))
  for layer in range(len(w)):
    # Without a name, which would hold it while the next one is copied.
    yield jax.device_get(
      _round(jax.device_put(np.asarray(w[layer]), host), scheme.dtype, per_output)
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _round(w: jax.Array, dtype: str, per_output: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """(values, scale) of the kernel of one layer."""
  import qwix

  rounded = qwix.quantize(w.astype(jnp.float32), jnp.dtype(dtype), channelwise_axes=per_output)
  return rounded.qvalue, rounded.scale


def _describe(w: jax.ShapeDtypeStruct, scheme: Scheme, shape: tuple[int, ...]) -> tuple[Any, Any]:
  """(values, scale) as shapes; an axis of size 1 is not split over devices."""
  split = w.sharding
  if isinstance(split, NamedSharding):
    names = (*split.spec, *(None,) * (w.ndim - len(split.spec)))
    names = [name if n > 1 else None for name, n in zip(names, shape)]
    split = NamedSharding(split.mesh, PartitionSpec(*names))
  values = jax.ShapeDtypeStruct(w.shape, jnp.dtype(scheme.dtype), sharding=w.sharding)
  return values, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
