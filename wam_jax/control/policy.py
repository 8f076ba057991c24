"""Closed-loop control: one compiled step per chunk, every shape static, the state donated.

A call commits what was really observed since the last call (instead of what was predicted) to the
key/value cache, then denoises the next chunk against it. After `max_chunks` chunks the policy
re-anchors: the newest frame becomes frame 0 and the cache starts over, as the reference's hard
reset does.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax import flow as flow_lib
from wam_jax import sampler
from wam_jax import types
from wam_jax.models import attention
from wam_jax.models import encoders
from wam_jax.models import wam


@flax.struct.dataclass
class PolicyState:
  """What the policy remembers within an episode. With guidance, G = 2 B: the prompt's rows, then
  the negative ones.

  Attributes:
    cache: keys and values of observed frames, [L, G, N, S, K].
    text_GPC: embedded prompts.
    prompt: their keys and values in every layer, and their mean embedding; projected once, at
      reset, or with an image encoder at each anchor.
    stream: of the video tokenizer.
    clean_BFHWC: latents of the frames in the cache, and room for one more chunk.
    condition_BFHWC: what the anchor frame says about every latent frame, or None.
    embodiment_B: int32 category.
    action_mask_BAU: bool, real steps and dimensions of this embodiment.
    key: random key; each call splits it.
  """

  cache: attention.KVCache
  text_GPC: jax.Array
  prompt: Any
  stream: Any
  clean_BFHWC: jax.Array
  condition_BFHWC: jax.Array | None
  embodiment_B: jax.Array
  action_mask_BAU: jax.Array
  key: jax.Array


class Policy:
  """Compiled `reset`, `step` and `imagine` for one model, batch size and way of sampling.

  `traces` counts how often `step` was traced; it must stay at 1, because a second compilation would
  stall a robot.
  """

  def __init__(self, model: cfg.ModelConfig, sample: cfg.SampleConfig, flow: cfg.FlowConfig):
    self.cfg, self.sample, self.flow = model, sample, flow
    self.solvers = sampler.make_solvers(sample)
    self.branches = 1 if sample.guidance_scale == 1 else 2
    self.traces = 0
    self._wam = wam.WorldActionModel(model)
    self.reset = jax.jit(self._reset)
    self.step = jax.jit(self._step, donate_argnums=2)
    self.imagine = jax.jit(self._imagine)

  def _reset(
    self,
    params,
    frozen: encoders.Encoders,
    prompt_ids_BP,
    embodiment_B,
    action_mask_BAU,
    frame_BIJ3,
    key,
    negative_ids_BP=None,
  ) -> PolicyState:
    """State at the start of an episode.

    Args:
      frame_BIJ3: of the shape and type of observed frames; its pixels are not used.
      negative_ids_BP: ids of the prompt to move away from, with a `guidance_scale` other than 1.
    """
    if (negative_ids_BP is None) != (self.branches == 1):
      raise ValueError(
        f'sample.guidance_scale={self.sample.guidance_scale} '
        + ('needs negative prompts.' if negative_ids_BP is None else 'takes no negative prompts.')
      )
    c, B = self.cfg, frame_BIJ3.shape[0]
    ids_GP = (
      prompt_ids_BP if self.branches == 1 else jnp.concatenate([prompt_ids_BP, negative_ids_BP])
    )
    text_GPC = (
      self._apply(params, self._wam.encode_text, ids_GP)
      if frozen.text is None
      else frozen.text.encode(ids_GP)
    )
    latents, stream = _zeros(frozen.encode_start, frame_BIJ3[:, None])
    first_frame = _zeros(frozen.encode_condition, frame_BIJ3[:, None])
    prompt = (
      self._prompt(params, text_GPC, None)
      if first_frame.image_BIC is None
      else _zeros(self._prompt, params, text_GPC, first_frame.image_BIC)
    )
    _, _, H, W, C = latents.shape
    slots = (1 + (c.max_chunks - 1) * c.frames_per_chunk) * (H // c.patch) * (W // c.patch)
    cache = attention.KVCache.empty(
      c.num_layers, self.branches * B, c.num_heads, slots, c.head_dim, jnp.dtype(c.dtype)
    )
    clean = jnp.zeros((B, 1 + c.max_chunks * c.frames_per_chunk, H, W, C))
    return PolicyState(
      cache,
      text_GPC,
      prompt,
      stream,
      clean,
      first_frame.latents_BFHWC,
      embodiment_B,
      action_mask_BAU,
      key,
    )

  def _step(
    self,
    params,
    frozen: encoders.Encoders,
    state: PolicyState,
    observation: types.Observation,
    noise=None,
  ):
    """(actions [B, A, U] normalized, predicted latents [B, F, H, W, C] of the chunk, state).

    Args:
      noise: (video, action) like the predicted latents and actions; None draws it from the state's
        key.
    """
    self.traces += 1
    full = 1 + (self.cfg.max_chunks - 1) * self.cfg.frames_per_chunk
    state = jax.lax.cond(
      (state.cache.frames == 0) | (state.cache.frames == full),
      self._anchor,
      self._extend,
      params,
      frozen,
      state,
      observation.frames_BRIJ3,
    )
    if noise is None:
      key, key_video, key_action = jax.random.split(state.key, 3)
      chunk = (state.clean_BFHWC.shape[0], self.cfg.frames_per_chunk, *state.clean_BFHWC.shape[2:])
      noise = (
        flow_lib.sample_noise(key_video, chunk),
        flow_lib.sample_noise(key_action, state.action_mask_BAU.shape),
      )
      state = state if self.sample.same_noise else state.replace(key=key)
    video, action = self._denoise(params, state, *noise, observation.proprio_BX)
    return action * state.action_mask_BAU, video, state

  def _imagine(self, frozen: encoders.Encoders, state: PolicyState, latents_BFHWC):
    """Predicted latents as frames [B, r, I, J, 3] in [-1, 1], decoded after the observed ones of
    `step`'s state.
    """
    start, t = state.cache.frames, self.cfg.tokenizer.temporal
    video = frozen.decode(
      jax.lax.dynamic_update_slice_in_dim(state.clean_BFHWC, latents_BFHWC, start, axis=1)
    )
    return jax.lax.dynamic_slice_in_dim(
      video, 1 + (start - 1) * t, latents_BFHWC.shape[1] * t, axis=1
    )

  def _anchor(
    self, params, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3
  ) -> PolicyState:
    """The newest frame becomes frame 0 of an empty cache."""
    first_frame = frozen.encode_condition(frames_BRIJ3[:, -1:])
    latents, stream = frozen.encode_start(frames_BRIJ3[:, -1:])
    if first_frame.image_BIC is not None:
      state = state.replace(prompt=self._prompt(params, state.text_GPC, first_frame.image_BIC))
    state = state.replace(stream=stream, condition_BFHWC=first_frame.latents_BFHWC)
    return self._commit(params, state, latents, 0)

  def _extend(
    self, params, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3
  ) -> PolicyState:
    """The observed frames follow those in the cache.

    Training encodes a window as one stream. The reference encodes each observed chunk as a video of
    its own, which begins with the chunk's first frame once more: `sample.observed` 'fresh'.
    """
    if self.sample.observed == 'fresh':
      again = jnp.concatenate([frames_BRIJ3[:, :1], frames_BRIJ3], axis=1)
      latents = frozen.encode(again)[:, -self.cfg.frames_per_chunk :]
    else:
      latents, stream = frozen.encode_more(state.stream, frames_BRIJ3)
      state = state.replace(stream=stream)
    return self._commit(params, state, latents, state.cache.frames)

  def _commit(self, params, state: PolicyState, latents_BFHWC, start) -> PolicyState:
    frames = latents_BFHWC.shape[1]
    cache = self._apply(
      params,
      self._wam.commit,
      state.cache,
      self._branch(latents_BFHWC),
      start,
      state.prompt,
      self._condition(state, start, frames),
    )
    clean = jax.lax.dynamic_update_slice_in_dim(state.clean_BFHWC, latents_BFHWC, start, axis=1)
    return state.replace(cache=cache, clean_BFHWC=clean)

  def _denoise(self, params, state: PolicyState, noise_video, noise_action, proprio_BX):
    """(latents, actions) of the next chunk. Guidance moves the video alone. Source: DreamZero
    policy head.
    """
    c, (B, A, _) = self.cfg, noise_action.shape
    start = state.cache.frames
    condition, embodiment_G, valid_GA, proprio_GQX = (
      self._condition(state, start, c.frames_per_chunk),
      *map(self._branch, (state.embodiment_B, state.action_mask_BAU.any(-1), proprio_BX[:, None])),
    )

    def velocity(noisy_video, sigma_video, noisy_action, sigma_action):
      if self.flow.mask_padded_noise:
        noisy_action = noisy_action * state.action_mask_BAU
      full = lambda sigma, n: jnp.full((self.branches * B, n), sigma)
      video, action = self._apply(
        params,
        self._wam.denoise,
        state.cache,
        self._branch(noisy_video),
        full(sigma_video, c.frames_per_chunk),
        self._branch(noisy_action),
        full(sigma_action, A),
        proprio_GQX,
        start,
        state.prompt,
        embodiment_G,
        valid_GA,
        condition,
      )
      if self.branches == 2:
        video = sampler.guide(video[:B], video[B:], self.sample.guidance_scale)
      return video, action[:B]

    return sampler.denoise(velocity, noise_video, noise_action, *self.solvers)

  def _apply(self, params, method, *args):
    return self._wam.apply({'params': params}, *args, method=method)

  def _prompt(self, params, text_GPC, image_BIC):
    return self._apply(
      params, self._wam.prompt_kv, text_GPC, None if image_BIC is None else self._branch(image_BIC)
    )

  def _condition(self, state: PolicyState, start, frames: int):
    """The condition of `frames` latent frames from `start` on, for every branch."""
    if state.condition_BFHWC is None:
      return None
    return self._branch(jax.lax.dynamic_slice_in_dim(state.condition_BFHWC, start, frames, axis=1))

  def _branch(self, x_B):
    """`x_B` once for each branch of guidance."""
    return jnp.concatenate([x_B] * self.branches) if self.branches > 1 else x_B


def _zeros(function, *args):
  """Zeros like what `function(*args)` gives, without running it."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args))
