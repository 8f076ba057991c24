"""`WorldActionModel`: the one class that training and control touch.

Training sees a whole window at once, teacher-forced; control sees one chunk at a time against a
cache. Both run the same blocks on the same tokens, so with one state rule they give the same
numbers.
Source: DreamZero `CausalWanModel`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

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
from wam_jax.models import slots as slots_lib
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
    clean_frames = _count_frames(clean_BFHWC)
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
    chunks = register.actions // c.action_horizon
    layout = masks.training_layout(
      clean_frames=clean_frames,
      noisy_frames=range(first, first + frames),
      tokens_per_frame=grid.tokens,
      frames_per_chunk=c.frames_per_chunk,
      actions_per_chunk=c.action_horizon,
      states_per_chunk=register.states // max(chunks, 1),
      chunks=chunks,
    )
    plan = attention.make_plan(c, layout, hides_video=noisy.video_seen_BF is not None)
    seen_BT = jnp.concatenate(
      [
        jnp.ones((len(noisy_BTD), clean_frames * grid.tokens), bool),
        _seen_video(noisy, grid.tokens),
        register.seen_BT,
      ],
      1,
    )
    mask = attention.arrange(seen_BT, plan.order)
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
    return self._velocities(x_BTD, time_BGD[:, 1 : 1 + frames], grid, register.actions, body)

  def prompt_kv(self, text_BPC: jax.Array, image_BIC: jax.Array | None = None) -> PromptKV:
    """What `commit` and `denoise` take as the prompt; it does not change during an episode."""
    prompt = self._embed_prompt(text_BPC, image_BIC)
    if (layers := self._layers_apart()) is None:
      _, layers_kv = self.blocks.project_prompt(None, prompt)
    else:
      layers_kv = tuple(dit.project_prompt(self.cfg, layer, prompt) for layer in layers)
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
    place = Place(start_frame, self._grid(clean_BFHWC).tokens, clean=clean_BFHWC.shape[1])
    sweep = self._sweep(cache, place, prompt, clean_BFHWC, None, None, condition=condition)
    return sweep.cache

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
    tokens = self._grid(noisy.video_BFHWC).tokens
    place = Place(start_frame, tokens, noisy=noisy.video_BFHWC.shape[1])
    sweep = self._sweep(cache, place, prompt, None, noisy, body, condition=condition)
    return self._sweep_velocities(sweep, noisy, body)

  def denoise_actions(
    self,
    cache: attention.KVCache,
    noisy: types.Noisy,
    body: types.Body,
    start_frame: jax.Array | int,
    prompt: PromptKV,
    *,
    kept: int,
    tokens_per_frame: int,
  ) -> jax.Array:
    """Velocity of the actions alone of the chunk that starts at `start_frame`.

    Where noisy video sees no actions (`ModelConfig.video_sees`), that of `denoise` with the video
    that was kept, sums in another order aside.

    Args:
      noisy: without video.
      kept: number of frames of the chunk whose noisy video lies in the cache; 0 for actions that
        see no future video.
      tokens_per_frame: of a latent frame.
    """
    place = Place(start_frame, tokens_per_frame, kept=kept)
    sweep = self._sweep(cache, place, prompt, None, noisy, body)
    return self._sweep_velocities(sweep, noisy, body)[1]

  def act(
    self,
    cache: attention.KVCache,
    clean_BFHWC: jax.Array | None,
    noisy: types.Noisy,
    body: types.Body | None,
    start_frame: jax.Array | int,
    prompt: PromptKV,
    *,
    condition: types.Condition = types.UNCONDITIONED,
  ) -> tuple[attention.KVCache, jax.Array | None, jax.Array | None]:
    """What `commit` and then `denoise` give, by one pass over the weights. The noisy video is kept
    in the slots after the committed frames; the next commit of its frames takes its place.

    Args:
      clean_BFHWC: observed frames from `start_frame` on, committed; None where all are.
      noisy, body: the chunk after them; `noisy` without video for actions that see no future video,
        which must follow clean frames.
      condition: what the anchor says about the clean and the noisy frames.
    Returns:
      (cache, velocity of the video or None, velocity of the actions or None).
    """
    grid = self._grid(noisy.video_BFHWC if clean_BFHWC is None else clean_BFHWC)
    place = Place(
      start_frame,
      grid.tokens,
      clean=_count_frames(clean_BFHWC),
      noisy=_count_frames(noisy.video_BFHWC),
      keeps=True,
    )
    sweep = self._sweep(cache, place, prompt, clean_BFHWC, noisy, body, condition=condition)
    return sweep.cache, *self._sweep_velocities(sweep, noisy, body)

  def _sweep(
    self,
    cache: attention.KVCache,
    place: Place,
    prompt: PromptKV,
    clean_BFHWC: jax.Array | None,
    noisy: types.Noisy | None,
    body: types.Body | None,
    *,
    condition: types.Condition = types.UNCONDITIONED,
  ) -> Sweep:
    """The blocks on clean frames and the chunk after them, either of which may be missing."""
    c = self.cfg
    B = len(prompt.mean_BD)

    # A window that slides takes the frames before it along: positions count from its frame 0.
    shift = 0
    is_anchor = isinstance(place.start, int) and place.start == 0
    if cache.sink_k is not None and not is_anchor:
      end = place.chunk_start + c.frames_per_chunk
      shift = jnp.maximum(0, end - c.window_frames)
      cache = cache.turn_sink(shift) if place.clean else cache

    # The sequence: clean video, noisy video, actions, states. What is older is in the cache.
    register = self._nobody(B)
    if noisy is not None:
      chunk = (place.chunk_start - shift - 1) // c.frames_per_chunk
      register = self._register(noisy, body, chunk)
      later_1R = attention.time_angles(shift, c.head_dim)
      register = register._replace(angles=tuple(x_TR + later_1R for x_TR in register.angles))
    videos, levels, angles = [], [], []
    if place.clean:
      videos.append(self._video_tokens(clean_BFHWC, _cut(condition, 0, place.clean)))
      levels.append(jnp.zeros((B, 1)))  # One for all.
      angles.append(self._video_angles(clean_BFHWC, place.start))
    if place.noisy:
      frames = (place.clean, place.clean + place.noisy)
      videos.append(self._video_tokens(noisy.video_BFHWC, _cut(condition, *frames)))
      levels.append(noisy.sigma_video_BF)
      angles.append(self._video_angles(noisy.video_BFHWC, place.chunk_start))

    layout = _chunk_layout(place, register)
    time_BGD, modulation_BG6D = self._modulation(
      jnp.concatenate([*levels, register.levels_BG], 1), prompt.mean_BD
    )
    group_T = layout.group if place.clean else layout.group - 1  # Group 0 is that of clean tokens.
    kernels = slots_lib.choose(jnp.dtype(c.dtype), c.head_dim, cache.slots)
    mask = slots = None
    if kernels == 'dense':
      mask = self._sweep_mask(cache, place, layout, noisy, register)[:, None]
    else:
      slots = self._slots(cache, place._replace(start=place.start - shift), register, shift)
    angles_TR = jnp.concatenate([*angles, *register.angles], -2)
    if angles_TR.ndim > 2:
      angles_TR = attention.spread(angles_TR, B, 2)[:, None]
    tokens = dit.Tokens(
      modulation_BG6D=modulation_BG6D,
      group_T=np.concatenate([np.zeros(place.clean_tokens, np.int32), group_T]),
      angles_TR=angles_TR,
      mask=mask,
      stays=place.stays(cache),
      slots=slots,
      kernels=kernels,
    )
    x_BTD = jnp.concatenate([*videos, register.x_BTD], 1)
    x_BTD, (k, v) = self._run_layers((x_BTD, (cache.k, cache.v)), prompt, tokens)
    frames = place.start + place.clean if place.clean else cache.frames
    cache = cache.replace(k=k, v=v, frames=jnp.int32(frames))
    if cache.sink_k is not None and is_anchor:
      frame_0 = lambda k_LBNSK: k_LBNSK[:, :, :, : place.tokens_per_frame]
      cache = cache.replace(sink_k=attention.map_sessions(frame_0, k))
    return Sweep(place, x_BTD, time_BGD, cache)

  def _layers_apart(self) -> tuple[Any, ...] | None:
    """Parameters of each layer, where control keeps them apart."""
    layers = self.variables['params'].get('blocks')
    return layers if isinstance(layers, tuple) else None

  def _run_layers(self, carry: Any, prompt: PromptKV, tokens: dit.Tokens) -> Any:
    """The blocks on tokens and a cache."""
    layers = self._layers_apart()
    if layers is None:
      index_L = jnp.arange(self.cfg.num_layers)
      carry, _ = self.blocks(carry, index_L, prompt.layers, None, tokens)
      return carry
    for index, (layer, prompt_kv) in enumerate(zip(layers, prompt.layers, strict=True)):
      if tokens.kernels != 'dense':
        # One layer after the other: XLA would compute ahead what does not depend on the tokens, and
        # read the past of all layers before a loop over steps: as much memory as the cache.
        x_BTD, cached = carry
        together = (x_BTD, jnp.int32(index), tokens.modulation_BG6D)
        x_BTD, index, modulation_BG6D = jax.lax.optimization_barrier(together)
        carry = (x_BTD, cached)
        tokens = tokens.replace(modulation_BG6D=modulation_BG6D)
      carry = dit.run_layer(self.cfg, layer, carry, index, prompt_kv, tokens)
    return carry

  def _slots(self, cache, place: Place, register: Register, shift) -> slots_lib.Slots:
    """Where a sweep lies in a cache whose frames are all seen.

    Args:
      place: counted from frame 0 of the window, which is `shift` frames later than that of the
        episode.
    """
    c = self.cfg
    slides = cache.sink_k is not None
    tokens = place.tokens_per_frame
    clean_at = place.uncached * place.tokens_per_frame
    video_at = clean_at + place.clean_tokens
    register_at = video_at + place.noisy * place.tokens_per_frame
    return slots_lib.Slots(
      clean=place.clean_tokens,
      video=place.noisy * place.tokens_per_frame,
      states=register.states,
      video_sees_actions=c.video_sees == 'all',
      state_sees_chunk=c.state_rule != 'self',
      clean_at=clean_at,
      video_at=video_at,
      register_at=register_at,
      clean_sees=video_at,
      chunk_sees=register_at,
      valid_BR=register.seen_BT,
      pinned=tokens if slides else 0,
      oldest=shift * tokens % (cache.slots - tokens) if slides else 0,
    )

  def _sweep_mask(self, cache, place: Place, layout: masks.Layout, noisy, register) -> jax.Array:
    """[B, T, cached slots + T] bool: whom the tokens of a sweep see.

    In its chunk a token sees what it sees in training, of the past what the cache has in its
    window; the states of the reference, which in training see each other alone, here see all.
    """
    c = self.cfg
    state_rule = 'self' if c.state_rule == 'self' else 'chunk'
    chunk_TT = masks.without_clean(
      layout,
      frames_per_chunk=max(place.noisy, 1),
      window_frames=1 + place.noisy,
      state_rule=state_rule,
      video_sees=c.video_sees,
    )
    looks_back_T = (layout.kind != masks.STATE) | (state_rule == 'chunk')

    # Clean frames see each other, and the chunk sees them.
    clean = place.clean_tokens
    own_TT = np.pad(chunk_TT, ((clean, 0), (clean, 0)))
    own_TT[:clean, :clean] = True
    own_TT[clean:, :clean] = looks_back_T[:, None]
    seen = [jnp.ones((len(register.seen_BT), clean), bool)]
    if place.noisy:
      seen.append(_seen_video(noisy, place.tokens_per_frame))
    seen_BT = jnp.concatenate([*seen, register.seen_BT], 1)

    # The window of each ends with its own newest frame.
    def seen_cache(frames: int) -> jax.Array:
      window = c.window_frames if c.history_rule == 'chunk' else REFERENCE_GLOBAL_FRAMES
      return cache.seen_from(place.uncached, frames, window, place.tokens_per_frame)

    ahead = place.count_ahead(c.frames_per_chunk)
    # What slides does so for both at once.
    by_clean_TS = seen_cache(place.clean if cache.sink_k is None else ahead)[..., None, :]
    by_clean_TS = jnp.repeat(by_clean_TS, clean, axis=-2)
    by_chunk_TS = looks_back_T[:, None] & seen_cache(ahead)[..., None, :]
    past_TS = attention.spread(jnp.concatenate([by_clean_TS, by_chunk_TS], -2), len(seen_BT), 2)
    past_BTS = jnp.broadcast_to(past_TS, (len(seen_BT), *past_TS.shape[-2:]))
    return jnp.concatenate([past_BTS, own_TT & seen_BT[:, None, :]], -1)

  def _sweep_velocities(self, sweep: Sweep, noisy: types.Noisy, body: types.Body | None):
    """(video or None, actions or None) of the chunk of a sweep."""
    place = sweep.place
    x_BTD = sweep.x_BTD[:, place.clean_tokens :]
    if not place.noisy:
      return None, self._action_head(x_BTD[:, : noisy.action_BAU.shape[1]], body)
    first = 1 if place.clean else 0
    time_BFD = sweep.time_BGD[:, first : first + place.noisy]
    actions = 0 if body is None else noisy.action_BAU.shape[1]
    return self._velocities(x_BTD, time_BFD, self._grid(noisy.video_BFHWC), actions, body)

  def _video_angles(self, video_BFHWC, start: jax.Array | int):
    return attention.video_angles(
      start, video_BFHWC.shape[1], *self._grid(video_BFHWC), self.cfg.head_dim
    )

  def _run_blocks(self, sequence_BTD, order, wanted_T, prompt: dit.Prompt, tokens: dit.Tokens):
    """The blocks on a window with its tokens in `order`; of the results those at `wanted_T`."""
    # All tokens are on all shards where they change places: XLA's gradient of slices of a split
    # axis is wrong.
    whole = lambda x_BTD: sharding.shard(x_BTD, 'batch', None, 'act_embed')
    x_BTD = whole(attention.arrange(sequence_BTD, order))
    x_BTD = sharding.shard(x_BTD, 'batch', 'tokens', 'act_embed')
    (x_BTD, _), _ = self.blocks((x_BTD, None), None, None, prompt, tokens)
    return attention.arrange(whole(x_BTD), wanted_T)

  def _register(self, noisy: types.Noisy, body: types.Body | None, chunk=0) -> Register:
    """Action and state tokens that follow the video, counted from the start of chunk `chunk` of the
    episode.
    """
    if (noisy.action_BAU is None) != (body is None):
      raise ValueError(
        'noisy.action_BAU and body must come together; give neither for video alone.'
      )
    if body is None:
      return self._nobody(len(noisy.video_BFHWC))
    B = len(noisy.action_BAU)
    A, S = noisy.action_BAU.shape[1], body.proprio_BSX.shape[1]
    action_BAD = self.action_encoder(noisy.action_BAU, noisy.sigma_action_BA, body.embodiment_B)
    state_BSD = self.state_encoder(body.proprio_BSX, body.embodiment_B)
    # A state has the noise level of the first action that it goes with and that is never given.
    level_BS = noisy.sigma_action_BA[:, self.cfg.action_overlap :: A // S][:, :S]
    is_robot_B1 = jnp.any(body.valid_BA, 1, keepdims=True)
    return Register(
      x_BTD=jnp.concatenate([action_BAD, state_BSD], 1),
      levels_BG=jnp.concatenate([noisy.sigma_action_BA, level_BS], 1),
      angles=(self._action_angles(A // S, S, chunk), self._sequence_angles(chunk * S, S)),
      seen_BT=jnp.concatenate([body.valid_BA, jnp.broadcast_to(is_robot_B1, (B, S))], 1),
      actions=A,
    )

  def _action_angles(self, horizon: int, chunks: int, first):
    """[chunks * horizon, K/2] of the actions of chunks from `first` on: an action is where its time
    is, and so those of an overlap where the next chunk's first ones are.
    """
    step = horizon - self.cfg.action_overlap
    if step == horizon:
      return self._sequence_angles(first * horizon, chunks * horizon)
    each = [self._sequence_angles((first + q) * step, horizon) for q in range(chunks)]
    return jnp.concatenate(each) if not isinstance(first, int) else np.concatenate(each)

  def _sequence_angles(self, start, length: int):
    return attention.sequence_angles(start, length, self.cfg.head_dim)

  def _nobody(self, batch: int) -> Register:
    """No actions and no states."""
    return Register(
      x_BTD=jnp.zeros((batch, 0, self.cfg.dim), self.cfg.dtype),
      levels_BG=jnp.zeros((batch, 0)),
      angles=(),
      seen_BT=jnp.ones((batch, 0), bool),
      actions=0,
    )

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

  def _velocities(self, x_BTD, time_BFD, grid, actions: int, body):
    """(video, actions or None) of tokens after the blocks: noisy video, then the register."""
    video_tokens = time_BFD.shape[1] * grid.tokens
    video_BFHWC = self._video_head(x_BTD[:, :video_tokens], time_BFD, grid)
    if not actions:
      return video_BFHWC, None
    action_BAD = x_BTD[:, video_tokens : video_tokens + actions]
    return video_BFHWC, self._action_head(action_BAD, body)

  def _action_head(self, action_BAD, body: types.Body) -> jax.Array:
    """Velocities [B, A, U] of action tokens."""
    return self.action_decoder(action_BAD, body.embodiment_B).astype(jnp.float32)

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
    layers: keys and values [L, B, N, P, K] of text, and of the image where the model sees one; of
      sessions in a pass tuples of such, as in `attention.KVCache`. Where the parameters are those
      of layers apart, of each layer its own, [B, N, P, K].
    mean_BD: the mean embedding of the text, for models with the prompt in the modulation.
  """

  layers: tuple[tuple[attention.Each, attention.Each], ...]
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


class Place(NamedTuple):
  """Where a sweep stands in the episode.

  Attributes:
    start: the first frame of the clean ones, or of the chunk; [n] of n sessions in a pass.
    tokens_per_frame: of a latent frame.
    clean: number of clean frames, which the chunk follows.
    noisy: number of noisy frames of the chunk, which all are in the sweep or none.
    kept: number of them that lie in the cache instead.
    keeps: whether noisy frames of the sweep take slots of the cache.
  """

  start: jax.Array | int
  tokens_per_frame: int
  clean: int = 0
  noisy: int = 0
  kept: int = 0
  keeps: bool = False

  @property
  def clean_tokens(self) -> int:
    return self.clean * self.tokens_per_frame

  @property
  def chunk_start(self) -> jax.Array | int:
    """The first frame of the chunk."""
    return self.start + self.clean

  @property
  def uncached(self) -> jax.Array | int:
    """The first frame after those that the sweep finds in the cache."""
    return self.start + self.kept

  def count_ahead(self, frames_per_chunk: int) -> int:
    """How many frames there are from `uncached` to the end of the chunk, in the sweep or not."""
    return 0 if self.kept else self.clean + (self.noisy or frames_per_chunk)

  def stays(self, cache: attention.KVCache) -> attention.Stays:
    """The frames of the sweep that take slots of the cache."""
    tokens = self.tokens_per_frame
    frames = range(self.clean + (self.noisy if self.keeps else 0))
    return attention.Stays(
      spans=tuple((i * tokens, (i + 1) * tokens) for i in frames),
      slots=tuple(cache.slot(self.start + i, tokens) for i in frames),
    )


class Sweep(NamedTuple):
  """What one pass over the weights gave.

  Attributes:
    place: where it was.
    x_BTD: tokens after the blocks.
    time_BGD: embedded noise levels.
    cache: with what stays of it.
  """

  place: Place
  x_BTD: jax.Array
  time_BGD: jax.Array
  cache: attention.KVCache


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


def _count_frames(video_BFHWC: jax.Array | None) -> int:
  return 0 if video_BFHWC is None else video_BFHWC.shape[1]


def _mean_prompt(prompt: dit.Prompt) -> jax.Array:
  return jnp.mean(prompt.text_BPD, axis=1)


def _cut(condition: types.Condition, start: int, stop: int) -> jax.Array | None:
  """The condition latents of some frames, if there are any."""
  return None if condition.latents_BFHWC is None else condition.latents_BFHWC[:, start:stop]


def _seen_video(noisy: types.Noisy, tokens_per_frame: int) -> jax.Array:
  """[B, T] bool: tokens of the noisy video that are seen."""
  seen_BF = noisy.video_seen_BF
  if seen_BF is None:
    seen_BF = jnp.ones(noisy.sigma_video_BF.shape, bool)
  return jnp.repeat(seen_BF, tokens_per_frame, 1)


def _chunk_layout(place: Place, register: Register) -> masks.Layout:
  """Layout of the chunk of a sweep without the clean frames before it."""
  return masks.training_layout(
    clean_frames=0,
    noisy_frames=range(1, 1 + place.noisy),
    tokens_per_frame=place.tokens_per_frame,
    frames_per_chunk=max(place.noisy, 1),
    actions_per_chunk=register.actions,
    states_per_chunk=register.states,
    chunks=1 if register.actions else 0,
  )


def _places(order: np.ndarray) -> np.ndarray:
  """[T] where in `order`, which has -1 for padding, each token stands: its inverse."""
  real = np.flatnonzero(order >= 0)
  return real[np.argsort(order[real])]
