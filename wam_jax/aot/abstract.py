"""The arguments of a training step as shapes: nothing is read, downloaded or allocated."""

from __future__ import annotations

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
from wam_jax.data import shapes
from wam_jax.models import encoders
from wam_jax.models import image
from wam_jax.models import text
from wam_jax.models import tokenizer
from wam_jax.models import vae


def arguments(config: cfg.TrainConfig, mesh: Mesh) -> tuple[train_step.TrainState, types.Batch]:
  """State and batch of `train_step.make_train_step` for this mesh, as ShapeDtypeStructs with
  shardings.
  """
  frozen = jax.eval_shape(lambda: _encoders(config.model))
  state = train_step.abstract_state(config, mesh, frozen)
  split = sharding.batch_sharding(mesh, config.rules)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), shapes.batch(config)
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
    if t.kind in shapes.IMPORTED
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
