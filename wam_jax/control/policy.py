"""Closed-loop control: one compiled step per chunk, every shape static, the state donated.

A call commits what was really observed since the last call (instead of what was predicted) to the
key/value cache, then denoises the next chunk against it. After `max_chunks` chunks the policy
re-anchors: the newest frame becomes frame 0 and the cache starts over, as the reference's hard
reset does.
"""

from __future__ import annotations

import dataclasses
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


@flax.struct.dataclass(kw_only=True)
class PolicyState:
  """What the policy remembers within an episode. With guidance, G = 2 B: the prompt's rows, then
  the negative ones.

  Attributes:
    cache: keys and values of observed frames, [L, G, N, S, K].
    text_GPC: embedded prompts.
    prompt: what `WorldActionModel.prompt_kv` makes of them; projected once, at reset, or with an
      image encoder at each anchor.
    stream: where the video tokenizer goes on.
    clean_BFHWC: latents of the frames in the cache, and room for one more chunk.
    condition_BFHWC: what the anchor frame says about every latent frame, or None.
    embodiment_B, action_mask_BAU: those of the `Task`.
    key: random key; each call splits it.
  """

  cache: attention.KVCache
  text_GPC: jax.Array
  prompt: wam.PromptKV
  stream: encoders.Stream
  clean_BFHWC: jax.Array
  condition_BFHWC: jax.Array | None
  embodiment_B: types.Array
  action_mask_BAU: types.Array
  key: jax.Array


class Policy:
  """Compiled `reset`, `step` and `imagine` for one model, batch size and way of sampling.

  `traces` counts how often `step` was traced; it must stay at 1, because a second compilation would
  stall a robot.
  """

  def __init__(self, model: cfg.ModelConfig, sample: cfg.SampleConfig, flow: cfg.FlowConfig):
    self.cfg = model
    self.sample = sample
    self.flow = flow
    self.solvers = sampler.make_solvers(sample)
    self.branches = 1 if sample.guidance_scale == 1 else 2
    self.traces = 0
    self._wam = wam.WorldActionModel(model)
    self.reset = jax.jit(self._reset)
    self.step = jax.jit(self._step, donate_argnums=2)  # The cache is written in place.
    self.imagine = jax.jit(self._imagine)

  def _reset(
    self,
    params: Any,
    frozen: encoders.Encoders,
    task: types.Task,
    frame_BIJ3: jax.Array,
    key: jax.Array,
  ) -> PolicyState:
    """State at the start of an episode.

    Args:
      task: with negative prompts where `guidance_scale` is not 1.
      frame_BIJ3: any frame of the shape and type of observed ones; its pixels are not used.
    """
    text_GPC = self._embed_text(params, frozen, task)

    # What the first anchor will fill has its shape from now on, so that a step compiles once.
    latents, stream = _zeros(frozen.encode_start, frame_BIJ3[:, None])
    condition = _zeros(frozen.encode_condition, frame_BIJ3[:, None])
    if condition.image_BIC is None:
      prompt = self._prompt(params, text_GPC, None)
    else:
      prompt = _zeros(self._prompt, params, text_GPC, condition.image_BIC)

    c = self.cfg
    B, _, H, W, C = latents.shape
    # The last chunk before an anchor is never looked back on.
    cached_frames = 1 + (c.max_chunks - 1) * c.frames_per_chunk
    cache = attention.KVCache.empty(
      layers=c.num_layers,
      batch=self.branches * B,
      heads=c.num_heads,
      slots=cached_frames * (H // c.patch) * (W // c.patch),
      head_dim=c.head_dim,
      dtype=jnp.dtype(c.dtype),
    )
    return PolicyState(
      cache=cache,
      text_GPC=text_GPC,
      prompt=prompt,
      stream=stream,
      clean_BFHWC=jnp.zeros((B, cached_frames + c.frames_per_chunk, H, W, C)),
      condition_BFHWC=condition.latents_BFHWC,
      embodiment_B=task.embodiment_B,
      action_mask_BAU=task.action_mask_BAU,
      key=key,
    )

  def _step(
    self,
    params: Any,
    frozen: encoders.Encoders,
    state: PolicyState,
    observation: types.Observation,
    noise: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, jax.Array, PolicyState]:
    """(actions [B, A, U] normalized, predicted latents [B, F, H, W, C] of the chunk, state).

    Args:
      noise: (video, action) like the predicted latents and actions; None draws it from the state's
        key.
    """
    self.traces += 1  # Python runs here only while JAX traces.
    c = self.cfg
    full = 1 + (c.max_chunks - 1) * c.frames_per_chunk
    # Decided on the device: an episode's first step is the same program as all others.
    starts = (state.cache.frames == 0) | (state.cache.frames == full)
    given = (params, frozen, state, observation.frames_BRIJ3)
    state = jax.lax.cond(starts, self._anchor, self._extend, *given)

    if noise is None:
      key, key_video, key_action = jax.random.split(state.key, 3)
      B, _, *latent = state.clean_BFHWC.shape
      noise = (
        flow_lib.sample_noise(key_video, (B, c.frames_per_chunk, *latent)),
        flow_lib.sample_noise(key_action, state.action_mask_BAU.shape),
      )
      if not self.sample.same_noise:
        state = dataclasses.replace(state, key=key)

    video, action = self._denoise(params, state, *noise, observation.proprio_BX)
    # What a robot does not have is 0, as in the actions of training.
    return action * state.action_mask_BAU, video, state

  def _imagine(
    self, frozen: encoders.Encoders, state: PolicyState, latents_BFHWC: jax.Array
  ) -> jax.Array:
    """Predicted latents as frames [B, r, I, J, 3] in [-1, 1], decoded after the observed ones of
    `step`'s state.
    """
    start = state.cache.frames
    per_latent = self.cfg.tokenizer.temporal
    latents = jax.lax.dynamic_update_slice_in_dim(state.clean_BFHWC, latents_BFHWC, start, axis=1)
    video = frozen.decode(latents)
    # The first latent is of one frame, every other of `per_latent`.
    first = 1 + (start - 1) * per_latent
    size = latents_BFHWC.shape[1] * per_latent
    return jax.lax.dynamic_slice_in_dim(video, first, size, axis=1)

  def _embed_text(self, params, frozen: encoders.Encoders, task: types.Task) -> jax.Array:
    """[G, P, C] of the prompts, with guidance followed by the negative ones."""
    negative_BP = task.negative_ids_BP
    guided = self.branches == 2
    scale = f'sample.guidance_scale={self.sample.guidance_scale}'
    if guided and negative_BP is None:
      raise ValueError(f'{scale} needs negative prompts.')
    if negative_BP is not None and not guided:
      raise ValueError(f'{scale} takes no negative prompts.')
    ids_GP = task.prompt_ids_BP
    if negative_BP is not None:
      ids_GP = jnp.concatenate([ids_GP, negative_BP])
    if frozen.text is None:
      return self._apply(params, self._wam.encode_text, ids_GP)
    return frozen.text.encode(ids_GP)

  def _anchor(
    self, params, frozen: encoders.Encoders, state: PolicyState, frames_BRIJ3
  ) -> PolicyState:
    """The newest frame becomes frame 0 of an empty cache."""
    frame_B1IJ3 = frames_BRIJ3[:, -1:]
    condition = frozen.encode_condition(frame_B1IJ3)
    latents, stream = frozen.encode_start(frame_B1IJ3)
    if condition.image_BIC is not None:
      state = dataclasses.replace(
        state, prompt=self._prompt(params, state.text_GPC, condition.image_BIC)
      )
    state = dataclasses.replace(state, stream=stream, condition_BFHWC=condition.latents_BFHWC)
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
      state = dataclasses.replace(state, stream=stream)
    return self._commit(params, state, latents, state.cache.frames)

  def _commit(self, params, state: PolicyState, latents_BFHWC, start) -> PolicyState:
    """The frames from `start` on are these: in the cache, and for `imagine`."""
    cache = self._apply(
      params,
      self._wam.commit,
      state.cache,
      self._branch(latents_BFHWC),
      start_frame=start,
      prompt=state.prompt,
      condition=self._condition(state, start, latents_BFHWC.shape[1]),
    )
    clean = jax.lax.dynamic_update_slice_in_dim(state.clean_BFHWC, latents_BFHWC, start, axis=1)
    return dataclasses.replace(state, cache=cache, clean_BFHWC=clean)

  def _denoise(self, params, state: PolicyState, noise_video, noise_action, proprio_BX):
    """(latents, actions) of the next chunk. Source: DreamZero policy head."""
    B, F = noise_video.shape[:2]
    A = noise_action.shape[1]
    G = self.branches * B
    start = state.cache.frames
    condition = self._condition(state, start, F)
    body = types.Body(
      proprio_BSX=self._branch(proprio_BX[:, None]),
      embodiment_B=self._branch(state.embodiment_B),
      valid_BA=self._branch(jnp.any(state.action_mask_BAU, axis=-1)),
    )

    def velocity(video_BFHWC, sigma_video, action_BAU, sigma_action):
      if self.flow.mask_padded_noise:
        action_BAU = action_BAU * state.action_mask_BAU
      noisy = types.Noisy(
        video_BFHWC=self._branch(video_BFHWC),
        sigma_video_BF=jnp.full((G, F), sigma_video),
        action_BAU=self._branch(action_BAU),
        sigma_action_BA=jnp.full((G, A), sigma_action),
      )
      video_GFHWC, action_GAU = self._apply(
        params,
        self._wam.denoise,
        state.cache,
        noisy,
        body,
        start_frame=start,
        prompt=state.prompt,
        condition=condition,
      )
      # Guidance moves the video alone; the actions are those of the prompt.
      action_BAU = action_GAU[:B]
      if self.branches == 1:
        return video_GFHWC, action_BAU
      scale = self.sample.guidance_scale
      return sampler.guide(video_GFHWC[:B], video_GFHWC[B:], scale), action_BAU

    return sampler.denoise(velocity, noise_video, noise_action, *self.solvers)

  def _apply(self, params, method, *args, **named) -> Any:
    return self._wam.apply({'params': params}, *args, method=method, **named)

  def _prompt(self, params, text_GPC, image_BIC) -> wam.PromptKV:
    image_GIC = None if image_BIC is None else self._branch(image_BIC)
    return self._apply(params, self._wam.prompt_kv, text_GPC, image_GIC)

  def _condition(self, state: PolicyState, start, frames: int) -> types.Condition:
    """What the anchor says about `frames` latent frames from `start` on, for every branch."""
    if state.condition_BFHWC is None:
      return types.UNCONDITIONED
    latents = jax.lax.dynamic_slice_in_dim(state.condition_BFHWC, start, frames, axis=1)
    return types.Condition(latents_BFHWC=self._branch(latents))

  def _branch(self, x_B):
    """`x_B` once for each branch of guidance."""
    return jnp.concatenate([x_B] * self.branches) if self.branches > 1 else x_B


def _zeros(function, *args):
  """Zeros like what `function(*args)` gives, without running it."""
  shapes = jax.eval_shape(function, *args)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
