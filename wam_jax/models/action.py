"""Embodiment-specific action and state encoders and the action decoder.

Source: DreamZero `MultiEmbodimentActionEncoder` and `CategorySpecificMLP`.
"""

from __future__ import annotations

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
    E, D, dtype = self.cfg.num_embodiments, self.cfg.dim, jnp.dtype(self.cfg.dtype)
    x_BAD = layers.CategoryDense(E, D, dtype, 'embed', name='action')(action_BAU, embodiment_B)
    time_BAD = layers.sinusoid(1000 * sigma_BA, D, 'sin_cos').astype(dtype)
    h_BAD = layers.CategoryDense(E, D, dtype, 'embed', name='mix')(
      jnp.concatenate([x_BAD, time_BAD], -1), embodiment_B
    )
    return layers.CategoryDense(E, D, dtype, 'embed', name='out')(jax.nn.swish(h_BAD), embodiment_B)


class CategoryMLP(nn.Module):
  """Two layers with ReLU between: the state encoder (out D) and the action decoder (out U)."""

  cfg: cfg.ModelConfig
  out: int
  out_axis: str
  in_axis: str = 'channels'

  @nn.compact
  def __call__(self, x_BTI, embodiment_B) -> jax.Array:
    E, dtype = self.cfg.num_embodiments, jnp.dtype(self.cfg.dtype)
    h_BTM = layers.CategoryDense(E, self.cfg.action_hidden, dtype, 'mlp', self.in_axis, name='in')(
      x_BTI, embodiment_B
    )
    return layers.CategoryDense(E, self.out, dtype, self.out_axis, name='out')(
      jax.nn.relu(h_BTM), embodiment_B
    )
