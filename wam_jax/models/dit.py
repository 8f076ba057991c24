"""Transformer blocks and the scanned stack. Knows tokens, not frames or robots.

Source: DreamZero `CausalWanAttentionBlock`.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax.models import attention
from wam_jax.models import layers


class Prompt(NamedTuple):
  """Embedded conditions: text_BPD, and image_BID or None."""

  text_BPD: jax.Array
  image_BID: jax.Array | None


class Tokens(NamedTuple):
  """What all layers share about a sequence.

  Attributes:
    modulation_BG6D: noise-level projection of each group of tokens that share a level.
    group_T: int32, the group of each token.
    angles_TR: [T, K/2] rotary angles.
    mask: bool, broadcasts to [B, 1, T, cached slots + T].
  """

  modulation_BG6D: jax.Array
  group_T: Any
  angles_TR: Any
  mask: Any


def _to_heads(c: cfg.ModelConfig) -> layers.Einsum:
  return layers.Einsum('BTD,DNK->BNTK', (c.dim, c.num_heads, c.head_dim), ('embed', 'heads', 'head_dim'),
                       jnp.dtype(c.dtype))


def _from_heads(c: cfg.ModelConfig) -> layers.Einsum:
  return layers.Einsum('BNTK,NKD->BTD', (c.num_heads, c.head_dim, c.dim), ('heads', 'head_dim', 'embed'),
                       jnp.dtype(c.dtype))


class SelfAttention(nn.Module):
  """Tokens attend to each other and to cached keys. Source: DreamZero `CausalWanSelfAttention`."""

  cfg: cfg.ModelConfig

  def setup(self):
    c = self.cfg
    self.q, self.k, self.v, self.o = _to_heads(c), _to_heads(c), _to_heads(c), _from_heads(c)
    self.norm_q, self.norm_k = layers.HeadsRMSNorm(c.eps), layers.HeadsRMSNorm(c.eps)

  def __call__(self, x_BTD, tokens: Tokens, cached):
    q = attention.rotate(self.norm_q(self.q(x_BTD)), tokens.angles_TR)
    k = attention.rotate(self.norm_k(self.k(x_BTD)), tokens.angles_TR)
    v = self.v(x_BTD)
    q = sharding.shard(q, 'batch', 'act_heads', 'tokens', 'head_dim')
    keys, values = (k, v) if cached is None else (
        jnp.concatenate([cached[0].astype(k.dtype), k], 2), jnp.concatenate([cached[1].astype(v.dtype), v], 2))
    return self.o(attention.attend(q, keys, values, tokens.mask)), (k, v)


class CrossAttention(nn.Module):
  """Text attention plus, where there is an image encoder, image attention, added. Source: `WanI2VCrossAttention`."""

  cfg: cfg.ModelConfig

  def setup(self):
    c = self.cfg
    self.q, self.k, self.v, self.o = _to_heads(c), _to_heads(c), _to_heads(c), _from_heads(c)
    self.norm_q, self.norm_k = layers.HeadsRMSNorm(c.eps), layers.HeadsRMSNorm(c.eps)
    if c.image_dim:
      self.k_image, self.v_image, self.norm_k_image = _to_heads(c), _to_heads(c), layers.HeadsRMSNorm(c.eps)

  def project(self, prompt: Prompt):
    """Keys and values of text and image, [B, N, P, K] each; they do not depend on the tokens."""
    text = (self.norm_k(self.k(prompt.text_BPD)), self.v(prompt.text_BPD))
    if not self.cfg.image_dim:
      return (text,)
    return text, (self.norm_k_image(self.k_image(prompt.image_BID)), self.v_image(prompt.image_BID))

  def __call__(self, x_BTD, prompt_kv):
    q = self.norm_q(self.q(x_BTD))
    return self.o(sum(attention.attend(q, k, v) for k, v in prompt_kv))


class Block(nn.Module):
  """Modulated self-attention, cross-attention, modulated feed-forward."""

  cfg: cfg.ModelConfig

  def setup(self):
    c = self.cfg
    self.modulation = self.param(
        'modulation', layers.boxed(nn.initializers.normal(c.dim ** -0.5), ('norm', 'embed')), (6, c.dim), jnp.float32)
    self.self_attn, self.cross_attn = SelfAttention(c), CrossAttention(c)
    self.norm1, self.norm2 = layers.LayerNorm(c.eps), layers.LayerNorm(c.eps)
    self.norm3 = layers.LayerNorm(c.eps, affine=True)
    self.ffn = layers.MLP(c.mlp_dim, c.dim, layers.gelu_tanh, jnp.dtype(c.dtype))

  def __call__(self, x_BTD, cached, prompt_kv, prompt: Prompt | None, tokens: Tokens):
    m_BG6D = self.modulation.astype(x_BTD.dtype) + tokens.modulation_BG6D
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        jnp.take(m_BG6D[:, :, i], tokens.group_T, axis=1) for i in range(6))
    y, new_kv = self.self_attn(self.norm1(x_BTD) * (1 + scale1) + shift1, tokens, cached)
    x_BTD = x_BTD + gate1 * y
    prompt_kv = self.cross_attn.project(prompt) if prompt_kv is None else prompt_kv
    x_BTD = x_BTD + self.cross_attn(self.norm3(x_BTD), prompt_kv)
    x_BTD = x_BTD + gate2 * self.ffn(self.norm2(x_BTD) * (1 + scale2) + shift2)
    return sharding.shard(x_BTD, 'batch', 'tokens', 'act_embed'), new_kv

  def project_prompt(self, carry, prompt: Prompt):
    return carry, self.cross_attn.project(prompt)


def make_stack(config: cfg.ModelConfig, name: str) -> nn.Module:
  """All blocks as one scanned module: parameters, cache and prompt keys/values stacked on axis 0.

  Its `__call__(x, cached, prompt_kv, prompt, tokens)` gives (x, new keys/values of every layer); its
  `project_prompt(None, prompt)` gives (None, prompt keys/values of every layer). Captured intermediates are
  stacked like parameters.
  """
  block = Block if config.remat == 'none' else nn.remat(Block, prevent_cse=False)
  common = dict(variable_axes={'params': 0, 'intermediates': 0}, split_rngs={'params': True}, length=config.num_layers,
                unroll=config.scan_unroll, metadata_params={nn.PARTITION_NAME: 'layers'})
  scanned = nn.scan(block, methods={
      '__call__': dict(common, in_axes=(0, 0, nn.broadcast, nn.broadcast), out_axes=0),
      'project_prompt': dict(common, in_axes=nn.broadcast, out_axes=0)})
  return scanned(config, name=name)
