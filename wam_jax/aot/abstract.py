"""The arguments of a training step as shapes: nothing is read, downloaded or allocated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wam_jax import config as cfg
from wam_jax import sharding
from wam_jax import train_step
from wam_jax import types
from wam_jax.data import embodiments
from wam_jax.models import encoders
from wam_jax.models import image
from wam_jax.models import text
from wam_jax.models import tokenizer
from wam_jax.models import vae

IMPORTED = ('wan2_1', 'wan2_2')  # Tokenizers whose latents are worth storing.


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of what a config trains on, in pixels and in patches of a latent frame."""

  rows: int
  columns: int
  latent_rows: int
  latent_columns: int
  tokens_per_frame: int


def sizes(config: cfg.TrainConfig) -> Sizes:
  """Sizes that the robots of the mixture give.

  Raises:
    ValueError: there are none, or their images are not of one size.
  """
  m = config.model
  names = sorted({d.embodiment for d in config.data.mixture.values()} or config.data.embodiments)
  composites = {embodiments.get(name).composite for name in names}
  if len(composites) != 1:
    raise ValueError(
      f'config.data must name robots with images of one size; {names} have {sorted(composites)}.'
    )
  rows, columns = composites.pop()
  latent = [n // m.tokenizer.spatial for n in m.tokenizer.resize or (rows, columns)]
  return Sizes(rows, columns, *latent, math.prod(n // m.patch for n in latent))


def takes_features(config: cfg.TrainConfig) -> bool:
  """Whether the step is given stored features: where the tokenizer is a large one, unless the
  config says 'off'.
  """
  return config.model.tokenizer.kind in IMPORTED and config.data.features != 'off'


def arguments(config: cfg.TrainConfig, mesh: Mesh) -> tuple[train_step.TrainState, types.Batch]:
  """State and batch of `train_step.make_train_step` for this mesh, as ShapeDtypeStructs with
  shardings.
  """
  frozen = jax.eval_shape(lambda: _encoders(config.model))
  state = train_step.abstract_state(config, mesh, frozen)
  split = sharding.batch_sharding(mesh, config.rules)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), _batch(config)
  )
  return state, batch


def bytes_per_device(tree: Any) -> int:
  """Of a tree of ShapeDtypeStructs with shardings, before padding to tiles."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _encoders(c: cfg.ModelConfig) -> encoders.Encoders:
  """Zeros; UMT5 and CLIP in bfloat16, as they are released."""
  half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), nn.meta.unbox(tree))
  key, t = jax.random.key(0), c.tokenizer
  P = t.temporal * t.spatial**2 * 3
  zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
  video = (
    vae.init(t, key)
    if t.kind in IMPORTED
    else tokenizer.PatchTokenizer(
      zeros(P), zeros(P, t.channels), zeros(t.channels, P), t.temporal, t.spatial
    )
  )
  return encoders.Encoders(
    video,
    half(text.init(c.text, key)) if c.text.kind == 'umt5' else None,
    half(image.init(c.image, key)) if c.image.kind == 'clip' else None,
    c,
  )


def _batch(config: cfg.TrainConfig) -> types.Batch:
  c, B, Q = config.model, config.batch_size, config.model.max_chunks
  size, array = sizes(config), jax.ShapeDtypeStruct
  A = Q * c.actions_per_chunk
  frames, features = array((B, c.camera_frames(Q), size.rows, size.columns, 3), jnp.uint8), None
  if takes_features(config):
    latents = array(
      (B, 1 + Q * c.frames_per_chunk, size.latent_rows, size.latent_columns, c.tokenizer.channels),
      jnp.float32,
    )
    frames, features = (
      None,
      types.Features(
        latents,
        array((B, c.text.length, c.text.dim), c.text.dtype) if c.text.kind == 'umt5' else None,
        array((B, c.image.tokens, c.image.dim), c.image.dtype) if c.image.kind == 'clip' else None,
        latents if c.image_condition else None,
      ),
    )
  return types.Batch(
    frames,
    array((B, A, c.action_dim), jnp.float32),
    array((B, A, c.action_dim), bool),
    array((B, Q, c.proprio_dim), jnp.float32),
    array((B, Q), bool),
    array((B, c.text.length), jnp.int32),
    array((B,), jnp.int32),
    array((B, 2), jnp.int32),
    features,
  )
