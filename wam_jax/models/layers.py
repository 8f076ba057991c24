"""Every `self.param` of the transformer: einsum layers, norms, modulation, embeddings of
numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import finetuning
from wam_jax import sharding
from wam_jax.models import quantized

Init = Callable[..., jax.Array]


def boxed(init: Init, axes: tuple[str, ...]) -> Init:
  """`init` whose result carries logical axis names for `sharding.state_shardings`."""
  return nn.with_partitioning(init, axes)


def multiply(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """The einsum of `x` and a kernel, of which each letter is either summed over or one of the output
  alone.

  The kernel is multiplied as it lies: `jnp.einsum` puts it first and sums its letters in any order,
  so that a CPU transposes it at each step.
  """
  given, kernel, out = equation.replace('->', ',').split(',')
  summed = [letter for letter in kernel if letter in given]
  axes = [given.index(letter) for letter in summed], [kernel.index(letter) for letter in summed]
  y = jax.lax.dot_general(x, w, (axes, ((), ())))
  natural = [letter for letter in given + kernel if letter not in summed]
  return jnp.transpose(y, [natural.index(letter) for letter in out])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def multiply_wide(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """The einsum of `x` and a float32 kernel in the dtype of `x`, with a gradient of the kernel that
  stays in float32 from the product on: so it is summed over devices.
  """
  return jnp.einsum(equation, x, w.astype(x.dtype))


def _multiply_forward(equation: str, x: jax.Array, w: jax.Array):
  return jnp.einsum(equation, x, w.astype(x.dtype)), (x, w)


def _multiply_backward(equation: str, kept: tuple[jax.Array, jax.Array], dy: jax.Array):
  x, w = kept
  given, kernel, out = equation.replace('->', ',').split(',')
  dx = jnp.einsum(f'{out},{kernel}->{given}', dy, w.astype(x.dtype))
  dw = jnp.einsum(f'{given},{out}->{kernel}', x, dy, preferred_element_type=jnp.float32)
  return dx, dw.astype(w.dtype)  # Float32, but for what is frozen in another dtype.


multiply_wide.defvjp(_multiply_forward, _multiply_backward)


@jax.custom_vjp
def add_wide(x: jax.Array, b: jax.Array) -> jax.Array:
  """`x` plus a float32 bias with as many axes, each as long or 1; its gradient as that of
  `multiply_wide`.
  """
  return x + b.astype(x.dtype)


def _add_forward(x: jax.Array, b: jax.Array):
  return x + b.astype(x.dtype), b


def _add_backward(b: jax.Array, dy: jax.Array):
  summed = tuple(axis for axis, size in enumerate(b.shape) if size == 1)
  return dy, jnp.sum(dy, summed, dtype=jnp.float32, keepdims=True).astype(b.dtype)


add_wide.defvjp(_add_forward, _add_backward)


class Einsum(nn.Module):
  """Linear layer as an einsum, with bias over the kernel's output letters and, where asked for, a
  low-rank adapter.

  Attributes:
    equation: activation, kernel -> output, as 'BTD,DNK->BNTK'.
    shape, axes: sizes and logical names of the kernel's axes, one per letter.
    dtype: dtype of the computation; parameters are float32, in control also narrower or quantized.
    kernel_init: initializer of the kernel; by default Xavier uniform over the contracted and kept
      letters.
    gradient_dtype: 'model' or 'float32', see `config.ModelConfig`.
    lora: sizes of an adapter, which adds alpha / rank * (x A) B. That is zero at first: A is
      uniform within 1 / sqrt(width in), as in `peft`, and B is zero. The contracted letters of the
      kernel must come first.
  """

  equation: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  dtype: Any = jnp.float32
  kernel_init: Init | None = None
  use_bias: bool = True
  gradient_dtype: str = 'model'
  lora: cfg.LoraConfig | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # A letter of the kernel is either summed over, with the activation, or an axis of the output.
    _, kernel, out = self.equation.replace('->', ',').split(',')
    kept = [i for i, letter in enumerate(kernel) if letter in out]
    contracted = [i for i in range(len(kernel)) if i not in kept]
    init = self.kernel_init or nn.initializers.variance_scaling(
      1.0, 'fan_avg', 'uniform', in_axis=contracted, out_axis=kept
    )
    w = self.param('w', boxed(init, self.axes), self.shape, jnp.float32)
    y = self._multiply(self.equation, x, w)
    if self.use_bias:
      y = self._add(y, self._bias(kernel, kept, out))
    if self.lora is not None:
      y = y + self._adapt(x, len(contracted))
    return y

  def _multiply(self, equation: str, x: jax.Array, w: jax.Array | quantized.Kernel) -> jax.Array:
    if isinstance(w, quantized.Kernel):
      return quantized.multiply(equation, x.astype(self.dtype), w)
    if self.gradient_dtype == 'float32':
      return multiply_wide(equation, x.astype(self.dtype), w)
    return multiply(equation, x.astype(self.dtype), w.astype(self.dtype))

  def _add(self, y: jax.Array, b: jax.Array) -> jax.Array:
    return add_wide(y, b) if self.gradient_dtype == 'float32' else y + b.astype(self.dtype)

  def _bias(self, kernel: str, kept: list[int], out: str) -> jax.Array:
    """The bias, with an axis of size 1 for each letter of the output that is not the kernel's."""
    axes = tuple(self.axes[i] for i in kept)
    shape = tuple(self.shape[i] for i in kept)
    b = self.param('b', boxed(nn.initializers.zeros, axes), shape, jnp.float32)
    aligned = [self.shape[kernel.index(letter)] if letter in kernel else 1 for letter in out]
    return b.reshape(aligned)

  def _adapt(self, x: jax.Array, contracted: int) -> jax.Array:
    """What the adapter adds; `contracted` letters of the kernel are those of its input."""
    given, kernel, out = self.equation.replace('->', ',').split(',')
    rank = self.lora.rank
    # Variance scaling draws from +- sqrt(3 * scale / width in): +- 1 / sqrt(width in).
    near_in = nn.initializers.variance_scaling(
      1 / 3, 'fan_in', 'uniform', in_axis=range(contracted), out_axis=-1
    )
    a = self.param(
      finetuning.DOWN,
      boxed(near_in, (*self.axes[:contracted], 'rank')),
      (*self.shape[:contracted], rank),
      jnp.float32,
    )
    b = self.param(
      finetuning.UP,
      boxed(nn.initializers.zeros, ('rank', *self.axes[contracted:])),
      (rank, *self.shape[contracted:]),
      jnp.float32,
    )
    # Two thin products, A first: their product would be a kernel as large as the adapted one.
    # With 'r' for the rank, 'BTD,DNK->BNTK' becomes 'BTD,Dr->BTr' and 'BTr,rNK->BNTK'.
    inner = kernel[:contracted]
    low = ''.join(letter for letter in given if letter not in inner) + 'r'
    down = f'{given},{inner}r->{low}'
    up = f'{low},r{kernel[contracted:]}->{out}'
    return self.lora.scale * self._multiply(up, self._multiply(down, x, a), b)


class LayerNorm(nn.Module):
  """Layer norm over the last axis in float32; with `affine`, scale and bias."""

  eps: float = 1e-6
  affine: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1:]
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    variance = jnp.mean(jnp.square(y), -1, keepdims=True)
    y = y * jax.lax.rsqrt(variance + self.eps)
    if self.affine:
      y = y * self.param('scale', boxed(nn.initializers.ones, ('norm',)), width, jnp.float32)
      y = y + self.param('bias', boxed(nn.initializers.zeros, ('norm',)), width, jnp.float32)
    return y.astype(x.dtype)


class HeadsRMSNorm(nn.Module):
  """RMS norm of [B, N, T, K] over all heads together, before they part ways.

  Source: DreamZero `WanRMSNorm` on the full width: float32 inside, cast back, then the scale.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x_BNTK: jax.Array) -> jax.Array:
    _, N, _, K = x_BNTK.shape
    scale_NK = self.param(
      'scale', boxed(nn.initializers.ones, ('heads', 'head_dim')), (N, K), jnp.float32
    )
    y = x_BNTK.astype(jnp.float32)
    # Over heads and their dimensions together: the full width.
    mean_square = jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True)
    y = y * jax.lax.rsqrt(mean_square + self.eps)
    return y.astype(x_BNTK.dtype) * scale_NK[:, None].astype(x_BNTK.dtype)


class CategoryDense(nn.Module):
  """Linear layer with one kernel per embodiment.

  Source: DreamZero `CategorySpecificLinear`, whose released weights have one category.

  Attributes:
    out_axis, in_axis: logical names of the kernel's axes.
    gradient_dtype: as `Einsum` has it; with 'float32' the kernels are gathered so, too.
  """

  num_embodiments: int
  features: int
  dtype: Any = jnp.float32
  out_axis: str = 'embed_out'
  in_axis: str = 'channels'
  gradient_dtype: str = 'model'

  @nn.compact
  def __call__(self, x_BTI: jax.Array, embodiment_B: jax.Array) -> jax.Array:
    E = self.num_embodiments
    I = x_BTI.shape[-1]
    O = self.features
    near_zero = nn.initializers.normal(0.02)
    w_EIO = self.param(
      'w', boxed(near_zero, ('embodiment', self.in_axis, self.out_axis)), (E, I, O), jnp.float32
    )
    b_EO = self.param(
      'b', boxed(nn.initializers.zeros, ('embodiment', self.out_axis)), (E, O), jnp.float32
    )
    if self.gradient_dtype == 'float32':
      x_BTI = x_BTI.astype(self.dtype)
      y_BTO = multiply_wide('BTI,BIO->BTO', x_BTI, look_up(w_EIO, embodiment_B))
      return add_wide(y_BTO, look_up(b_EO, embodiment_B)[:, None])
    w_BIO = look_up(w_EIO.astype(self.dtype), embodiment_B)
    b_BO = look_up(b_EO.astype(self.dtype), embodiment_B)
    return jnp.einsum('BTI,BIO->BTO', x_BTI.astype(self.dtype), w_BIO) + b_BO[:, None]


class MLP(nn.Module):
  """Two linear layers with a nonlinearity between; the hidden axis is called 'mlp'.

  Attributes:
    gradient_dtype: as `Einsum` has it.
    lora_in, lora_out: adapters of the first and of the second layer.
  """

  hidden: int
  out: int
  activation: Callable[[jax.Array], jax.Array]
  dtype: Any = jnp.float32
  kernel_init: Init | None = None
  gradient_dtype: str = 'model'
  lora_in: cfg.LoraConfig | None = None
  lora_out: cfg.LoraConfig | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    D = x_BTD.shape[-1]
    widen = Einsum(
      'BTD,DM->BTM',
      shape=(D, self.hidden),
      axes=('embed', 'mlp'),
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      gradient_dtype=self.gradient_dtype,
      lora=self.lora_in,
      name='in',
    )
    narrow = Einsum(
      'BTM,MD->BTD',
      shape=(self.hidden, self.out),
      axes=('mlp', 'embed'),
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      gradient_dtype=self.gradient_dtype,
      lora=self.lora_out,
      name='out',
    )
    return narrow(self.activation(widen(x_BTD)))


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
  """`table[ids]`; on a mesh the table is gathered first, or XLA would make the rows of the whole
  batch everywhere.
  """
  whole = sharding.shard(table, *(None,) * table.ndim)
  return whole[ids]


def gelu_tanh(x: jax.Array) -> jax.Array:
  """GELU by its tanh approximation, as Wan's transformer and UMT5 have it."""
  return jax.nn.gelu(x, approximate=True)


def gelu_erf(x: jax.Array) -> jax.Array:
  """GELU by the error function, as CLIP has it."""
  return jax.nn.gelu(x, approximate=False)


def sinusoid(position: jax.Array | np.ndarray, width: int, order: str) -> jax.Array:
  """[..., width] float32 sinusoid of `position` with frequencies 10000^(-i / (width/2)).

  Args:
    order: which half comes first, 'cos_sin' (the time embedding) or 'sin_cos' (the action encoder).
  Source: DreamZero `sinusoidal_embedding_1d` and `SinusoidalPositionalEncoding`.
  """
  half = width // 2
  # On the host in float64: float32 would lose the last digits of large angles.
  frequency = (10000.0 ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float32)
  angle = jnp.asarray(position, jnp.float32)[..., None] * frequency
  parts = (jnp.cos(angle), jnp.sin(angle))
  return jnp.concatenate(parts if order == 'cos_sin' else parts[::-1], -1)
