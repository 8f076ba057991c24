"""Text encoders. `WordEncoder` needs no download and is trained with the model; `UMT5`, Wan's, is
frozen.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.models import attention
from wam_jax.models import layers


class WordEncoder(nn.Module):
  """Hashed words to contextual embeddings; padded positions come out as zeros, as the reference's
  UMT5 output does.

  Token ids come from `data.prompts.hash_words`.
  """

  cfg: cfg.TextConfig

  @nn.compact
  def __call__(self, ids_BP: jax.Array) -> jax.Array:
    D = self.cfg.dim
    table_VD = self.param(
      'table',
      layers.boxed(nn.initializers.normal(1.0), ('vocab', 'embed')),
      (self.cfg.vocab, D),
      jnp.float32,
    )
    real_BP = ids_BP > 0
    position_PD = layers.sinusoid(jnp.arange(ids_BP.shape[1]), D, 'cos_sin')
    # A tenth, so that the order of words does not drown the words at first.
    x_BPD = layers.look_up(table_VD, ids_BP) + position_PD * 0.1
    for i in range(self.cfg.layers):
      h_BPD = layers.LayerNorm(affine=True, name=f'norm1_{i}')(x_BPD)
      x_BPD = x_BPD + _Attention(D, name=f'attention_{i}')(h_BPD, real_BP)
      h_BPD = layers.LayerNorm(affine=True, name=f'norm2_{i}')(x_BPD)
      x_BPD = x_BPD + layers.MLP(4 * D, D, layers.gelu_tanh, name=f'mlp_{i}')(h_BPD)
    return x_BPD * real_BP[..., None]


class _Attention(nn.Module):
  """Bidirectional attention over real words, by two heads; too few to split over a mesh."""

  dim: int

  @nn.compact
  def __call__(self, x_BPD: jax.Array, real_BP: jax.Array) -> jax.Array:
    D, N, K = self.dim, 2, self.dim // 2

    def to_heads(name):
      axes = ('embed', 'norm', 'head_dim')
      return layers.Einsum('BPD,DNK->BNPK', (D, N, K), axes, name=name)(x_BPD)

    y_BNPK = attention.attend(to_heads('q'), to_heads('k'), to_heads('v'), real_BP[:, None, None])
    axes = ('norm', 'head_dim', 'embed')
    return layers.Einsum('BNPK,NKD->BPD', (N, K, D), axes, name='o')(y_BNPK)


@flax.struct.dataclass
class UMT5:
  """The frozen text encoder of Wan: T5 1.1 with a relative bias in every layer.

  Source: DreamZero `WanTextEncoder`.

  Attributes:
    params: parameters of `UMT5Encoder`, in any float dtype.
    config: sizes of the network, and the dtype of the computation.
  """

  params: Any
  config: cfg.TextConfig = flax.struct.field(pytree_node=False)

  def encode(self, ids_BP: jax.Array, mask_BP: jax.Array | None = None) -> jax.Array:
    """[B, P] int32 token ids to [B, P, D] in `config.dtype`, exactly 0 after each prompt's own last
    token.

    Args:
      mask_BP: real tokens, bool or 0/1; by default all but id 0, the padding.
    """
    mask_BP = ids_BP != 0 if mask_BP is None else mask_BP
    return zero_padding(self.hidden(ids_BP, mask_BP), mask_BP)

  def hidden(self, ids_BP: jax.Array, mask_BP: jax.Array) -> jax.Array:
    """As `encode`, but padded positions hold what the network makes of them."""
    shared_bias = 'relative_bias' in self.params
    return UMT5Encoder(self.config, shared_bias).apply({'params': self.params}, ids_BP, mask_BP)


def init(config: cfg.TextConfig, key: jax.Array) -> UMT5:
  """Random parameters boxed with their axis names; under `jax.eval_shape`, the shapes of a
  checkpoint's.
  """
  ids_BP = jnp.ones((1, 1), jnp.int32)
  return UMT5(UMT5Encoder(config).init(key, ids_BP, ids_BP)['params'], config)


def zero_padding(x_BPD: jax.Array, mask_BP: jax.Array) -> jax.Array:
  """`x_BPD` with zeros where `mask_BP` is False."""
  return jnp.where(jnp.asarray(mask_BP, bool)[..., None], x_BPD, 0)


def zero_after_shortest(x_BPD: jax.Array, mask_BP: jax.Array) -> jax.Array:
  """Every sample with zeros after the shortest prompt of the batch, as the reference's
  `encode_prompt` does.
  """
  shortest = jnp.min(jnp.sum(jnp.asarray(mask_BP, bool), axis=1))
  is_kept_P = jnp.arange(x_BPD.shape[1]) < shortest
  return jnp.where(is_kept_P[:, None], x_BPD, 0)


class UMT5Encoder(nn.Module):
  """Tokens to contextual embeddings.

  Attributes:
    shared_bias: whether all layers share one bias table, as T5 has it; UMT5 has one per layer.
  """

  cfg: cfg.TextConfig
  shared_bias: bool = False

  @nn.compact
  def __call__(self, ids_BP: jax.Array, mask_BP: jax.Array) -> jax.Array:
    c = self.cfg
    table_VD = self.param(
      'table',
      layers.boxed(nn.initializers.normal(1.0), ('vocab', 'embed')),
      (c.vocab, c.dim),
      jnp.float32,
    )
    # Not `layers.look_up`: this table is larger than the rows of any batch.
    x_BPD = table_VD[ids_BP].astype(c.dtype)
    buckets_PP = relative_buckets(ids_BP.shape[1], c.buckets, c.max_distance)
    bias_NPP = relative_bias(_bias_table(self), buckets_PP) if self.shared_bias else None
    scanned = nn.scan(
      UMT5Block,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=c.layers,
      in_axes=nn.broadcast,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    x_BPD, _ = scanned(c, self.shared_bias, name='blocks')(
      x_BPD, bias_NPP, buckets_PP, jnp.asarray(mask_BP, bool)
    )
    return RMSNorm(name='norm')(x_BPD)


class UMT5Block(nn.Module):
  """Self-attention with a bias by distance and without scaling, then a gated feed-forward; no other
  biases.
  """

  cfg: cfg.TextConfig
  shared_bias: bool

  @nn.compact
  def __call__(self, x_BPD, bias_NPP, buckets_PP, mask_BP):
    c = self.cfg
    D, N, M = c.dim, c.heads, c.mlp_dim
    K = c.attention_dim // N
    linear = functools.partial(layers.Einsum, dtype=jnp.dtype(c.dtype), use_bias=False)

    # Self-attention. `attention.attend` has no bias, and would scale the logits.
    h_BPD = RMSNorm(name='norm1')(x_BPD)
    axes = ('embed', 'heads', 'head_dim')
    q, k, v = (linear('BPD,DNK->BNPK', (D, N, K), axes, name=name)(h_BPD) for name in 'qkv')
    if not self.shared_bias:
      bias_NPP = relative_bias(_bias_table(self), buckets_PP)
    logits_BNPP = jnp.einsum('BNPK,BNSK->BNPS', q, k, preferred_element_type=jnp.float32) + bias_NPP
    logits_BNPP = jnp.where(mask_BP[:, None, None], logits_BNPP, attention.NEGATIVE)
    # The softmax is float32 like the logits, its weights as wide as the values.
    weights_BNPP = jax.nn.softmax(logits_BNPP, -1).astype(v.dtype)
    y_BNPK = jnp.einsum('BNPS,BNSK->BNPK', weights_BNPP, v)
    axes = ('heads', 'head_dim', 'embed')
    x_BPD = x_BPD + linear('BNPK,NKD->BPD', (N, K, D), axes, name='o')(y_BNPK)

    # Gated feed-forward.
    h_BPD = RMSNorm(name='norm2')(x_BPD)
    gate_BPM = linear('BPD,DM->BPM', (D, M), ('embed', 'mlp'), name='gate')(h_BPD)
    h_BPM = linear('BPD,DM->BPM', (D, M), ('embed', 'mlp'), name='in')(h_BPD)
    out = linear('BPM,MD->BPD', (M, D), ('mlp', 'embed'), name='out')
    x_BPD = x_BPD + out(layers.gelu_tanh(gate_BPM) * h_BPM)
    return sharding.shard(x_BPD, 'batch', None, 'act_embed'), None


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis; the root mean square in float32, without subtracting the
  mean.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param(
      'scale', layers.boxed(nn.initializers.ones, ('norm',)), x.shape[-1:], jnp.float32
    )
    y = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(y), -1, keepdims=True)
    y = y * jax.lax.rsqrt(mean_square + self.eps)
    return y.astype(x.dtype) * scale.astype(x.dtype)


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
  """[query, key] int32: bucket of the distance key - query; the upper half of the buckets is for
  keys that follow.

  Half of each side's buckets hold one distance each, the others grow as its logarithm and the last
  holds all from `max_distance` on. Logarithms in float32, which decides distances on the edge of
  two buckets as the reference does.
  """
  offset_PP = np.arange(length)[None] - np.arange(length)[:, None]
  distance_PP = np.abs(offset_PP)
  side = buckets // 2
  exact = side // 2
  ratio_PP = np.maximum(distance_PP, exact).astype(np.float32) / np.float32(exact)
  widest = np.float32(np.log(max_distance / exact))
  growth_PP = np.log(ratio_PP) / widest * np.float32(side - exact)
  far_PP = np.minimum(exact + growth_PP.astype(np.int32), side - 1)
  bucket_PP = np.where(distance_PP < exact, distance_PP, far_PP)
  follows_PP = offset_PP > 0
  return (follows_PP * side + bucket_PP).astype(np.int32)


def relative_bias(table_RN: jax.Array, buckets_PP: np.ndarray) -> jax.Array:
  """[N, P, P] float32 bias of the attention logits of each head."""
  return jnp.transpose(table_RN.astype(jnp.float32)[buckets_PP], (2, 0, 1))


def _bias_table(module: UMT5Encoder | UMT5Block) -> jax.Array:
  """[buckets, N] parameter of the module that is being applied."""
  c = module.cfg
  return module.param(
    'relative_bias',
    layers.boxed(nn.initializers.normal(0.1), ('norm', 'heads')),
    (c.buckets, c.heads),
    jnp.float32,
  )
