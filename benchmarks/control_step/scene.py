"""What every rung is given: random weights, a full history, one chunk to denoise, its noise.

Latents, not pixels: frames are encoded as they arrive, before a robot waits. No time depends on
what the weights are, but what 'cosine' skips does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import apart
from wam_jax.control import memory as memory_lib
from wam_jax.control import policy as policy_lib
from wam_jax.control import weights
from wam_jax.data import shapes
from wam_jax.models import initial


@dataclasses.dataclass(frozen=True)
class Scene:
  """The last chunk of a full history, for B robots.

  Attributes:
    model: what is run.
    params: its parameters, as control holds them.
    clean_BFHWC: latents of all observed frames; those of the newest chunk are not committed yet.
    text_BPC, negative_BPC: embedded prompts.
    image_BIC: image-encoder tokens of frame 0, or None.
    condition_BFHWC: what frame 0 says about all frames, or None.
    body: the robots, with their states.
    noise: of the chunk's video and actions.
    memories: what `remember` has made, by the number of branches of guidance and whether layers are
      apart.
  """

  model: cfg.ModelConfig
  params: Any
  clean_BFHWC: jax.Array
  text_BPC: jax.Array
  negative_BPC: jax.Array
  image_BIC: jax.Array | None
  condition_BFHWC: jax.Array | None
  body: types.Body
  noise: tuple[jax.Array, jax.Array]
  memories: dict[tuple[int, bool], memory_lib.Memory] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def layers_apart(self) -> Any:
    """The parameters with the layers apart."""
    return apart.take(self.params)

  @property
  def observed_BFHWC(self) -> jax.Array:
    """Latents of the newest chunk."""
    return self.clean_BFHWC[:, -self.model.frames_per_chunk :]

  @property
  def start(self) -> int:
    """The first frame of the newest chunk."""
    return self.clean_BFHWC.shape[1] - self.model.frames_per_chunk

  @property
  def tokens_per_frame(self) -> int:
    """Patches of a latent frame."""
    H, W = self.clean_BFHWC.shape[2:4]
    return (H // self.model.patch) * (W // self.model.patch)


def make(config: cfg.TrainConfig, robots: int, seed: int = 0) -> Scene:
  """A scene of the config's sizes."""
  c = config.model
  B = robots
  rng = np.random.default_rng(seed)
  size = shapes.sizes(config)
  latent = (size.latent_rows, size.latent_columns, c.tokenizer.channels)
  frames = 1 + c.max_chunks * c.frames_per_chunk

  def draw(*shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  condition = None
  if c.image_condition:
    mask = jnp.zeros((B, frames, *latent[:2], 4)).at[:, 0].set(1)
    condition = jnp.concatenate([mask, draw(B, frames, *latent)], -1)
  body = types.Body(
    proprio_BSX=draw(B, 1, c.proprio_dim),
    embodiment_B=jnp.zeros(B, jnp.int32),
    valid_BA=jnp.ones((B, c.actions_per_chunk), bool),
  )
  return Scene(
    model=c,
    params=draw_params(c, seed),
    clean_BFHWC=draw(B, frames - c.frames_per_chunk, *latent),
    text_BPC=draw(B, c.text.length, c.text.dim),
    negative_BPC=draw(B, c.text.length, c.text.dim),
    image_BIC=draw(B, c.image_tokens, c.image_dim) if c.image_dim else None,
    condition_BFHWC=condition,
    body=body,
    noise=(
      draw(B, c.frames_per_chunk, *latent),
      draw(B, c.actions_per_chunk, c.action_dim),
    ),
  )


def draw_params(model: cfg.ModelConfig, seed: int) -> Any:
  """Random parameters in the dtypes of control, of which none is zero.

  A million numbers, again and again from other places: no more is needed, and 14B of them are soon
  drawn.
  """
  boxed = jax.eval_shape(lambda: initial.init(model, jax.random.key(0)))
  wanted = weights.narrow(nn.unbox(boxed), model)
  rng = np.random.default_rng(seed)
  pool = rng.standard_normal(2**20 + 7, np.float32)

  def draw(path, x):
    is_scale = path[-1].key == 'scale'
    # As wide as keeps products near 1: by all axes but the layers' and the last.
    width = math.prod(x.shape[1:-1] or (1,))
    deviation = 0.02 if is_scale else min(0.2, width**-0.5)
    numbers = np.roll(pool, rng.integers(pool.size)) * deviation + is_scale
    return jnp.asarray(np.resize(numbers.astype(x.dtype), x.shape))

  return jax.tree_util.tree_map_with_path(draw, wanted)


def remember(policy: policy_lib.Policy, scene: Scene, params: Any) -> memory_lib.Memory:
  """Memory of a policy that has committed all but the newest chunk; made once for each number of
  branches and form of parameters.
  """
  form = (policy.branches, apart.is_apart(params))
  if form not in scene.memories:
    scene.memories[form] = _commit(policy, scene, params)
  memory = dataclasses.replace(scene.memories[form], key=None)
  # A copy, since programs take the place of what they are given; it lies as they read it.
  copy = policy.count('copy', lambda memory: jax.tree.map(jnp.copy, memory), (), 'memory')
  return dataclasses.replace(copy(memory), key=jax.random.key(0))


def _commit(policy: policy_lib.Policy, scene: Scene, params: Any) -> memory_lib.Memory:
  guided = policy.branches == 2
  text_GPC = scene.text_BPC
  if guided:
    text_GPC = jnp.concatenate([scene.text_BPC, scene.negative_BPC])
  # Copies, since programs take the place of what they are given.
  known = jax.tree.map(jnp.copy, (text_GPC, scene.condition_BFHWC, scene.body.embodiment_B))
  memory = policy.forget(
    text_GPC=known[0],
    prompt=jax.jit(policy._prompt)(params, text_GPC, scene.image_BIC),
    condition_BFHWC=known[1],
    embodiment_B=known[2],
    action_mask_BAU=jnp.ones(scene.noise[1].shape, bool),
    latent=scene.clean_BFHWC.shape[2:],
    key=jax.random.key(0),
  )
  commit = jax.jit(policy._commit, donate_argnums=1)
  memory = commit(params, memory, scene.clean_BFHWC[:, :1], 0)
  per_chunk = scene.model.frames_per_chunk
  for start in range(1, scene.start, per_chunk):
    frames = scene.clean_BFHWC[:, start : start + per_chunk]
    memory = commit(params, memory, frames, jnp.int32(start))
  return memory
