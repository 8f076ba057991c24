"""Kernels of one byte a number, and products with them.

Which kernels are quantized, and how they come to the device, is of `control.quantize`. The
arithmetic is qwix's (extra `quant`), which is imported where it is used.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from wam_jax import types


@flax.struct.dataclass(kw_only=True)
class Kernel:
  """A kernel as `values * scale`, in the place of the float one among the parameters.

  Attributes:
    values: int8 or float8_e4m3fn, of the kernel's shape.
    scale: float32, one for each output; of size 1 along axes that are summed over.
    rounds_inputs: whether a product rounds its inputs to the same type, each token by a scale of
      its own. Without it values are widened to the inputs' type, which holds int8 exactly.
  """

  values: types.Array
  scale: types.Array
  rounds_inputs: bool = flax.struct.field(pytree_node=False)


def multiply(equation: str, x: jax.Array, kernel: Kernel) -> jax.Array:
  """The einsum of `x` and a quantized kernel in the dtype of `x`, summed in float32 or int32.

  Args:
    equation: as `layers.Einsum` has it: of two letters or more, each once an operand.
  """
  if not kernel.rounds_inputs:
    return _multiply_widened(equation, x, kernel)
  import qwix

  given, _, out = equation.replace('->', ',').split(',')
  per_token = [i for i, letter in enumerate(given) if letter in out]
  # Rounded from float32: x / scale in bfloat16 would be rounded before it is rounded.
  inputs = qwix.quantize(x.astype(jnp.float32), kernel.values.dtype, channelwise_axes=per_token)
  weights = qwix.QArray(qvalue=kernel.values, scale=kernel.scale)
  return qwix.einsum(equation, inputs, weights).astype(x.dtype)


def _multiply_widened(equation: str, x: jax.Array, kernel: Kernel) -> jax.Array:
  """Scaled after the product: nothing but the values themselves is rounded."""
  _, letters, out = equation.replace('->', ',').split(',')
  wide = kernel.values.astype(x.dtype)
  y = jnp.einsum(equation, x, wide, preferred_element_type=jnp.float32)
  sizes = [kernel.scale.shape[letters.index(i)] if i in letters else 1 for i in out]
  return (y * kernel.scale.reshape(sizes)).astype(x.dtype)
