"""Embodiment-specific action and state encoders and the action decoder.

Source: DreamZero `MultiEmbodimentActionEncoder` and `CategorySpecificMLP`.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax.models import layers


class ActionEncoder(nn.Module):
  """Noisy actions and their noise levels to tokens.

  The level enters as a sinusoid of width D of the timestep 1000 * sigma, sines first.
  """

  cfg: cfg.ModelConfig

  @nn.compact
  def __call__(self, action_BAU, sigma_BA, embodiment_B) -> jax.Array:
    c = self.cfg
    dense = functools.partial(
      layers.CategoryDense,
      c.num_embodiments,
      c.dim,
      jnp.dtype(c.dtype),
      'embed',
      gradient_dtype=c.gradient_dtype,
    )
    x_BAD = dense(name='action')(action_BAU, embodiment_B)
    timestep_BA = 1000 * sigma_BA  # The reference's unit, which the frequencies are made for.
    time_BAD = layers.sinusoid(timestep_BA, c.dim, 'sin_cos').astype(c.dtype)
    both_BAM = jnp.concatenate([x_BAD, time_BAD], -1)
    h_BAD = jax.nn.swish(dense(name='mix')(both_BAM, embodiment_B))
    return dense(name='out')(h_BAD, embodiment_B)


class CategoryMLP(nn.Module):
  """Two layers with ReLU between: the state encoder (out D) and the action decoder (out U)."""

  cfg: cfg.ModelConfig
  out: int
  out_axis: str
  in_axis: str = 'channels'

  @nn.compact
  def __call__(self, x_BTI, embodiment_B) -> jax.Array:
    c = self.cfg
    # Each embodiment has kernels of its own: its numbers mean something else than another's.
    wide = layers.CategoryDense(
      num_embodiments=c.num_embodiments,
      features=c.action_hidden,
      dtype=jnp.dtype(c.dtype),
      out_axis='mlp',
      in_axis=self.in_axis,
      gradient_dtype=c.gradient_dtype,
      name='in',
    )
    narrow = layers.CategoryDense(
      num_embodiments=c.num_embodiments,
      features=self.out,
      dtype=jnp.dtype(c.dtype),
      out_axis=self.out_axis,
      gradient_dtype=c.gradient_dtype,
      name='out',
    )
    h_BTM = jax.nn.relu(wide(x_BTI, embodiment_B))
    return narrow(h_BTM, embodiment_B)
