"""The arguments of a training step as shapes: nothing is read, downloaded or allocated."""

from __future__ import annotations

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
  state = train_step.abstract_state(config, mesh, frozen(config.model))
  split = sharding.batch_sharding(mesh, config.rules)

  def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)

  return state, jax.tree.map(place, shapes.batch(config))


def frozen(c: cfg.ModelConfig) -> encoders.Encoders:
  """Shapes of a model's encoders."""
  # A function without arguments: parameters are made inside, and so only traced.
  return jax.eval_shape(lambda: _make_encoders(c))


def _make_encoders(c: cfg.ModelConfig) -> encoders.Encoders:
  """Encoders of the config with any weights; UMT5 and CLIP in bfloat16, as they are released."""
  key = jax.random.key(0)  # Of no consequence: nothing is drawn.
  t = c.tokenizer
  if t.kind in shapes.IMPORTED:
    video = vae.init(t, key)
  else:
    P = t.temporal * t.spatial**2 * 3
    video = tokenizer.PatchTokenizer(
      mean_P=jnp.zeros(P),
      encode_PC=jnp.zeros((P, t.channels)),
      decode_CP=jnp.zeros((t.channels, P)),
      temporal=t.temporal,
      spatial=t.spatial,
    )
  return encoders.Encoders(
    tokenizer=video,
    text=_halve(text.init(c.text, key)) if c.text.kind == 'umt5' else None,
    image=_halve(image.init(c.image, key)) if c.image.kind == 'clip' else None,
    config=c,
  )


def _halve(tree: Any) -> Any:
  """Unboxed parameters in bfloat16."""
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), nn.meta.unbox(tree))
