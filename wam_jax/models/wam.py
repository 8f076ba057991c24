"""`WorldActionModel`: the one class that training and control touch.

Training sees a whole window at once, teacher-forced; control sees one chunk at a time against a
cache. Both run the same blocks on the same tokens, so with one state rule they give the same
numbers.
Source: DreamZero `CausalWanModel`.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import sharding
from wam_jax.models import action
from wam_jax.models import attention
from wam_jax.models import dit
from wam_jax.models import layers
from wam_jax.models import text

REFERENCE_GLOBAL_FRAMES = 21  # What control with the reference's max_chunk_size -1 sees at most.


class WorldActionModel(nn.Module):
  """Velocities of video latents and actions, given clean history, prompt and proprioception."""

  cfg: cfg.ModelConfig

  def setup(self):
    c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
    D, normal = c.dim, nn.initializers.normal(0.02)
    self.text_encoder = text.WordEncoder(c.text)
    self.patch_embedding = layers.Einsum(
      'BFHpWqC,pqCD->BFHWD',
      (c.patch, c.patch, c.in_channels, D),
      ('norm', 'norm', 'channels', 'embed'),
      dtype,
    )
    self.text_embedding = layers.MLP(D, D, layers.gelu_tanh, dtype, normal)
    self.time_embedding = layers.MLP(D, D, jax.nn.silu, dtype, normal)
    self.time_projection = layers.Einsum(
      'BGD,DiE->BGiE', (D, 6, D), ('embed', 'norm', 'mlp'), dtype
    )
    if c.image_dim:
      self.image_embedding = ImageEmbedding(c)
    self.action_encoder = action.ActionEncoder(c)
    self.state_encoder = action.CategoryMLP(c, D, 'embed')
    self.action_decoder = action.CategoryMLP(c, c.action_dim, 'channels', 'embed')
    self.blocks = dit.make_stack(c, 'blocks')
    self.head_modulation = self.param(
      'head_modulation',
      layers.boxed(nn.initializers.normal(D**-0.5), ('norm', 'embed')),
      (2, D),
      jnp.float32,
    )
    self.head_norm = layers.LayerNorm(c.eps)
    self.head = layers.Einsum(
      'BTD,DpqC->BTpqC',
      (D, c.patch, c.patch, c.tokenizer.channels),
      ('embed', 'norm', 'norm', 'channels'),
      dtype,
      nn.initializers.zeros,
    )

  def encode_text(self, ids_BP: jax.Array) -> jax.Array:
    """[B, P] word ids to [B, P, text dim]; runs once per prompt."""
    return self.text_encoder(ids_BP)

  def __call__(
    self,
    clean_BFHWC,
    noisy_BFHWC,
    sigma_video_BF,
    noisy_action_BAU,
    sigma_action_BA,
    proprio_BQX,
    text_BPC,
    embodiment_B,
    action_valid_BA,
    condition_BFHWC=None,
    image_BIC=None,
  ):
    """Velocities of a window of Q chunks: teacher-forced, or with `clean_BFHWC` None given their
    own noisy past.

    Args:
      clean_BFHWC: every clean latent frame that some later chunk may see: frame 0 and chunks 1 to Q
        - 1 (later ones are allowed and change nothing); or None.
      noisy_BFHWC: noisy latents, of frames 0 to F - 1 with `predict_first_frame` or without clean
        ones, else of frames 1 to F - 1.
      sigma_video_BF, sigma_action_BA: their noise levels in [0, 1].
      noisy_action_BAU: [B, Q*A, U]; None, like the four other arguments of actions and states, for
        video alone.
      proprio_BQX: [B, Q * states per chunk, X].
      text_BPC: of `encode_text`, or of a frozen text encoder.
      embodiment_B: int32 category of the action modules.
      action_valid_BA: bool, real action steps; others, and states of samples without any, are seen
        by nobody.
      condition_BFHWC: image conditioning channels (4 mask, then C) of all F frames, with
        `image_condition`.
      image_BIC: image-encoder tokens, with `image_dim`.
    Returns:
      velocities like `noisy_BFHWC` and like `noisy_action_BAU` (or None), float32.
    """
    c = self.cfg
    frames = noisy_BFHWC.shape[1]
    clean_frames = 0 if clean_BFHWC is None else clean_BFHWC.shape[1]
    first = 0 if c.predict_first_frame or not clean_frames else 1
    condition = lambda a, b: None if condition_BFHWC is None else condition_BFHWC[:, a:b]
    clean = (
      [] if not clean_frames else [self._video_tokens(clean_BFHWC, condition(0, clean_frames))[0]]
    )
    noisy_BTD, rows, columns = self._video_tokens(noisy_BFHWC, condition(first, first + frames))
    register = self._register(
      noisy_BTD, noisy_action_BAU, sigma_action_BA, proprio_BQX, embodiment_B, action_valid_BA
    )
    chunks = register.actions // c.actions_per_chunk
    layout = masks.training_layout(
      clean_frames,
      range(first, first + frames),
      rows * columns,
      c.frames_per_chunk,
      c.actions_per_chunk,
      register.states // max(chunks, 1),
      chunks,
    )
    plan = attention.make_plan(c, layout)
    angles = lambda start, n: attention.video_angles(start, n, rows, columns, c.head_dim)
    angles_TR = np.concatenate([angles(0, clean_frames), angles(first, frames), *register.angles])[
      plan.order
    ]
    levels_BG = jnp.concatenate(
      [jnp.zeros_like(sigma_video_BF[:, :1]), sigma_video_BF, register.levels_BG], 1
    )
    prompt = self._embed_prompt(text_BPC, image_BIC)
    time_BGD, modulation_BG6D = self._modulation(levels_BG, prompt)
    start, stop = clean_frames * rows * columns, (clean_frames + frames) * rows * columns
    mask = attention.arrange(register.seen_after(stop), plan.order)
    if plan.pattern is None:
      mask = (
        attention.training_mask(c, layout)[np.ix_(plan.order, plan.order)] & mask[:, None, None]
      )
    tokens = dit.Tokens(
      modulation_BG6D, layout.group[plan.order], angles_TR, mask, plan.alone_T, plan.pattern
    )
    # All tokens are on all shards where they are put in order: XLA's gradient of slices of a split
    # axis is wrong.
    whole = lambda x: sharding.shard(x, 'batch', None, 'act_embed')
    x_BTD = whole(
      attention.arrange(jnp.concatenate([*clean, noisy_BTD, register.x_BTD], 1), plan.order)
    )
    x_BTD, _ = self.blocks(
      sharding.shard(x_BTD, 'batch', 'tokens', 'act_embed'), None, None, prompt, tokens
    )
    back_T = np.argsort(np.where(plan.order < 0, len(plan.order), plan.order), kind='stable')[
      start : len(layout.kind)
    ]
    x_BTD = attention.arrange(whole(x_BTD), back_T)
    video = self._video_head(x_BTD[:, : stop - start], time_BGD[:, 1 : 1 + frames], rows, columns)
    return video, self._action_head(x_BTD[:, stop - start :], register, embodiment_B)

  def prompt_kv(self, text_BPC, image_BIC=None):
    """(keys/values of every layer, mean prompt) for `commit` and `denoise`; they do not change
    during an episode.
    """
    prompt = self._embed_prompt(text_BPC, image_BIC)
    return self.blocks.project_prompt(None, prompt)[1], _mean_prompt(prompt)

  def commit(
    self, cache: attention.KVCache, clean_BFHWC, start_frame, prompt, condition_BFHWC=None
  ):
    """Cache with the keys and values of clean (observed) frames written at `start_frame`, at noise
    level 0.
    """
    return self._commit(cache, clean_BFHWC, start_frame, prompt, condition_BFHWC)[0]

  def commit_and_predict(
    self, cache: attention.KVCache, clean_BFHWC, start_frame, prompt, condition_BFHWC=None
  ):
    """(cache of `commit`, the velocity that the video head gives for the clean frames)."""
    cache, x_BTD, time_BGD, rows, columns = self._commit(
      cache, clean_BFHWC, start_frame, prompt, condition_BFHWC
    )
    time_BFD = jnp.repeat(time_BGD, clean_BFHWC.shape[1], 1)
    return cache, self._video_head(x_BTD, time_BFD, rows, columns)

  def denoise(
    self,
    cache: attention.KVCache,
    noisy_BFHWC,
    sigma_video_BF,
    noisy_action_BAU,
    sigma_action_BA,
    proprio_BSX,
    start_frame,
    prompt,
    embodiment_B,
    action_valid_BA,
    condition_BFHWC=None,
  ):
    """Velocities of the one chunk that starts at `start_frame`, against a cache that is only read.

    As in `__call__`, the arguments of actions and states may be None for video alone.
    """
    c = self.cfg
    video_BTD, rows, columns = self._video_tokens(noisy_BFHWC, condition_BFHWC)
    F, video_tokens = noisy_BFHWC.shape[1], video_BTD.shape[1]
    register = self._register(
      video_BTD,
      noisy_action_BAU,
      sigma_action_BA,
      proprio_BSX,
      embodiment_B,
      action_valid_BA,
      (start_frame - 1) // c.frames_per_chunk,
    )
    angles_TR = jnp.concatenate(
      [attention.video_angles(start_frame, F, rows, columns, c.head_dim), *register.angles]
    )
    time_BGD, modulation_BG6D = self._modulation(
      jnp.concatenate([sigma_video_BF, register.levels_BG], 1), prompt
    )
    group_T = np.concatenate(
      [np.repeat(np.arange(F), rows * columns), F + np.arange(register.x_BTD.shape[1])]
    )
    own_TT = np.ones((len(group_T),) * 2, bool)
    past_T = np.ones(len(group_T), bool)
    if c.state_rule == 'self':
      states = video_tokens + register.actions
      own_TT[states:, :states] = False
      past_T[states:] = False
    seen_BT = register.seen_after(video_tokens)
    past_S = self._seen_cache(cache, start_frame, F, rows * columns)
    mask = jnp.concatenate(
      [
        jnp.broadcast_to(past_T[:, None] & past_S, (seen_BT.shape[0], len(past_T), len(past_S))),
        own_TT & seen_BT[:, None, :],
      ],
      -1,
    )[:, None]
    tokens = dit.Tokens(modulation_BG6D, group_T, angles_TR, mask)
    x_BTD, _ = self.blocks(
      jnp.concatenate([video_BTD, register.x_BTD], 1), (cache.k, cache.v), prompt[0], None, tokens
    )
    video = self._video_head(x_BTD[:, :video_tokens], time_BGD[:, :F], rows, columns)
    return video, self._action_head(x_BTD[:, video_tokens:], register, embodiment_B)

  def _commit(self, cache, clean_BFHWC, start_frame, prompt, condition_BFHWC):
    x_BTD, rows, columns = self._video_tokens(clean_BFHWC, condition_BFHWC)
    B, F = clean_BFHWC.shape[:2]
    time_BGD, modulation_BG6D = self._modulation(jnp.zeros((B, 1)), prompt)
    past_S = self._seen_cache(cache, start_frame, F, rows * columns)
    tokens = dit.Tokens(
      modulation_BG6D,
      np.zeros(x_BTD.shape[1], np.int32),
      attention.video_angles(start_frame, F, rows, columns, self.cfg.head_dim),
      jnp.concatenate([past_S, jnp.ones(x_BTD.shape[1], bool)])[None, None],
    )
    x_BTD, (k_LBNTK, v_LBNTK) = self.blocks(x_BTD, (cache.k, cache.v), prompt[0], None, tokens)
    return cache.write(k_LBNTK, v_LBNTK, start_frame, F), x_BTD, time_BGD, rows, columns

  def _register(
    self,
    video_BTD,
    noisy_action_BAU,
    sigma_action_BA,
    proprio_BSX,
    embodiment_B,
    action_valid_BA,
    chunk=0,
  ) -> Register:
    """Action and state tokens that follow the video, counted from the start of chunk `chunk` of the
    episode.
    """
    B, K = len(video_BTD), self.cfg.head_dim
    if noisy_action_BAU is None:
      return Register(video_BTD[:, :0], jnp.zeros((B, 0)), (), jnp.ones((B, 0), bool), 0)
    A, S = noisy_action_BAU.shape[1], proprio_BSX.shape[1]
    x_BTD = jnp.concatenate(
      [
        self.action_encoder(noisy_action_BAU, sigma_action_BA, embodiment_B),
        self.state_encoder(proprio_BSX, embodiment_B),
      ],
      1,
    )
    levels_BG = jnp.concatenate([sigma_action_BA, sigma_action_BA[:, :: A // S][:, :S]], 1)
    angles = tuple(attention.sequence_angles(chunk * n, n, K) for n in (A, S))
    state_BS = jnp.broadcast_to(jnp.any(action_valid_BA, 1, keepdims=True), (B, S))
    return Register(x_BTD, levels_BG, angles, jnp.concatenate([action_valid_BA, state_BS], 1), A)

  def _training_mask(self, layout):
    return attention.training_mask(self.cfg, layout)

  def _seen_cache(self, cache, start_frame, frames, tokens_per_frame):
    """[S] bool: cached tokens that new frames see."""
    window = self.cfg.window_frames if self.cfg.history_rule == 'chunk' else REFERENCE_GLOBAL_FRAMES
    return cache.seen_from(start_frame, frames, window, tokens_per_frame)

  def _video_tokens(self, latents_BFHWC, condition_BFHWC):
    """[B, F, H, W, C] to ([B, F*h*w, D], h, w) with h, w in patches; conditioning channels come
    last.
    """
    if self.cfg.image_condition:
      latents_BFHWC = jnp.concatenate([latents_BFHWC, condition_BFHWC], -1)
    B, F, H, W, C = latents_BFHWC.shape
    p = self.cfg.patch
    x = self.patch_embedding(latents_BFHWC.reshape(B, F, H // p, p, W // p, p, C))
    return x.reshape(B, -1, self.cfg.dim), H // p, W // p

  def _modulation(self, levels_BG, prompt):
    """Noise levels to (time_BGD for the head, modulation_BG6D for the blocks)."""
    dtype = jnp.dtype(self.cfg.dtype)
    time_BGD = self.time_embedding(
      layers.sinusoid(1000 * levels_BG, self.cfg.freq_dim, 'cos_sin').astype(dtype)
    )
    if self.cfg.prompt_in_modulation:
      time_BGD = (
        time_BGD + (_mean_prompt(prompt) if isinstance(prompt, dit.Prompt) else prompt[1])[:, None]
      )
    return time_BGD, self.time_projection(jax.nn.silu(time_BGD))

  def _embed_prompt(self, text_BPC, image_BIC):
    image = self.image_embedding(image_BIC) if self.cfg.image_dim else None
    return dit.Prompt(self.text_embedding(text_BPC), image)

  def _video_head(self, x_BTD, time_BFD, rows, columns):
    B, T, D = x_BTD.shape
    F, p = time_BFD.shape[1], self.cfg.patch
    m_BF2D = self.head_modulation.astype(x_BTD.dtype) + time_BFD[:, :, None]
    shift, scale = (jnp.repeat(m_BF2D[:, :, i], T // F, axis=1) for i in range(2))
    y = self.head(self.head_norm(x_BTD) * (1 + scale) + shift).astype(jnp.float32)
    y = y.reshape(B, F, rows, columns, p, p, -1).transpose(0, 1, 2, 4, 3, 5, 6)
    return y.reshape(B, F, rows * p, columns * p, -1)

  def _action_head(self, x_BTD, register, embodiment_B):
    if not register.actions:
      return None
    return self.action_decoder(x_BTD[:, : register.actions], embodiment_B).astype(jnp.float32)


class Register(NamedTuple):
  """Tokens after the video: actions, then states.

  Attributes:
    x_BTD: the tokens. levels_BG: their noise levels; a state has that of the first action it goes
      with.
    angles: rotary angles [A, K/2] and [S, K/2]; () without tokens.
    seen_BT: bool, valid action steps, and states of samples that have one.
    actions: A.
  """

  x_BTD: jax.Array
  levels_BG: jax.Array
  angles: tuple
  seen_BT: jax.Array
  actions: int

  @property
  def states(self) -> int:
    """S."""
    return self.x_BTD.shape[1] - self.actions

  def seen_after(self, video_tokens: int) -> jax.Array:
    """[B, video_tokens + A + S] bool: what may be seen of the sequence; video always."""
    return jnp.concatenate([jnp.ones((len(self.seen_BT), video_tokens), bool), self.seen_BT], 1)


class ImageEmbedding(nn.Module):
  """Image-encoder tokens to the model width. Source: Wan `MLPProj`."""

  cfg: cfg.ModelConfig

  @nn.compact
  def __call__(self, image_BIC):
    C, D, dtype = image_BIC.shape[-1], self.cfg.dim, jnp.dtype(self.cfg.dtype)
    x = layers.LayerNorm(1e-5, affine=True, name='norm_in')(image_BIC)
    h = layers.Einsum('BIC,CM->BIM', (C, C), ('embed', 'mlp'), dtype, name='in')(x)
    y = layers.Einsum('BIM,MD->BID', (C, D), ('mlp', 'embed'), dtype, name='out')(
      layers.gelu_erf(h)
    )
    return layers.LayerNorm(1e-5, affine=True, name='norm_out')(y)


def _mean_prompt(prompt: dit.Prompt) -> jax.Array:
  return jnp.mean(prompt.text_BPD, axis=1)
