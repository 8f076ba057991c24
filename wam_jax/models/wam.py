"""`WorldActionModel`: the one class that training and control touch.

Training sees a whole window at once, teacher-forced; control sees one chunk at a time against a
cache. Both run the same blocks on the same tokens, so with one state rule they give the same
numbers.
Source: DreamZero `CausalWanModel`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import sharding
from wam_jax import types
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
    c = self.cfg
    D = c.dim
    dtype = jnp.dtype(c.dtype)
    normal = nn.initializers.normal(0.02)
    self.text_encoder = text.WordEncoder(c.text)
    self.patch_embedding = layers.Einsum(
      'BFHpWqC,pqCD->BFHWD',
      (c.patch, c.patch, c.in_channels, D),
      ('norm', 'norm', 'channels', 'embed'),
      dtype,
      gradient_dtype=c.gradient_dtype,
    )
    embedding = functools.partial(layers.MLP, D, D, gradient_dtype=c.gradient_dtype)
    self.text_embedding = embedding(layers.gelu_tanh, dtype, normal)
    self.time_embedding = embedding(jax.nn.silu, dtype, normal)
    self.time_projection = layers.Einsum(
      'BGD,DiE->BGiE',
      (D, 6, D),
      ('embed', 'norm', 'mlp'),
      dtype,
      gradient_dtype=c.gradient_dtype,
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
      nn.initializers.zeros,  # So that training begins with no velocity, as Wan's does.
      gradient_dtype=c.gradient_dtype,
    )

  def encode_text(self, ids_BP: jax.Array) -> jax.Array:
    """[B, P] word ids to [B, P, text dim]; runs once per prompt."""
    return self.text_encoder(ids_BP)

  def __call__(
    self,
    clean_BFHWC: jax.Array | None,
    noisy: types.Noisy,
    body: types.Body | None,
    text_BPC: jax.Array,
    condition: types.Condition = types.UNCONDITIONED,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Velocities of a window of Q chunks: teacher-forced, or with `clean_BFHWC` None given their
    own noisy past.

    Args:
      clean_BFHWC: every clean latent frame that some later chunk may see: frame 0 and chunks 1 to
        Q - 1 (later ones are allowed and change nothing); or None.
      noisy: the actions of all chunks, and frames 0 to F - 1 with `predict_first_frame` or without
        clean ones, else frames 1 to F - 1.
      body: the robots; None, like the actions of `noisy`, for video alone.
      text_BPC: the output of `encode_text`, or of a frozen text encoder.
      condition: what frame 0 says about all F frames, with `image_condition` and `image_dim`.
    Returns:
      velocities like the video and like the actions of `noisy` (or None), float32.
    """
    c = self.cfg
    grid = self._grid(noisy.video_BFHWC)
    frames = noisy.video_BFHWC.shape[1]
    clean_frames = 0 if clean_BFHWC is None else clean_BFHWC.shape[1]
    # Frame 0 is shown clean and not denoised, unless the model predicts it or sees nothing clean.
    first = 0 if c.predict_first_frame or not clean_frames else 1

    # The sequence, in the order of `masks.training_layout`: clean video, noisy video, actions,
    # states.
    clean = []
    if clean_frames:
      clean.append(self._video_tokens(clean_BFHWC, _cut(condition, 0, clean_frames)))
    noisy_BTD = self._video_tokens(noisy.video_BFHWC, _cut(condition, first, first + frames))
    register = self._register(noisy, body)
    sequence_BTD = jnp.concatenate([*clean, noisy_BTD, register.x_BTD], 1)

    # Who sees whom, and the order of the tokens in which that is cheap.
    chunks = register.actions // c.actions_per_chunk
    layout = masks.training_layout(
      clean_frames=clean_frames,
      noisy_frames=range(first, first + frames),
      tokens_per_frame=grid.tokens,
      frames_per_chunk=c.frames_per_chunk,
      actions_per_chunk=c.actions_per_chunk,
      states_per_chunk=register.states // max(chunks, 1),
      chunks=chunks,
    )
    plan = attention.make_plan(c, layout)
    video_tokens = (clean_frames + frames) * grid.tokens
    mask = attention.arrange(register.seen_after(video_tokens), plan.order)
    if plan.pattern is None:
      visible_TT = attention.training_mask(c, layout)[np.ix_(plan.order, plan.order)]
      mask = visible_TT & mask[:, None, None]

    # Noise levels: one for all clean tokens, then one for each noisy frame, action and state.
    prompt = self._embed_prompt(text_BPC, condition.image_BIC)
    level_of_clean_B1 = jnp.zeros_like(noisy.sigma_video_BF[:, :1])
    levels_BG = jnp.concatenate([level_of_clean_B1, noisy.sigma_video_BF, register.levels_BG], 1)
    time_BGD, modulation_BG6D = self._modulation(levels_BG, _mean_prompt(prompt))

    # Padding, -1 in the order, has the group and the angles of the last token; nobody sees it.
    angles_TR = np.concatenate(
      [
        attention.video_angles(0, clean_frames, *grid, c.head_dim),
        attention.video_angles(first, frames, *grid, c.head_dim),
        *register.angles,
      ]
    )
    tokens = dit.Tokens(
      modulation_BG6D=modulation_BG6D,
      group_T=layout.group[plan.order],
      angles_TR=angles_TR[plan.order],
      mask=mask,
      alone_T=plan.alone_T,
      pattern=plan.pattern,
    )

    # The clean tokens have done their work in the blocks.
    noisy_T = _places(plan.order)[clean_frames * grid.tokens :]
    x_BTD = self._run_blocks(sequence_BTD, plan.order, noisy_T, prompt, tokens)
    return self._velocities(x_BTD, time_BGD[:, 1 : 1 + frames], grid, register, body)

  def prompt_kv(self, text_BPC: jax.Array, image_BIC: jax.Array | None = None) -> PromptKV:
    """What `commit` and `denoise` take as the prompt; it does not change during an episode."""
    prompt = self._embed_prompt(text_BPC, image_BIC)
    _, layers_kv = self.blocks.project_prompt(None, prompt)
    return PromptKV(layers_kv, _mean_prompt(prompt))

  def commit(
    self,
    cache: attention.KVCache,
    clean_BFHWC: jax.Array,
    start_frame: jax.Array | int,
    prompt: PromptKV,
    condition: types.Condition = types.UNCONDITIONED,
  ) -> attention.KVCache:
    """Cache with the keys and values of clean (observed) frames written at `start_frame`, at noise
    level 0.

    Args:
      condition: what the anchor says about these frames; its image tokens are in `prompt`.
    """
    return self._commit(cache, clean_BFHWC, start_frame, prompt, condition)[0]

  def commit_and_predict(
    self,
    cache: attention.KVCache,
    clean_BFHWC: jax.Array,
    start_frame: jax.Array | int,
    prompt: PromptKV,
    condition: types.Condition = types.UNCONDITIONED,
  ) -> tuple[attention.KVCache, jax.Array]:
    """(cache of `commit`, the velocity that the video head gives for the clean frames)."""
    cache, x_BTD, time_B1D = self._commit(cache, clean_BFHWC, start_frame, prompt, condition)
    time_BFD = jnp.repeat(time_B1D, clean_BFHWC.shape[1], 1)
    return cache, self._video_head(x_BTD, time_BFD, self._grid(clean_BFHWC))

  def denoise(
    self,
    cache: attention.KVCache,
    noisy: types.Noisy,
    body: types.Body | None,
    start_frame: jax.Array | int,
    prompt: PromptKV,
    condition: types.Condition = types.UNCONDITIONED,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Velocities of the one chunk that starts at `start_frame`, against a cache that is only read.

    Args:
      noisy, body: the chunk, as in `__call__`; video alone without actions and body.
      condition: what the anchor says about these frames; its image tokens are in `prompt`.
    """
    c = self.cfg
    grid = self._grid(noisy.video_BFHWC)
    frames = noisy.video_BFHWC.shape[1]

    # The sequence: noisy video, actions, states. What is clean is in the cache.
    video_BTD = self._video_tokens(noisy.video_BFHWC, condition.latents_BFHWC)
    register = self._register(noisy, body, chunk=(start_frame - 1) // c.frames_per_chunk)
    sequence_BTD = jnp.concatenate([video_BTD, register.x_BTD], 1)

    # In its chunk a token sees what it sees in training, of the past what the cache has in its
    # window; the states of the reference, which in training see each other alone, here see all.
    layout = masks.training_layout(
      clean_frames=0,
      noisy_frames=range(1, 1 + frames),
      tokens_per_frame=grid.tokens,
      frames_per_chunk=frames,
      actions_per_chunk=register.actions,
      states_per_chunk=register.states,
      chunks=1 if register.actions else 0,
    )
    state_rule = 'self' if c.state_rule == 'self' else 'chunk'
    visible_TT = masks.without_clean(
      layout, frames_per_chunk=frames, window_frames=1 + frames, state_rule=state_rule
    )
    seen_BT = register.seen_after(video_BTD.shape[1])
    looks_back_T = (layout.kind != masks.STATE) | (state_rule == 'chunk')
    past_TS = looks_back_T[:, None] & self._seen_cache(cache, start_frame, frames, grid.tokens)
    past_BTS = jnp.broadcast_to(past_TS, (len(seen_BT), *past_TS.shape))
    mask_BTS = jnp.concatenate([past_BTS, visible_TT & seen_BT[:, None, :]], -1)

    levels_BG = jnp.concatenate([noisy.sigma_video_BF, register.levels_BG], 1)
    time_BGD, modulation_BG6D = self._modulation(levels_BG, prompt.mean_BD)
    angles_TR = jnp.concatenate(
      [attention.video_angles(start_frame, frames, *grid, c.head_dim), *register.angles]
    )
    tokens = dit.Tokens(
      modulation_BG6D=modulation_BG6D,
      group_T=layout.group - 1,  # Group 0 is that of clean tokens.
      angles_TR=angles_TR,
      mask=mask_BTS[:, None],
    )
    x_BTD, _ = self.blocks(sequence_BTD, (cache.k, cache.v), prompt.layers, None, tokens)
    return self._velocities(x_BTD, time_BGD[:, :frames], grid, register, body)

  def _commit(self, cache, clean_BFHWC, start_frame, prompt, condition):
    """(cache with the clean frames, their tokens after the blocks, their time embedding)."""
    grid = self._grid(clean_BFHWC)
    B, F = clean_BFHWC.shape[:2]
    x_BTD = self._video_tokens(clean_BFHWC, condition.latents_BFHWC)
    time_B1D, modulation_B16D = self._modulation(jnp.zeros((B, 1)), prompt.mean_BD)
    past_S = self._seen_cache(cache, start_frame, F, grid.tokens)
    own_T = jnp.ones(x_BTD.shape[1], bool)
    tokens = dit.Tokens(
      modulation_BG6D=modulation_B16D,
      group_T=np.zeros(x_BTD.shape[1], np.int32),
      angles_TR=attention.video_angles(start_frame, F, *grid, self.cfg.head_dim),
      mask=jnp.concatenate([past_S, own_T])[None, None],
    )
    x_BTD, (k_LBNTK, v_LBNTK) = self.blocks(x_BTD, (cache.k, cache.v), prompt.layers, None, tokens)
    return cache.write(k_LBNTK, v_LBNTK, start_frame, F), x_BTD, time_B1D

  def _run_blocks(self, sequence_BTD, order, wanted_T, prompt: dit.Prompt, tokens: dit.Tokens):
    """The blocks on a window with its tokens in `order`; of the results those at `wanted_T`."""
    # All tokens are on all shards where they change places: XLA's gradient of slices of a split
    # axis is wrong.
    whole = lambda x_BTD: sharding.shard(x_BTD, 'batch', None, 'act_embed')
    x_BTD = whole(attention.arrange(sequence_BTD, order))
    x_BTD = sharding.shard(x_BTD, 'batch', 'tokens', 'act_embed')
    x_BTD, _ = self.blocks(x_BTD, None, None, prompt, tokens)
    return attention.arrange(whole(x_BTD), wanted_T)

  def _register(self, noisy: types.Noisy, body: types.Body | None, chunk=0) -> Register:
    """Action and state tokens that follow the video, counted from the start of chunk `chunk` of the
    episode.
    """
    B = len(noisy.video_BFHWC)
    if (noisy.action_BAU is None) != (body is None):
      raise ValueError(
        'noisy.action_BAU and body must come together; give neither for video alone.'
      )
    if body is None:
      return Register(
        x_BTD=jnp.zeros((B, 0, self.cfg.dim), self.cfg.dtype),
        levels_BG=jnp.zeros((B, 0)),
        angles=(),
        seen_BT=jnp.ones((B, 0), bool),
        actions=0,
      )
    A, S = noisy.action_BAU.shape[1], body.proprio_BSX.shape[1]
    action_BAD = self.action_encoder(noisy.action_BAU, noisy.sigma_action_BA, body.embodiment_B)
    state_BSD = self.state_encoder(body.proprio_BSX, body.embodiment_B)
    # A state has the noise level of the first action that it goes with.
    level_BS = noisy.sigma_action_BA[:, :: A // S][:, :S]
    is_robot_B1 = jnp.any(body.valid_BA, 1, keepdims=True)
    angles = lambda n: attention.sequence_angles(chunk * n, n, self.cfg.head_dim)
    return Register(
      x_BTD=jnp.concatenate([action_BAD, state_BSD], 1),
      levels_BG=jnp.concatenate([noisy.sigma_action_BA, level_BS], 1),
      angles=(angles(A), angles(S)),
      seen_BT=jnp.concatenate([body.valid_BA, jnp.broadcast_to(is_robot_B1, (B, S))], 1),
      actions=A,
    )

  def _seen_cache(self, cache, start_frame, frames, tokens_per_frame):
    """[S] bool: cached tokens that new frames see."""
    window = self.cfg.window_frames if self.cfg.history_rule == 'chunk' else REFERENCE_GLOBAL_FRAMES
    return cache.seen_from(start_frame, frames, window, tokens_per_frame)

  def _grid(self, latents_BFHWC) -> Grid:
    H, W = latents_BFHWC.shape[2:4]
    return Grid(H // self.cfg.patch, W // self.cfg.patch)

  def _video_tokens(self, latents_BFHWC, condition_BFHWC):
    """[B, F, H, W, C] to [B, F * tokens of the grid, D]; conditioning channels come last."""
    if self.cfg.image_condition:
      latents_BFHWC = jnp.concatenate([latents_BFHWC, condition_BFHWC], -1)
    B, F, H, W, C = latents_BFHWC.shape
    p = self.cfg.patch
    patches_BFHpWqC = latents_BFHWC.reshape((B, F, H // p, p, W // p, p, C))
    x_BFHWD = self.patch_embedding(patches_BFHpWqC)
    return x_BFHWD.reshape(B, -1, self.cfg.dim)

  def _modulation(self, levels_BG, mean_prompt_BD):
    """Noise levels to (time_BGD for the head, modulation_BG6D for the blocks)."""
    timestep_BG = 1000 * levels_BG
    sinusoid = layers.sinusoid(timestep_BG, self.cfg.freq_dim, 'cos_sin')
    time_BGD = self.time_embedding(sinusoid.astype(self.cfg.dtype))
    if self.cfg.prompt_in_modulation:
      time_BGD = time_BGD + mean_prompt_BD[:, None]
    # By samples, or XLA would split the contracted axis and put all samples on every device.
    time_BGD = sharding.shard(time_BGD, 'batch', None, 'act_embed')
    modulation_BG6D = self.time_projection(jax.nn.silu(time_BGD))
    return time_BGD, sharding.shard(modulation_BG6D, 'batch', None, None, 'act_embed')

  def _embed_prompt(self, text_BPC, image_BIC) -> dit.Prompt:
    image_BID = self.image_embedding(image_BIC) if self.cfg.image_dim else None
    return dit.Prompt(self.text_embedding(text_BPC), image_BID)

  def _velocities(self, x_BTD, time_BFD, grid, register, body):
    """(video, actions or None) of tokens after the blocks: noisy video, then the register."""
    video_tokens = time_BFD.shape[1] * grid.tokens
    video_BFHWC = self._video_head(x_BTD[:, :video_tokens], time_BFD, grid)
    if not register.actions:
      return video_BFHWC, None
    register_BTD = x_BTD[:, video_tokens:]
    action_BAD = register_BTD[:, : register.actions]
    action_BAU = self.action_decoder(action_BAD, body.embodiment_B)
    return video_BFHWC, action_BAU.astype(jnp.float32)

  def _video_head(self, x_BTD, time_BFD, grid):
    """Velocities [B, F, H, W, C] of video tokens whose frames have these time embeddings."""
    B, F = time_BFD.shape[:2]
    p = self.cfg.patch
    m_BF2D = self.head_modulation.astype(x_BTD.dtype) + time_BFD[:, :, None]
    shift_BTD = jnp.repeat(m_BF2D[:, :, 0], grid.tokens, axis=1)
    scale_BTD = jnp.repeat(m_BF2D[:, :, 1], grid.tokens, axis=1)
    y = self.head(self.head_norm(x_BTD) * (1 + scale_BTD) + shift_BTD)
    y = y.astype(jnp.float32)
    # From patches [B, F, rows, columns, p, p, C] to latents.
    y = y.reshape(B, F, *grid, p, p, -1)
    y = y.transpose((0, 1, 2, 4, 3, 5, 6))
    return y.reshape(B, F, grid.rows * p, grid.columns * p, -1)


class Grid(NamedTuple):
  """Size of a latent frame in patches."""

  rows: int
  columns: int

  @property
  def tokens(self) -> int:
    """Tokens of a frame."""
    return self.rows * self.columns


class PromptKV(NamedTuple):
  """An embedded prompt, projected once.

  Attributes:
    layers: keys and values [L, B, N, P, K] of text, and of the image where the model sees one.
    mean_BD: the mean embedding of the text, for models with the prompt in the modulation.
  """

  layers: tuple[tuple[jax.Array, jax.Array], ...]
  mean_BD: jax.Array


class Register(NamedTuple):
  """Tokens after the video: actions, then states.

  Attributes:
    x_BTD: the tokens.
    levels_BG: their noise levels.
    angles: rotary angles [A, K/2] and [S, K/2]; () without tokens.
    seen_BT: bool, valid action steps, and states of samples that have one.
    actions: A.
  """

  x_BTD: jax.Array
  levels_BG: jax.Array
  angles: tuple[jax.Array, ...]
  seen_BT: jax.Array
  actions: int

  @property
  def states(self) -> int:
    """S."""
    return self.x_BTD.shape[1] - self.actions

  def seen_after(self, video_tokens: int) -> jax.Array:
    """[B, video_tokens + A + S] bool: what may be seen of the sequence; video always."""
    video_BT = jnp.ones((len(self.seen_BT), video_tokens), bool)
    return jnp.concatenate([video_BT, self.seen_BT], 1)


class ImageEmbedding(nn.Module):
  """Image-encoder tokens to the model width. Source: Wan `MLPProj`."""

  cfg: cfg.ModelConfig

  @nn.compact
  def __call__(self, image_BIC):
    C, D = image_BIC.shape[-1], self.cfg.dim
    dtype = jnp.dtype(self.cfg.dtype)
    x = layers.LayerNorm(1e-5, affine=True, name='norm_in')(image_BIC)
    layer = functools.partial(layers.Einsum, dtype=dtype, gradient_dtype=self.cfg.gradient_dtype)
    h = layer('BIC,CM->BIM', (C, C), ('embed', 'mlp'), name='in')(x)
    y = layer('BIM,MD->BID', (C, D), ('mlp', 'embed'), name='out')(layers.gelu_erf(h))
    return layers.LayerNorm(1e-5, affine=True, name='norm_out')(y)


def _mean_prompt(prompt: dit.Prompt) -> jax.Array:
  return jnp.mean(prompt.text_BPD, axis=1)


def _cut(condition: types.Condition, start: int, stop: int) -> jax.Array | None:
  """The condition latents of some frames, if there are any."""
  return None if condition.latents_BFHWC is None else condition.latents_BFHWC[:, start:stop]


def _places(order: np.ndarray) -> np.ndarray:
  """[T] where in `order`, which has -1 for padding, each token stands: its inverse."""
  real = np.flatnonzero(order >= 0)
  return real[np.argsort(order[real])]
