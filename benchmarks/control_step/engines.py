"""The control step as it was before each of its economies: the same network and the same numbers.

`Uncached` keeps nothing between passes. `Earlier` is `control.policy.Policy` without the economies
that its attributes name; with all of them it would be `Policy` itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.control_step import scene as scene_lib
from wam_jax import config as cfg
from wam_jax import masks
from wam_jax import sampler
from wam_jax import types
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.models import attention
from wam_jax.models import dit
from wam_jax.models import wam


class Window(wam.WorldActionModel):
  """The network on the clean history and one noisy chunk after it, all in one sequence."""

  def predict(
    self,
    clean_BFHWC: jax.Array,
    noisy: types.Noisy,
    body: types.Body,
    text_BPC: jax.Array,
    condition: types.Condition,
  ) -> tuple[jax.Array, jax.Array]:
    """Velocities of `WorldActionModel.denoise` with these clean frames in the cache."""
    # In control states see their chunk where the reference's do.
    rule = 'self' if self.cfg.state_rule == 'self' else 'chunk'
    c = dataclasses.replace(self.cfg, state_rule=rule)
    grid = self._grid(clean_BFHWC)
    first, frames = clean_BFHWC.shape[1], noisy.video_BFHWC.shape[1]
    register = self._register(noisy, body, (first - 1) // c.frames_per_chunk)

    layout = _last_chunk(c, grid.tokens, first)
    plan = attention.make_plan(c, layout)
    B = len(clean_BFHWC)
    seen_video_BT = jnp.ones((B, (first + frames) * grid.tokens), bool)
    mask = attention.arrange(jnp.concatenate([seen_video_BT, register.seen_BT], 1), plan.order)
    if plan.pattern is None:
      visible_TT = attention.training_mask(c, layout)[np.ix_(plan.order, plan.order)]
      mask = visible_TT & mask[:, None, None]

    prompt = self._embed_prompt(text_BPC, condition.image_BIC)
    levels_BG = jnp.concatenate([jnp.zeros((B, 1)), noisy.sigma_video_BF, register.levels_BG], 1)
    time_BGD, modulation_BG6D = self._modulation(levels_BG, jnp.mean(prompt.text_BPD, 1))
    angles_TR = np.concatenate(
      [attention.video_angles(0, first + frames, *grid, c.head_dim), *register.angles]
    )
    tokens = dit.Tokens(
      modulation_BG6D=modulation_BG6D,
      group_T=layout.group[plan.order],
      angles_TR=angles_TR[plan.order],
      mask=mask,
      alone_T=plan.alone_T,
      pattern=plan.pattern,
    )
    video_BFHWC = jnp.concatenate([clean_BFHWC, noisy.video_BFHWC], 1)
    video_BTD = self._video_tokens(video_BFHWC, condition.latents_BFHWC)
    sequence_BTD = jnp.concatenate([video_BTD, register.x_BTD], 1)
    noisy_T = wam._places(plan.order)[first * grid.tokens :]
    x_BTD = self._run_blocks(sequence_BTD, plan.order, noisy_T, prompt, tokens)
    return self._velocities(x_BTD, time_BGD[:, 1 : 1 + frames], grid, register.actions, body)


def _last_chunk(c: cfg.ModelConfig, tokens_per_frame: int, clean_frames: int) -> masks.Layout:
  """The layout of a training window without the noisy tokens of earlier chunks."""
  chunks = 1 + (clean_frames - 1) // c.frames_per_chunk
  whole = masks.training_layout(
    clean_frames=clean_frames,
    noisy_frames=range(1, 1 + chunks * c.frames_per_chunk),
    tokens_per_frame=tokens_per_frame,
    frames_per_chunk=c.frames_per_chunk,
    actions_per_chunk=c.action_horizon,
    states_per_chunk=1,
    chunks=chunks,
  )
  kept = (whole.kind == masks.CLEAN) | (whole.block == chunks)
  _, group = np.unique(whole.group[kept], return_inverse=True)
  return masks.Layout(
    kind=whole.kind[kept],
    block=whole.block[kept],
    frame=whole.frame[kept],
    group=group.astype(np.int32),
  )


class Uncached:
  """Every pass runs the whole history again, embeds the prompt and projects it; guidance is a pass
  after the other.
  """

  def __init__(self, scene: scene_lib.Scene, sample: cfg.SampleConfig):
    self._scene = scene
    self.params = scene.params
    self._sample = sample
    self._model = Window(scene.model)
    self._solvers = sampler.make_solvers(sample)
    self.program = jax.jit(self._act)
    self.memory: Any = ()

  def arguments(self) -> tuple[Any, ...]:
    """What `program` is called with."""
    s = self._scene
    texts = (s.text_BPC, s.negative_BPC) if self._sample.is_guided else (s.text_BPC,)
    condition = types.Condition(latents_BFHWC=s.condition_BFHWC, image_BIC=s.image_BIC)
    return self.params, s.clean_BFHWC, texts, condition, s.body, s.noise

  def act(self) -> jax.Array:
    """Actions [B, A, U]."""
    return self.program(*self.arguments())

  def _act(self, params, clean_BFHWC, texts, condition, body, noise):
    def velocity(video_BFHWC, sigma_video, action_BAU, sigma_action):
      noisy = types.Noisy(
        video_BFHWC=video_BFHWC,
        sigma_video_BF=jnp.full(video_BFHWC.shape[:2], sigma_video, jnp.float32),
        action_BAU=action_BAU,
        sigma_action_BA=jnp.full(action_BAU.shape[:2], sigma_action, jnp.float32),
      )
      run = lambda m, text: m.predict(clean_BFHWC, noisy, body, text, condition)
      branches = []
      for text_BPC in texts:
        # In turn, and not moved out of the loop over steps: nothing was.
        text_BPC, noisy = jax.lax.optimization_barrier((text_BPC, noisy))
        branches.append(nn.apply(run, self._model)({'params': params}, text_BPC))
      (video, action), *negative = branches
      for negative_video, _ in negative:
        video = sampler.guide(video, negative_video, self._sample.guidance_scale)
      return video, action

    kept = tuple(sampler.start(s, x) for s, x in zip(self._solvers, noise))
    _, (action_BAU, *_) = sampler.denoise(velocity, kept, self._solvers)
    return action_BAU


class Earlier(policy_lib.Policy):
  """`Policy` whose committing and denoising are passes of their own.

  Attributes:
    together: whether the branches of guidance share a pass; one after the other else.
    prompt_once: whether the prompt is projected at reset; in every pass else.
    image_BIC: image-encoder tokens, for projecting it again.
  """

  def __init__(self, *args: Any, together: bool = True, prompt_once: bool = True, image_BIC=None):
    self.together = together
    self.prompt_once = prompt_once
    self.image_BIC = image_BIC
    super().__init__(*args)

  def _act(self, params, memory, latents_BFHWC, start, asked):
    memory = self._commit(params, memory, latents_BFHWC, start)
    chunk = self._chunk(memory, asked, start + self.cfg.frames_per_chunk)
    if not self.together:
      # Each branch has a cache of its own, cut out once.
      self._parts = [_cut(memory, branch, self.branches) for branch in range(self.branches)]
    return self._predict(params, memory, chunk, asked.noise)

  def _velocities(self, params, memory, noisy, chunk):
    if self.together:
      return super()._velocities(params, memory, noisy, chunk)
    frames = noisy.video_BFHWC.shape[1]
    outputs = []
    for part in self._parts:
      prompt = part.prompt
      if not self.prompt_once:
        # Not moved out of the loop over steps: nothing was.
        text_BPC, noisy = jax.lax.optimization_barrier((part.text_GPC, noisy))
        prompt = self._apply(params, self._wam.prompt_kv, text_BPC, self.image_BIC)
      condition = types.UNCONDITIONED
      if memory.condition_BFHWC is not None:
        latents = jax.lax.dynamic_slice_in_dim(memory.condition_BFHWC, chunk.start, frames, axis=1)
        condition = types.Condition(latents_BFHWC=latents)
      given = (part.cache, noisy, chunk.body, chunk.start, prompt, condition)
      outputs.append(self._apply(params, self._wam.denoise, *given))
    return self._guide(*jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs))


def _cut(memory: memory_lib.Memory, branch: int, branches: int) -> memory_lib.Memory:
  """What one branch of guidance remembers."""

  def cut(x, axis: int):
    rows = x.shape[axis] // branches
    return jax.lax.slice_in_dim(x, branch * rows, (branch + 1) * rows, axis=axis)

  of_layers = lambda tree: jax.tree.map(lambda x: cut(x, -4), tree)
  return dataclasses.replace(
    memory,
    text_GPC=cut(memory.text_GPC, 0),
    prompt=wam.PromptKV(of_layers(memory.prompt.layers), cut(memory.prompt.mean_BD, 0)),
    cache=memory.cache.replace(k=of_layers(memory.cache.k), v=of_layers(memory.cache.v)),
  )


class Cached:
  """A `Policy` at the newest chunk of a scene."""

  def __init__(self, scene: scene_lib.Scene, policy: policy_lib.Policy, params: Any):
    self._scene = scene
    self.policy = policy
    self.params = params
    self.program = policy.programs['act']
    self.memory = scene_lib.remember(policy, scene, params)
    self._observed_BFHWC = scene.observed_BFHWC
    proprio_BX = np.asarray(scene.body.proprio_BSX[:, 0])
    self._asked = memory_lib.Asked(proprio_BX, scene.noise, None)

  def arguments(self) -> tuple[Any, ...]:
    """What `program` is called with."""
    s = self._scene
    return self.params, self.memory, self._observed_BFHWC, np.int32(s.start), self._asked

  def act(self) -> jax.Array:
    """Actions [B, A, U]; again and again of the same chunk, which takes its own place."""
    action_BAU, _, self.memory = self.program(*self.arguments())
    return action_BAU
