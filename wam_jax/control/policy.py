"""Closed-loop control: one compiled step per chunk, every shape static, the state donated.

A call commits what was really observed since the last call (instead of what was predicted) to the key/value cache,
then denoises the next chunk against it. After `max_chunks` chunks the policy re-anchors: the newest frame becomes
frame 0 and the cache starts over, as the reference's hard reset does.
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
from wam_jax.models import tokenizer
from wam_jax.models import wam


@flax.struct.dataclass
class PolicyState:
  """What the policy remembers within an episode.

  Attributes:
    cache: keys and values of observed frames.
    prompt: keys and values of the prompt in every layer, and its mean embedding; projected once, at reset.
    embodiment_B: int32 category.
    action_mask_BAU: bool, real steps and dimensions of this embodiment.
    key: random key; each call splits it.
  """

  cache: attention.KVCache
  prompt: Any
  embodiment_B: jax.Array
  action_mask_BAU: jax.Array
  key: jax.Array


class Policy:
  """Compiled `reset` and `step` for one model, batch size and way of sampling.

  `traces` counts how often `step` was traced; it must stay at 1, because a second compilation would stall a robot.
  """

  def __init__(self, model: cfg.ModelConfig, sample: cfg.SampleConfig, flow: cfg.FlowConfig):
    self.cfg, self.flow = model, flow
    self.solvers = sampler.make_solvers(sample)
    self.traces = 0
    self._wam = wam.WorldActionModel(model)
    self.reset = jax.jit(self._reset)
    self.step = jax.jit(self._step, donate_argnums=2)

  def _reset(self, params, frozen: tokenizer.PatchTokenizer, prompt_ids_BP, embodiment_B, action_mask_BAU,
             frame_BIJ3, key) -> PolicyState:
    """State at the start of an episode; `frame_BIJ3` is used for its shape only."""
    c = self.cfg
    B, I, J, _ = frame_BIJ3.shape
    tokens = (I // frozen.spatial // c.patch) * (J // frozen.spatial // c.patch)
    slots = (1 + (c.max_chunks - 1) * c.frames_per_chunk) * tokens
    apply = lambda method, *args: self._wam.apply({'params': params}, *args, method=method)
    prompt = apply(self._wam.prompt_kv, apply(self._wam.encode_text, prompt_ids_BP))
    cache = attention.KVCache.empty(c.num_layers, B, c.num_heads, slots, c.head_dim, jnp.dtype(c.dtype))
    return PolicyState(cache, prompt, embodiment_B, action_mask_BAU, key)

  def _step(self, params, frozen: tokenizer.PatchTokenizer, state: PolicyState, observation: types.Observation):
    """(actions [B, A, U] normalized, predicted latents [B, F, H, W, C] of the chunk, state)."""
    self.traces += 1
    c = self.cfg
    state = state.replace(cache=self._commit(params, frozen, state, observation.frames_BRIJ3))
    key, key_video, key_action = jax.random.split(state.key, 3)
    B, _, I, J, _ = observation.frames_BRIJ3.shape
    s, A = frozen.spatial, c.actions_per_chunk
    noise_video = flow_lib.sample_noise(key_video, (B, c.frames_per_chunk, I // s, J // s, c.tokenizer.channels))
    noise_action = flow_lib.sample_noise(key_action, (B, A, c.action_dim))
    valid_BA = state.action_mask_BAU.any(-1)

    def velocity(noisy_video, sigma_video, noisy_action, sigma_action):
      if self.flow.mask_padded_noise:
        noisy_action = noisy_action * state.action_mask_BAU
      full = lambda sigma, n: jnp.full((B, n), sigma)
      return self._wam.apply(
          {'params': params}, state.cache, noisy_video, full(sigma_video, c.frames_per_chunk), noisy_action,
          full(sigma_action, A), observation.proprio_BX[:, None], state.cache.frames, state.prompt,
          state.embodiment_B, valid_BA, method=self._wam.denoise)

    video, action = sampler.denoise(velocity, noise_video, noise_action, *self.solvers)
    return action * state.action_mask_BAU, video, state.replace(key=key)

  def _commit(self, params, frozen, state: PolicyState, frames_BRIJ3) -> attention.KVCache:
    """Cache with the observed frames: as frame 0 at the start and when full, else as the next chunk."""
    c, cache = self.cfg, state.cache
    commit = lambda latents, start: self._wam.apply(
        {'params': params}, cache, latents, start, state.prompt, method=self._wam.commit)
    anchor = lambda: commit(frozen.encode_first(frames_BRIJ3[:, -1:]), 0)
    extend = lambda: commit(frozen.encode_next(frames_BRIJ3), cache.frames)
    full = cache.frames == 1 + (c.max_chunks - 1) * c.frames_per_chunk
    return jax.lax.cond((cache.frames == 0) | full, anchor, extend)
