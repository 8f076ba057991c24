"""Transformer blocks and the scanned stack. Knows tokens, not frames or robots.

Source: DreamZero `CausalWanAttentionBlock`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import sharding
from wam_jax.models import attention
from wam_jax.models import layers
from wam_jax.models import slots as slots_lib

# Names that rematerialisation policies know values by.
SAVED = 'attention'
OFFLOADED = 'block_input'


class Prompt(NamedTuple):
  """An embedded prompt, of width D.

  Attributes:
    text_BPD: embedded words.
    image_BID: embedded tokens of the first frame, or None where the model sees none.
  """

  text_BPD: jax.Array
  image_BID: jax.Array | None


@flax.struct.dataclass(kw_only=True)
class Tokens:
  """What all layers share about a sequence.

  Attributes:
    modulation_BG6D: noise-level projection of each group of tokens that share a level.
    group_T: int32, the group of each token.
    angles_TR: [T, K/2] rotary angles, or [B, 1, T, K/2].
    mask: bool, broadcasts to [B, 1, T, cached slots + T]; with a pattern [B, T], tokens that are no
      padding.
    alone_T, pattern: those of `attention.Plan`.
    stays: which of the tokens take slots of the cache, or None without one.
    slots: where they lie for kernels that take no mask, or None; `kernels` names these.
  """

  modulation_BG6D: jax.Array
  group_T: Any
  angles_TR: Any
  mask: Any
  alone_T: Any = None
  stays: attention.Stays | None = None
  slots: slots_lib.Slots | None = None
  kernels: slots_lib.Kernels = flax.struct.field(pytree_node=False, default='dense')
  pattern: masks.Chunks | masks.Blocks | None = flax.struct.field(pytree_node=False, default=None)

  def spread(self, x_BGD):
    """[B, T, D]: of every token what its group has."""
    if self.pattern is None:
      return jnp.take(x_BGD, self.group_T, axis=1)
    # A product with zeros and ones, exact too: on a TPU twice as fast as a gather with its
    # gradient; shards split it.
    one_TG = jax.nn.one_hot(self.group_T, x_BGD.shape[1], dtype=x_BGD.dtype)
    return jnp.einsum('TG,BGD->BTD', one_TG, x_BGD, precision=jax.lax.Precision.HIGHEST)


class Layer(NamedTuple):
  """What self-attention is told of the past.

  Attributes:
    index: number of the layer.
    cached: keys and values of all layers, as `attention.KVCache` has them, or None.
  """

  index: jax.Array | None
  cached: tuple[attention.Each, attention.Each] | None


def _to_heads(c: cfg.ModelConfig, name: str) -> layers.Einsum:
  return layers.Einsum(
    'BTD,DNK->BNTK',
    (c.dim, c.num_heads, c.head_dim),
    ('embed', 'heads', 'head_dim'),
    jnp.dtype(c.dtype),
    gradient_dtype=c.gradient_dtype,
    lora=c.lora.of(name),
  )


def _from_heads(c: cfg.ModelConfig) -> layers.Einsum:
  return layers.Einsum(
    'BNTK,NKD->BTD',
    (c.num_heads, c.head_dim, c.dim),
    ('heads', 'head_dim', 'embed'),
    jnp.dtype(c.dtype),
    gradient_dtype=c.gradient_dtype,
    lora=c.lora.of('o'),
  )


class SelfAttention(nn.Module):
  """Tokens attend to each other and to cached keys. Source: DreamZero `CausalWanSelfAttention`."""

  cfg: cfg.ModelConfig

  def setup(self):
    c = self.cfg
    self.q = _to_heads(c, 'q')
    self.k = _to_heads(c, 'k')
    self.v = _to_heads(c, 'v')
    self.o = _from_heads(c)
    self.norm_q = layers.HeadsRMSNorm(c.eps)
    self.norm_k = layers.HeadsRMSNorm(c.eps)

  def __call__(self, x_BTD, tokens: Tokens, layer: Layer):
    """(attended tokens, keys and values of all layers with those that stay, or None)."""
    pattern = tokens.pattern
    in_blocks = isinstance(pattern, masks.Blocks)
    rotate = attention.rotate_by_product if in_blocks else attention.rotate
    q_BNTK = rotate(self.norm_q(self.q(x_BTD)), tokens.angles_TR)
    k_BNTK = rotate(self.norm_k(self.k(x_BTD)), tokens.angles_TR)
    v_BNTK = self.v(x_BTD)

    # A training window, by its plan: nothing is cached.
    if in_blocks:
      y_BNTK = attention.attend_blocks(
        q_BNTK, k_BNTK, v_BNTK, tokens.mask, blocks=pattern, name=SAVED
      )
      if tokens.alone_T is not None:
        # Who sees nobody else gets its own value, whole.
        y_BNTK = jnp.where(tokens.alone_T[:, None], v_BNTK, y_BNTK)
      return self.o(y_BNTK), None
    if pattern is not None:
      recompute = self.cfg.remat != 'none'
      y_BNTK = attention.attend_chunks(
        q_BNTK, k_BNTK, v_BNTK, tokens.mask, chunks=pattern, recompute=recompute
      )
      return self.o(checkpoint_name(y_BNTK, SAVED)), None

    # By a mask of all pairs: a short window, or a chunk after a cached past.
    q_BNTK = sharding.shard(q_BNTK, 'batch', 'act_heads', 'tokens', 'head_dim')
    if layer.cached is None:
      y_BNTK = attention.attend(q_BNTK, k_BNTK, v_BNTK, tokens.mask)
      return self.o(checkpoint_name(y_BNTK, SAVED)), None

    # The past of this layer, read before the sweep's own keys take their slots in it; of the first
    # samples, where the sweep has not all.
    own = (k_BNTK, v_BNTK)
    past = tuple(attention.read_layer(x, layer.index, len(x_BTD)) for x in layer.cached)
    if tokens.slots is None:
      y_BNTK = attention.attend_after(q_BNTK, *past, *own, tokens.mask)
    else:
      y_BNTK = slots_lib.attend(q_BNTK, past, own, tokens.slots, tokens.kernels)
    cached = tuple(tokens.stays.put(x, new, layer.index) for x, new in zip(layer.cached, own))
    return self.o(checkpoint_name(y_BNTK, SAVED)), cached


class CrossAttention(nn.Module):
  """Text attention plus, where there is an image encoder, image attention, added.

  Source: DreamZero `WanI2VCrossAttention`.
  """

  cfg: cfg.ModelConfig

  def setup(self):
    c = self.cfg
    self.q = _to_heads(c, 'q')
    self.k = _to_heads(c, 'k')
    self.v = _to_heads(c, 'v')
    self.o = _from_heads(c)
    self.norm_q = layers.HeadsRMSNorm(c.eps)
    self.norm_k = layers.HeadsRMSNorm(c.eps)
    if c.image_dim:
      self.k_image = _to_heads(c, 'k_image')
      self.v_image = _to_heads(c, 'v_image')
      self.norm_k_image = layers.HeadsRMSNorm(c.eps)

  def project(self, prompt: Prompt):
    """Keys and values of text and image, [B, N, P, K] each; they do not depend on the tokens."""
    text_BPD = _split_tokens(prompt.text_BPD)
    text_kv = (_join_tokens(self.norm_k(self.k(text_BPD))), _join_tokens(self.v(text_BPD)))
    if not self.cfg.image_dim:
      return (text_kv,)
    image_BID = _split_tokens(prompt.image_BID)
    image_kv = (
      _join_tokens(self.norm_k_image(self.k_image(image_BID))),
      _join_tokens(self.v_image(image_BID)),
    )
    return text_kv, image_kv

  def __call__(self, x_BTD, prompt_kv, pattern=None, kernels: slots_lib.Kernels = 'dense'):
    q_BNTK = self.norm_q(self.q(x_BTD))
    attend = attention.attend
    if kernels != 'dense':
      attend = functools.partial(slots_lib.attend_all, kernels=kernels)
    elif isinstance(pattern, masks.Blocks):
      attend = functools.partial(attention.attend_first, side=pattern.side)
    elif pattern is not None and attention.is_fused(q_BNTK):
      attend = attention.attend_fused
    elif pattern is not None and self.cfg.remat != 'none':
      attend = jax.checkpoint(attend)
    rows = attention.interleave
    return self.o(sum(attend(q_BNTK, rows(k), rows(v)) for k, v in prompt_kv))


def _split_tokens(prompt_BPD: jax.Array) -> jax.Array:
  """Each shard of 'tokens' projects its part of a prompt: then gradients of the weights are sums of
  parts, which are scattered; of equal ones XLA would sum all to keep a slice.
  """
  return sharding.shard(prompt_BPD, 'batch', 'tokens', 'act_embed')


def _join_tokens(x_BNPK: jax.Array) -> jax.Array:
  return sharding.shard(x_BNPK, 'batch', 'act_heads', None, 'head_dim')


class Block(nn.Module):
  """Modulated self-attention, cross-attention, modulated feed-forward."""

  cfg: cfg.ModelConfig

  def setup(self):
    c = self.cfg
    self.modulation = self.param(
      'modulation',
      layers.boxed(nn.initializers.normal(c.dim**-0.5), ('norm', 'embed')),
      (6, c.dim),
      jnp.float32,
    )
    self.self_attn = SelfAttention(c)
    self.cross_attn = CrossAttention(c)
    self.norm1 = layers.LayerNorm(c.eps)
    self.norm2 = layers.LayerNorm(c.eps)
    self.norm3 = layers.LayerNorm(c.eps, affine=True)
    self.ffn = layers.MLP(
      c.mlp_dim,
      c.dim,
      layers.gelu_tanh,
      jnp.dtype(c.dtype),
      gradient_dtype=c.gradient_dtype,
      lora_in=c.lora.of('ffn/in'),
      lora_out=c.lora.of('ffn/out'),
    )

  def __call__(self, carry, index, prompt_kv, prompt: Prompt | None, tokens: Tokens):
    x_BTD, cached = carry
    x_BTD = checkpoint_name(x_BTD, OFFLOADED)
    m_BG6D = self.modulation.astype(x_BTD.dtype) + tokens.modulation_BG6D
    shift1, scale1, gate1, shift2, scale2, gate2 = (
      tokens.spread(m_BG6D[:, :, i]) for i in range(6)
    )

    y_BTD = self.norm1(x_BTD) * (1 + scale1) + shift1
    y_BTD, cached = self.self_attn(y_BTD, tokens, Layer(index, cached))
    x_BTD = x_BTD + gate1 * y_BTD

    if prompt_kv is None:
      prompt_kv = self.cross_attn.project(prompt)
    # Wan calls this norm the third; it is the only one with weights.
    x_BTD = x_BTD + self.cross_attn(self.norm3(x_BTD), prompt_kv, tokens.pattern, tokens.kernels)

    y_BTD = self.norm2(x_BTD) * (1 + scale2) + shift2
    x_BTD = x_BTD + gate2 * self.ffn(y_BTD)
    return (sharding.shard(x_BTD, 'batch', 'tokens', 'act_embed'), cached), None

  def project_prompt(self, carry, prompt: Prompt):
    """`CrossAttention.project` in the form that a scan over layers takes."""
    return carry, self.cross_attn.project(prompt)


def run_layer(config: cfg.ModelConfig, params: Any, carry, index, prompt_kv, tokens: Tokens):
  """(tokens, cache) after the block of these parameters, one layer of `make_stack`."""
  block = Block(config, parent=None)
  carry, _ = block.apply({'params': params}, carry, index, prompt_kv, None, tokens)
  return carry


def project_prompt(config: cfg.ModelConfig, params: Any, prompt: Prompt):
  """Keys and values of a prompt for the block of these parameters."""
  block = Block(config, parent=None)
  return block.apply({'params': params}, None, prompt, method=Block.project_prompt)[1]


def make_stack(config: cfg.ModelConfig, name: str) -> nn.Module:
  """All blocks as one scanned module: parameters, cache and prompt keys/values stacked on axis 0.

  Its `__call__((x, cached), index, prompt_kv, prompt, tokens)` gives ((x, cached), None): the cache
  of all layers goes through them whole, so that each writes in place; `index` counts them. Its
  `project_prompt(None, prompt)` gives (None, prompt keys/values of every layer). Captured
  intermediates are stacked like parameters.
  """
  block = Block
  if config.remat != 'none':
    block = nn.remat(Block, prevent_cse=False, policy=_policy(config))
  common = dict(
    variable_axes={'params': 0, 'intermediates': 0},
    split_rngs={'params': True},
    length=config.num_layers,
    unroll=config.scan_unroll,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  call = dict(common, in_axes=(0, 0, nn.broadcast, nn.broadcast), out_axes=0)
  project = dict(common, in_axes=nn.broadcast, out_axes=0)
  scanned = nn.scan(block, methods={'__call__': call, 'project_prompt': project})
  return scanned(config, name=name)


def _policy(config: cfg.ModelConfig):
  """What the backward pass of a block finds of its forward pass, beside its input.

  The keys are the values of `ModelConfig.remat` other than 'none'.
  """
  policies = jax.checkpoint_policies
  attention_result = policies.save_only_these_names(SAVED)
  projections = functools.partial(_is_projection, config.dim)
  return {
    'block': None,
    'save_attention': attention_result,
    'dots': projections,
    'dots_and_attention': policies.save_from_both_policies(projections, attention_result),
    'narrow': policies.save_from_both_policies(
      functools.partial(_is_narrow, config.dim, config.mlp_dim), attention_result
    ),
    'offload': policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[OFFLOADED],
      offload_src='device',
      offload_dst='pinned_host',
    ),
  }[config.remat]


def _is_projection(dim: int, primitive, *operands, **params) -> bool:
  """Whether an operation is a product with weights.

  It has no batch axes and contracts a width of the model.
  """
  if not jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *operands, **params):
    return False
  (contracted, _), _ = params['dimension_numbers']
  width = math.prod(operands[0].shape[i] for i in contracted)
  return width >= dim


def _is_narrow(dim: int, mlp_dim: int, primitive, *operands, **params) -> bool:
  """Whether an operation is a product with weights, and not the one that widens to `mlp_dim`."""
  if not _is_projection(dim, primitive, *operands, **params):
    return False
  # What is not contracted: the tokens of one operand, the width of the result of the other.
  kept = [
    math.prod(operand.shape) // math.prod(operand.shape[i] for i in contracted)
    for operand, contracted in zip(operands, params['dimension_numbers'][0])
  ]
  return mlp_dim not in kept
