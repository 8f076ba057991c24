"""A chunk denoised against what is remembered: the passes of the network that a control step makes.

Owns branches of guidance, which frames a pass commits, and the order of video and action steps.
What is compiled as one program is of `programs`; the solvers are those of `sampler`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import flow as flow_lib
from wam_jax import sampler
from wam_jax import sharding
from wam_jax import types
from wam_jax.control import memory as memory_lib
from wam_jax.models import attention
from wam_jax.models import wam

Memory = memory_lib.Memory


class Chunk(NamedTuple):
  """A chunk that is to be denoised.

  Attributes:
    body: the robots; None for video alone.
    start: its first latent frame.
    prefix: the actions that it begins with whatever comes; None where the model has no overlap.
    again: (noisy video, its level) that steps of the actions alone run again; None where its keys
      and values are kept, or nothing of it is seen.
    seen_BFHWC: latents of the observed frames before it that are not in the cache yet, or None.
  """

  body: types.Body | None
  start: jax.Array | int
  prefix: types.Prefix | None = None
  again: tuple[jax.Array, float] | None = None
  seen_BFHWC: jax.Array | None = None


class Denoiser:
  """What the passes of one model and way of sampling give; nothing of it is compiled yet.

  Attributes:
    recompute: whether steps that the actions take alone run the video again, and keep nothing: what
      `sample.approximate_kept_video` is an approximation of.
  """

  def __init__(
    self,
    model: cfg.ModelConfig,
    sample: cfg.SampleConfig,
    flow: cfg.FlowConfig,
    *,
    recompute: bool = False,
  ):
    cfg.check_sampling(model, flow, sample)
    self.cfg = model
    self.sample = sample
    self.flow = flow
    self.recompute = recompute
    self.solvers = sampler.make_solvers(sample)
    self.branches = 2 if sample.is_guided else 1
    self._wam = wam.WorldActionModel(model)

  @property
  def slides(self) -> bool:
    """Whether the window of remembered frames slides, in place of a new anchor."""
    return self.sample.history == 'sliding'

  def _shift(self, end):
    """Frames that a window which ends so begins later than the episode."""
    if not self.slides:
      return 0
    numbers = np if isinstance(end, int) else jnp
    return numbers.maximum(0, end - self.cfg.window_frames)

  def _predict(self, params, memory: Memory, chunk: Chunk, noise):
    """(actions, latents or None, memory) of a chunk."""
    if noise is None:
      key, noise = self._draw_noise(memory)
      if not self.sample.same_noise:
        memory = dataclasses.replace(memory, key=key)
    video, action, memory = self._denoise(params, memory, chunk, *noise)
    action = _give_prefix(chunk.prefix, action)
    # What a robot does not have is 0, as in the actions of training.
    return action * memory.action_mask_BAU, video, memory

  def _draw_noise(self, memory: Memory):
    """(key of the next chunk, noise of the video and of the actions of this one)."""
    B, _, *latent = memory.clean_BFHWC.shape
    # Sessions in a pass have keys of their own, and draw as if alone.
    sessions = memory.key.size
    video = (B // sessions, self.cfg.frames_per_chunk, *latent)
    action = (B // sessions, *memory.action_mask_BAU.shape[1:])

    def draw(key):
      key, key_video, key_action = jax.random.split(key, 3)
      noise = (flow_lib.sample_noise(key_video, video), flow_lib.sample_noise(key_action, action))
      return key, noise

    if not memory.key.ndim:
      return draw(memory.key)
    keys, noises = zip(*[draw(key) for key in memory.key])
    return jnp.stack(keys), jax.tree.map(lambda *each: attention.interleave(each), *noises)

  def _commit(self, params, memory: Memory, latents_BFHWC, start, ahead: int = 0) -> Memory:
    """The frames from `start` on are these, in the cache; with `ahead` more the window ends."""
    cache = self._apply(
      params,
      self._wam.commit,
      memory.cache,
      self._branch(latents_BFHWC),
      start_frame=start,
      prompt=memory.prompt,
      condition=self._condition(memory, start, latents_BFHWC.shape[1], ahead),
    )
    return dataclasses.replace(memory, cache=cache)

  def _denoise(self, params, memory: Memory, chunk: Chunk, noise_video, noise_action):
    """(latents or None, actions, memory) of the next chunk. Source: DreamZero policy head."""
    if self.sample.mode == 'act_only':
      return None, *self._denoise_alone(params, memory, chunk, noise_action)
    if self.sample.keeps_video:
      return self._denoise_in_turn(params, memory, chunk, noise_video, noise_action)

    def velocity(video_BFHWC, sigma_video, action_BAU, sigma_action):
      noisy = self._noisy(memory, chunk, action_BAU, sigma_action, video_BFHWC, sigma_video)
      return self._velocities(params, memory, noisy, chunk)

    video, action = self.solvers
    kept = (sampler.start(video, noise_video), sampler.start(action, noise_action))
    velocities = (jnp.zeros_like(noise_video), None)
    done = 0
    if chunk.seen_BFHWC is not None:
      noisy = self._noisy(memory, chunk, noise_action, action.told[0], noise_video, video.told[0])
      memory, *velocities = self._sweep(params, memory, noisy, chunk)
      kept = (
        sampler.advance(kept[0], velocities[0], video.weights[0]),
        sampler.advance(kept[1], velocities[1], action.weights[0]),
      )
      done = 1
    if self.sample.reuse == 'cosine':
      progress = sampler.Progress(jnp.int32(done), kept, velocities[0], jnp.int32(done))
      progress = sampler.denoise_by_similarity(velocity, progress, self.solvers)
      memory = dataclasses.replace(memory, evaluations=progress.evaluations)
      kept = progress.kept
    else:
      kept = sampler.denoise(velocity, kept, self.solvers, slice(done, None))
    (video, *_), (action, *_) = kept
    return video, action, memory

  def _denoise_alone(self, params, memory: Memory, chunk: Chunk, noise_action):
    """(actions, memory) without any future video."""
    (_, solver) = self.solvers
    kept = sampler.start(solver, noise_action)
    done = 0
    if chunk.seen_BFHWC is not None:
      noisy = self._noisy(memory, chunk, noise_action, solver.told[0])
      memory, _, velocity = self._sweep(params, memory, noisy, chunk)
      kept = sampler.advance(kept, velocity, solver.weights[0])
      done = 1
    return self._denoise_actions(params, memory, chunk, kept, slice(done, None)), memory

  def _denoise_in_turn(self, params, memory: Memory, chunk: Chunk, noise_video, noise_action):
    """(latents, actions, memory) by the steps of the video, the last one of which is the first of
    the actions; their others see the video as that one had it.
    """
    video, action = self.solvers
    kept_video = sampler.start(video, noise_video)
    last = len(video.told) - 1

    # Video that sees no actions can go ahead.
    def velocity(video_BFHWC, sigma_video):
      noisy = self._noisy(memory, chunk, None, None, video_BFHWC, sigma_video)
      alone = chunk._replace(body=None)
      return self._velocities(params, memory, noisy, alone)[0]

    ahead = slice(last)
    if last and chunk.seen_BFHWC is not None:
      noisy = self._noisy(memory, chunk, None, None, noise_video, video.told[0])
      memory, first, _ = self._sweep(params, memory, noisy, chunk._replace(body=None))
      kept_video = sampler.advance(kept_video, first, video.weights[0])
      chunk = chunk._replace(seen_BFHWC=None)
      ahead = slice(1, last)
    kept_video = sampler.denoise_alone(velocity, kept_video, video, ahead)

    last_video = (kept_video[0], video.told[last])
    noisy = self._noisy(memory, chunk, noise_action, action.told[0], *last_video)
    memory, velocity_video, velocity_action = self._sweep(params, memory, noisy, chunk)
    kept_video = sampler.advance(kept_video, velocity_video, video.weights[last])
    kept_action = sampler.start(action, noise_action)
    kept_action = sampler.advance(kept_action, velocity_action, action.weights[0])
    chunk = chunk._replace(again=last_video if self.recompute else None)
    actions = self._denoise_actions(params, memory, chunk, kept_action, slice(1, None))
    return kept_video[0], actions, memory

  def _denoise_actions(self, params, memory: Memory, chunk: Chunk, kept, steps: slice) -> jax.Array:
    """Actions after some of their steps, which they take alone."""
    B, _, H, W, _ = memory.clean_BFHWC.shape
    c = self.cfg
    # Guidance is of the video: the rows of the prompt alone, which are the first. Those of devices
    # that have the other rows would be waited for by nobody, and the cache is not sent around.
    is_apart = sharding.shards_of('batch') > 1
    branch = self._branch if is_apart else lambda x: x
    rows = B * self.branches if is_apart else B
    prompted = lambda x_GNPK: x_GNPK[..., : x_GNPK.shape[-4] * rows // (B * self.branches), :, :, :]
    prompt = wam.PromptKV(
      layers=jax.tree.map(prompted, memory.prompt.layers),
      mean_BD=memory.prompt.mean_BD[:rows],
    )

    def velocity(action_BAU, sigma):
      if chunk.again is not None:
        noisy = self._noisy(memory, chunk, action_BAU, sigma, *chunk.again)
        return self._velocities(params, memory, noisy, chunk)[1]
      action_RAU = self._apply(
        params,
        self._wam.denoise_actions,
        memory.cache,
        jax.tree.map(branch, self._noisy(memory, chunk, action_BAU, sigma)),
        jax.tree.map(branch, chunk.body),
        chunk.start,
        prompt,
        kept=0 if self.sample.mode == 'act_only' else c.frames_per_chunk,
        tokens_per_frame=(H // c.patch) * (W // c.patch),
      )
      return action_RAU[:B]

    return sampler.denoise_alone(velocity, kept, self.solvers[1], steps)[0]

  def _noisy(
    self,
    memory: Memory,
    chunk: Chunk,
    action_BAU,
    sigma_action: Any,
    video_BFHWC=None,
    sigma_video: Any = None,
  ) -> types.Noisy:
    """A noisy chunk, or what is given of it; its prefix is always clean."""
    B, A, _ = memory.action_mask_BAU.shape
    noisy = types.Noisy()
    if video_BFHWC is not None:
      sigma_BF = jnp.full((B, video_BFHWC.shape[1]), sigma_video, jnp.float32)
      noisy = dataclasses.replace(noisy, video_BFHWC=video_BFHWC, sigma_video_BF=sigma_BF)
    if action_BAU is not None:
      if self.flow.mask_padded_noise:
        action_BAU = action_BAU * memory.action_mask_BAU
      sigma_BA = jnp.full((B, A), sigma_action, jnp.float32)
      if chunk.prefix is not None:
        # At every step: whatever the solver made of it, the network sees what was committed.
        action_BAU = _give_prefix(chunk.prefix, action_BAU)
        given_BA = flow_lib.prefix_mask(chunk.prefix.length_B, A)
        sigma_BA = jnp.where(given_BA, 0.0, sigma_BA)
      noisy = dataclasses.replace(noisy, action_BAU=action_BAU, sigma_action_BA=sigma_BA)
    return noisy

  def _sweep(self, params, memory: Memory, noisy: types.Noisy, chunk: Chunk):
    """(memory, velocities) of a pass over a chunk whose noisy video is kept, and which commits the
    frames before it where they are not in the cache: the weights are read once for both.
    """
    start = chunk.start
    ahead = 0 if noisy.video_BFHWC is None else noisy.video_BFHWC.shape[1]
    condition = self._condition(memory, start, ahead)
    if chunk.seen_BFHWC is not None:
      observed = chunk.seen_BFHWC.shape[1]
      start = start - observed
      # Each for itself: a slice that went beyond the end would begin earlier.
      before = self._condition(memory, start, observed, ahead=self.cfg.frames_per_chunk)
      condition = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), before, condition)
    cache, *velocities = self._apply(
      params,
      self._wam.act,
      memory.cache,
      jax.tree.map(self._branch, chunk.seen_BFHWC),
      jax.tree.map(self._branch, noisy),
      jax.tree.map(self._branch, chunk.body),
      start,
      memory.prompt,
      condition=condition,
    )
    return dataclasses.replace(memory, cache=cache), *self._guide(*velocities)

  def _velocities(self, params, memory: Memory, noisy: types.Noisy, chunk: Chunk) -> Any:
    """Those of a pass over a chunk with video, which nothing is kept of."""
    assert noisy.video_BFHWC is not None
    velocities = self._apply(
      params,
      self._wam.denoise,
      memory.cache,
      jax.tree.map(self._branch, noisy),
      jax.tree.map(self._branch, chunk.body),
      chunk.start,
      memory.prompt,
      condition=self._condition(memory, chunk.start, noisy.video_BFHWC.shape[1]),
    )
    return self._guide(*velocities)

  def _guide(self, video_GFHWC, action_GAU) -> tuple[Any, Any]:
    """Velocities of the robots: guidance moves the video alone; actions are those of the prompt."""
    if self.branches == 1:
      return video_GFHWC, action_GAU
    video_BFHWC = action_BAU = None
    if video_GFHWC is not None:
      prompted, negative = jnp.split(video_GFHWC, 2)
      video_BFHWC = sampler.guide(prompted, negative, self.sample.guidance_scale)
    if action_GAU is not None:
      action_BAU, _ = jnp.split(action_GAU, 2)
    return video_BFHWC, action_BAU

  def _apply(self, params, method, *args, **named) -> Any:
    return self._wam.apply({'params': params}, *args, method=method, **named)

  def _prompt(self, params, text_GPC, image_BIC) -> wam.PromptKV:
    image_GIC = None if image_BIC is None else self._branch(image_BIC)
    return self._apply(params, self._wam.prompt_kv, text_GPC, image_GIC)

  def _condition(self, memory: Memory, start, frames: int, ahead: int = 0) -> types.Condition:
    """What the anchor says about `frames` latent frames from `start` on, for every branch; with as
    many `ahead` of them the chunk ends.
    """
    if memory.condition_BFHWC is None:
      return types.UNCONDITIONED
    start = start - self._shift(start + frames + ahead)
    latents = cut(memory.condition_BFHWC, start, frames)
    return types.Condition(latents_BFHWC=self._branch(latents))

  def _branch(self, x_B):
    """`x_B` once for each branch of guidance."""
    return jnp.concatenate([x_B] * self.branches) if self.branches > 1 else x_B


def _each_row(function, start, *videos):
  """`function(*videos, start)`, or that of each row where `start` is [n], one of each session."""
  if not np.ndim(start):
    return function(*videos, start)
  start_B = jnp.resize(start, (len(videos[0]),))
  row = lambda *args: function(*(x_FHWC[None] for x_FHWC in args[:-1]), args[-1])[0]
  return jax.vmap(row)(*videos, start_B)


def put(video_BFHWC, latents_BFHWC, start):
  """`video_BFHWC` with these latents from frame `start` on."""
  update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
  return _each_row(update, start, video_BFHWC, latents_BFHWC)


def cut(video_BFHWC, start, frames: int):
  """Its frames from `start` on."""
  take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=frames, axis=1)
  return _each_row(take, start, video_BFHWC)


def roll(video_BFHWC, frames):
  """The video moved to later frames."""
  return _each_row(functools.partial(jnp.roll, axis=1), frames, video_BFHWC)


def _give_prefix(prefix: types.Prefix | None, action_BAU):
  """`action_BAU` with the prefix for its first steps."""
  if prefix is None:
    return action_BAU
  A, D = action_BAU.shape[1], prefix.action_BDU.shape[1]
  given_BAU = jnp.pad(prefix.action_BDU, ((0, 0), (0, A - D), (0, 0)))
  given_BA = flow_lib.prefix_mask(prefix.length_B, A)
  return jnp.where(given_BA[..., None], given_BAU, action_BAU)
