"""`WorldActionModel`: the one class that training and control touch.

Training sees a whole window at once, teacher-forced; control sees one chunk at a time against a cache. Both run the
same blocks on the same tokens, so with one state rule they give the same numbers.
Source: DreamZero `CausalWanModel`.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax.models import action
from wam_jax.models import attention
from wam_jax.models import dit
from wam_jax.models import layers
from wam_jax.models import text


class WorldActionModel(nn.Module):
  """Velocities of video latents and actions, given clean history, prompt and proprioception."""

  cfg: cfg.ModelConfig

  def setup(self):
    c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
    D, normal = c.dim, nn.initializers.normal(0.02)
    in_channels = 2 * c.tokenizer.channels + 4 if c.image_condition else c.tokenizer.channels
    self.text_encoder = text.WordEncoder(c.text)
    self.patch_embedding = layers.Einsum(
        'BFHpWqC,pqCD->BFHWD', (c.patch, c.patch, in_channels, D), ('norm', 'norm', 'channels', 'embed'), dtype)
    self.text_embedding = layers.MLP(D, D, layers.gelu_tanh, dtype, normal)
    self.time_embedding = layers.MLP(D, D, jax.nn.silu, dtype, normal)
    self.time_projection = layers.Einsum('BGD,DiE->BGiE', (D, 6, D), ('embed', 'norm', 'mlp'), dtype)
    if c.image_dim:
      self.image_embedding = ImageEmbedding(c)
    self.action_encoder = action.ActionEncoder(c)
    self.state_encoder = action.CategoryMLP(c, D, 'embed')
    self.action_decoder = action.CategoryMLP(c, c.action_dim, 'channels')
    self.blocks = dit.make_stack(c, 'blocks')
    self.head_modulation = self.param(
        'head_modulation', layers.boxed(nn.initializers.normal(D ** -0.5), ('norm', 'embed')), (2, D), jnp.float32)
    self.head_norm = layers.LayerNorm(c.eps)
    self.head = layers.Einsum('BTD,DpqC->BTpqC', (D, c.patch, c.patch, c.tokenizer.channels),
                              ('embed', 'norm', 'norm', 'channels'), dtype, nn.initializers.zeros)

  def encode_text(self, ids_BP: jax.Array) -> jax.Array:
    """[B, P] word ids to [B, P, text dim]; runs once per prompt."""
    return self.text_encoder(ids_BP)

  def __call__(self, clean_BFHWC, noisy_BFHWC, sigma_video_BF, noisy_action_BAU, sigma_action_BA, proprio_BQX,
               text_BPC, embodiment_B, action_valid_BA, condition_BFHWC=None, image_BIC=None):
    """Teacher-forced velocities of a window of Q chunks.

    Args:
      clean_BFHWC: every clean latent frame that some later chunk may see: frame 0 and chunks 1 to Q - 1 (later ones
        are allowed and change nothing).
      noisy_BFHWC: noisy latents, of frames 0 to F - 1 with `predict_first_frame`, else of frames 1 to F - 1.
      sigma_video_BF, sigma_action_BA: their noise levels in [0, 1].
      noisy_action_BAU: [B, Q*A, U].
      proprio_BQX: [B, Q * states per chunk, X].
      text_BPC: of `encode_text`, or of a frozen text encoder.
      embodiment_B: int32 category of the action modules.
      action_valid_BA: bool, real action steps; others, and states of samples without any, are seen by nobody.
      condition_BFHWC: image conditioning channels (4 mask, then C) of all F frames, with `image_condition`.
      image_BIC: image-encoder tokens, with `image_dim`.
    Returns:
      velocities like `noisy_BFHWC` and like `noisy_action_BAU`, float32.
    """
    c = self.cfg
    first = 0 if c.predict_first_frame else 1
    Fc, Fn, Q = clean_BFHWC.shape[1], noisy_BFHWC.shape[1], noisy_action_BAU.shape[1] // c.actions_per_chunk
    condition = lambda a, b: None if condition_BFHWC is None else condition_BFHWC[:, a:b]
    clean_BTD, rows, columns = self._video_tokens(clean_BFHWC, condition(0, Fc))
    noisy_BTD, _, _ = self._video_tokens(noisy_BFHWC, condition(first, first + Fn))
    states = proprio_BQX.shape[1]
    layout = masks.training_layout(Fc, range(first, first + Fn), rows * columns, c.frames_per_chunk,
                                   c.actions_per_chunk, states // Q, Q)
    mask_TT = masks.teacher_forcing(
        layout, frames_per_chunk=c.frames_per_chunk, window_frames=1 + c.max_chunks * c.frames_per_chunk,
        state_rule='chunk' if c.state_rule == 'chunk' else 'self')
    x_BTD = jnp.concatenate([
        clean_BTD, noisy_BTD, self.action_encoder(noisy_action_BAU, sigma_action_BA, embodiment_B),
        self.state_encoder(proprio_BQX, embodiment_B)], 1)
    video_angles = attention.video_angles(max(Fc, first + Fn), rows, columns, c.head_dim)
    angles_TR = np.concatenate([
        video_angles[:Fc].reshape(-1, c.head_dim // 2), video_angles[first:first + Fn].reshape(-1, c.head_dim // 2),
        attention.sequence_angles(Q * c.actions_per_chunk, c.head_dim), attention.sequence_angles(states, c.head_dim)])
    sigma_state_BQ = sigma_action_BA[:, ::noisy_action_BAU.shape[1] // states]
    levels_BG = jnp.concatenate(
        [jnp.zeros_like(sigma_video_BF[:, :1]), sigma_video_BF, sigma_action_BA, sigma_state_BQ], 1)
    prompt = self._embed_prompt(text_BPC, image_BIC)
    time_BGD, modulation_BG6D = self._modulation(levels_BG, prompt)
    mask = mask_TT & _seen(action_valid_BA, states, clean_BTD.shape[1] + noisy_BTD.shape[1])[:, None, None, :]
    tokens = dit.Tokens(modulation_BG6D, layout.group, angles_TR, mask)
    x_BTD, _ = self.blocks(x_BTD, None, None, prompt, tokens)
    start, stop = clean_BTD.shape[1], clean_BTD.shape[1] + noisy_BTD.shape[1]
    video = self._video_head(x_BTD[:, start:stop], time_BGD[:, 1:1 + Fn], rows, columns)
    return video, self._action_head(x_BTD[:, stop:stop + noisy_action_BAU.shape[1]], embodiment_B)

  def prompt_kv(self, text_BPC, image_BIC=None):
    """(keys/values of every layer, mean prompt) for `commit` and `denoise`; they do not change during an episode."""
    prompt = self._embed_prompt(text_BPC, image_BIC)
    return self.blocks.project_prompt(None, prompt)[1], _mean_prompt(prompt)

  def commit(self, cache: attention.KVCache, clean_BFHWC, start_frame, prompt, condition_BFHWC=None):
    """Cache with the keys and values of clean (observed) frames written at `start_frame`, at noise level 0."""
    x_BTD, rows, columns = self._video_tokens(clean_BFHWC, condition_BFHWC)
    B, F = clean_BFHWC.shape[:2]
    _, modulation_BG6D = self._modulation(jnp.zeros((B, 1)), prompt)
    tokens = dit.Tokens(modulation_BG6D, np.zeros(x_BTD.shape[1], np.int32),
                        self._chunk_angles(start_frame, F, rows, columns),
                        _cache_mask(cache, start_frame * rows * columns, x_BTD.shape[1]))
    _, (k_LBNTK, v_LBNTK) = self.blocks(x_BTD, (cache.k, cache.v), prompt[0], None, tokens)
    return cache.write(k_LBNTK, v_LBNTK, start_frame, F)

  def denoise(self, cache: attention.KVCache, noisy_BFHWC, sigma_video_BF, noisy_action_BAU, sigma_action_BA,
              proprio_BSX, start_frame, prompt, embodiment_B, action_valid_BA, condition_BFHWC=None):
    """Velocities of the one chunk that starts at `start_frame`, against a cache that is only read."""
    c = self.cfg
    video_BTD, rows, columns = self._video_tokens(noisy_BFHWC, condition_BFHWC)
    F, A, states, chunk = noisy_BFHWC.shape[1], noisy_action_BAU.shape[1], proprio_BSX.shape[1], (
        start_frame - 1) // c.frames_per_chunk
    x_BTD = jnp.concatenate([
        video_BTD, self.action_encoder(noisy_action_BAU, sigma_action_BA, embodiment_B),
        self.state_encoder(proprio_BSX, embodiment_B)], 1)
    table = lambda length, start, n: jax.lax.dynamic_slice_in_dim(
        jnp.asarray(attention.sequence_angles(length, c.head_dim)), start, n)
    angles_TR = jnp.concatenate([
        self._chunk_angles(start_frame, F, rows, columns), table(c.max_chunks * A, chunk * A, A),
        table(c.max_chunks * states, chunk * states, states)])
    levels_BG = jnp.concatenate([sigma_video_BF, sigma_action_BA, sigma_action_BA[:, ::A // states]], 1)
    time_BGD, modulation_BG6D = self._modulation(levels_BG, prompt)
    video_tokens = video_BTD.shape[1]
    group_T = np.concatenate([np.repeat(np.arange(F), rows * columns), F + np.arange(A + states)])
    own_TT = np.ones((x_BTD.shape[1],) * 2, bool)
    past_T = np.ones(x_BTD.shape[1], bool)
    if c.state_rule == 'self':
      own_TT[video_tokens + A:, :video_tokens + A] = False
      past_T[video_tokens + A:] = False
    seen_BT = _seen(action_valid_BA, states, video_tokens)
    cached_S = _cache_mask(cache, start_frame * rows * columns, 0)[0]
    mask = jnp.concatenate([
        jnp.broadcast_to(past_T[None, :, None] & cached_S, (seen_BT.shape[0], len(past_T), cached_S.shape[-1])),
        own_TT & seen_BT[:, None, :]], -1)[:, None]
    tokens = dit.Tokens(modulation_BG6D, group_T, angles_TR, mask)
    x_BTD, _ = self.blocks(x_BTD, (cache.k, cache.v), prompt[0], None, tokens)
    video = self._video_head(x_BTD[:, :video_tokens], time_BGD[:, :F], rows, columns)
    return video, self._action_head(x_BTD[:, video_tokens:video_tokens + A], embodiment_B)

  def _video_tokens(self, latents_BFHWC, condition_BFHWC):
    """[B, F, H, W, C] to ([B, F*h*w, D], h, w) with h, w in patches; conditioning channels come last."""
    if self.cfg.image_condition:
      latents_BFHWC = jnp.concatenate([latents_BFHWC, condition_BFHWC], -1)
    B, F, H, W, C = latents_BFHWC.shape
    p = self.cfg.patch
    x = self.patch_embedding(latents_BFHWC.reshape(B, F, H // p, p, W // p, p, C))
    return x.reshape(B, -1, self.cfg.dim), H // p, W // p

  def _modulation(self, levels_BG, prompt):
    """Noise levels to (time_BGD for the head, modulation_BG6D for the blocks)."""
    dtype = jnp.dtype(self.cfg.dtype)
    time_BGD = self.time_embedding(layers.sinusoid(1000 * levels_BG, self.cfg.freq_dim, 'cos_sin').astype(dtype))
    if self.cfg.prompt_in_modulation:
      time_BGD = time_BGD + (_mean_prompt(prompt) if isinstance(prompt, dit.Prompt) else prompt[1])[:, None]
    return time_BGD, self.time_projection(jax.nn.silu(time_BGD))

  def _embed_prompt(self, text_BPC, image_BIC):
    image = self.image_embedding(image_BIC) if self.cfg.image_dim else None
    return dit.Prompt(self.text_embedding(text_BPC), image)

  def _chunk_angles(self, start_frame, frames, rows, columns):
    c = self.cfg
    table = attention.video_angles(1 + c.max_chunks * c.frames_per_chunk, rows, columns, c.head_dim)
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), start_frame, frames).reshape(-1, c.head_dim // 2)

  def _video_head(self, x_BTD, time_BFD, rows, columns):
    B, T, D = x_BTD.shape
    F, p = time_BFD.shape[1], self.cfg.patch
    m_BF2D = self.head_modulation.astype(x_BTD.dtype) + time_BFD[:, :, None]
    shift, scale = (jnp.repeat(m_BF2D[:, :, i], T // F, axis=1) for i in range(2))
    y = self.head(self.head_norm(x_BTD) * (1 + scale) + shift).astype(jnp.float32)
    y = y.reshape(B, F, rows, columns, p, p, -1).transpose(0, 1, 2, 4, 3, 5, 6)
    return y.reshape(B, F, rows * p, columns * p, -1)

  def _action_head(self, x_BAD, embodiment_B):
    return self.action_decoder(x_BAD, embodiment_B).astype(jnp.float32)


class ImageEmbedding(nn.Module):
  """Image-encoder tokens to the model width. Source: Wan `MLPProj`."""

  cfg: cfg.ModelConfig

  @nn.compact
  def __call__(self, image_BIC):
    C, D, dtype = image_BIC.shape[-1], self.cfg.dim, jnp.dtype(self.cfg.dtype)
    x = layers.LayerNorm(1e-5, affine=True, name='norm_in')(image_BIC)
    h = layers.Einsum('BIC,CM->BIM', (C, C), ('channels', 'mlp'), dtype, name='in')(x)
    y = layers.Einsum('BIM,MD->BID', (C, D), ('mlp', 'embed'), dtype, name='out')(layers.gelu_erf(h))
    return layers.LayerNorm(1e-5, affine=True, name='norm_out')(y)


def _mean_prompt(prompt: dit.Prompt) -> jax.Array:
  return jnp.mean(prompt.text_BPD, axis=1)


def _seen(action_valid_BA, states, video_tokens):
  """[B, T] bool: video tokens always, valid action steps, states of samples that have a valid action."""
  B, A = action_valid_BA.shape
  state_BS = jnp.broadcast_to(jnp.any(action_valid_BA, 1, keepdims=True), (B, states))
  return jnp.concatenate([jnp.ones((B, video_tokens), bool), action_valid_BA, state_BS], 1)


def _cache_mask(cache, filled, own):
  """[1, 1, S + own] bool: filled cache slots and all `own` new tokens."""
  slots = jnp.arange(cache.k.shape[3]) < filled
  return jnp.concatenate([slots, jnp.ones(own, bool)])[None, None]
