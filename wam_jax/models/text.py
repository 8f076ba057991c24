"""Text encoders. `WordEncoder` needs no download and is trained with the model."""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax.models import attention
from wam_jax.models import layers


class WordEncoder(nn.Module):
  """Hashed words to contextual embeddings; padded positions come out as zeros, as the reference's UMT5 output does.

  Token ids come from `data.transforms.tokenize`.
  """

  cfg: cfg.TextConfig

  @nn.compact
  def __call__(self, ids_BP: jax.Array) -> jax.Array:
    D = self.cfg.dim
    table_VD = self.param('table', layers.boxed(nn.initializers.normal(1.0), ('vocab', 'embed')),
                          (self.cfg.vocab, D), jnp.float32)
    real_BP = ids_BP > 0
    x_BPD = layers.look_up(table_VD, ids_BP) + layers.sinusoid(jnp.arange(ids_BP.shape[1]), D, 'cos_sin') * 0.1
    for i in range(self.cfg.layers):
      x_BPD = x_BPD + _Attention(D, name=f'attention_{i}')(layers.LayerNorm(affine=True, name=f'norm1_{i}')(x_BPD),
                                                         real_BP)
      mlp = layers.MLP(4 * D, D, layers.gelu_tanh, name=f'mlp_{i}')
      x_BPD = x_BPD + mlp(layers.LayerNorm(affine=True, name=f'norm2_{i}')(x_BPD))
    return x_BPD * real_BP[..., None]


class _Attention(nn.Module):
  """Bidirectional attention over real words."""

  dim: int

  @nn.compact
  def __call__(self, x_BPD, real_BP):
    N, K = 2, self.dim // 2
    project = lambda name: layers.Einsum('BPD,DNK->BNPK', (self.dim, N, K), ('embed', 'heads', 'head_dim'),
                                         name=name)(x_BPD)
    y = attention.attend(project('q'), project('k'), project('v'), real_BP[:, None, None])
    return layers.Einsum('BNPK,NKD->BPD', (N, K, self.dim), ('heads', 'head_dim', 'embed'), name='o')(y)
