"""A small model for tests, and random weights."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from wam_jax import config as cfg
from wam_jax.models import encoders
from wam_jax.models import image
from wam_jax.models import initial
from wam_jax.models import text
from wam_jax.models import vae

# What tests of the whole model share; each names the robots, chunks and encoders that it is about.
SMALL = cfg.ModelConfig(dim=16, mlp_dim=32, num_heads=2, num_layers=2, freq_dim=16, action_hidden=8)


def draw_like(shapes: Any, seed: int) -> Any:
  """Weights of these shapes, all random, so that those initialised to zero matter too.

  Gains are near 1. Drawn by NumPy, which compiles nothing.
  """
  rng = np.random.default_rng(seed)

  def draw(path, x):
    centre = float(path[-1].key == 'scale')
    return centre + 0.2 * rng.normal(size=x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


def draw_params(model: cfg.ModelConfig, seed: int) -> Any:
  """Parameters of a world action model."""
  return draw_like(jax.eval_shape(lambda: initial.init(model, jax.random.key(0))), seed)


def draw_encoders(model: cfg.ModelConfig) -> encoders.Encoders:
  """Wan VAE, UMT5 and CLIP."""

  def draw(module, config, seed):
    return draw_like(
      jax.eval_shape(lambda key: module.init(config, key).params, jax.random.key(0)), seed
    )

  return encoders.Encoders(
    tokenizer=vae.WanVAE(
      draw(vae, model.tokenizer, 0),
      model.tokenizer,
      # Mean and deviation of the latents.
      np.float32([[0.1] * 4, [1.5] * 4]),
    ),
    text=text.UMT5(draw(text, model.text, 1), model.text),
    image=image.ClipVision(draw(image, model.image, 2), model.image),
    config=model,
  )
