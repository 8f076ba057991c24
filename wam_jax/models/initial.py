"""Fresh parameters of the world action model."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wam_jax import config as cfg
from wam_jax import types
from wam_jax.models import wam


def init(c: cfg.ModelConfig, key: jax.Array) -> Any:
  """Random parameters boxed with their axis names; under `jax.eval_shape`, the shapes of a
  checkpoint without its memory.
  """
  ids_BP = jnp.zeros((1, c.text.length), jnp.int32)

  def run(model):
    # A frozen text encoder is not part of the model.
    if c.text.kind == 'word':
      text_BPC = model.encode_text(ids_BP)
    else:
      text_BPC = jnp.zeros((*ids_BP.shape, c.text.dim))
    return model(**_example(c), text_BPC=text_BPC)

  return nn.init(run, wam.WorldActionModel(c))(key)['params']


def _example(c: cfg.ModelConfig) -> dict[str, Any]:
  """What the model is given beside a prompt: one window, of frames of one patch; all zero."""
  B = 1
  Q, C = c.max_chunks, c.tokenizer.channels
  F = 1 + Q * c.frames_per_chunk
  A = Q * c.action_horizon
  denoised = F if c.predict_first_frame else F - 1
  video = lambda frames, channels: jnp.zeros((B, frames, c.patch, c.patch, channels))
  noisy = types.Noisy(
    video_BFHWC=video(denoised, C),
    sigma_video_BF=jnp.zeros((B, denoised)),
    action_BAU=jnp.zeros((B, A, c.action_dim)),
    sigma_action_BA=jnp.zeros((B, A)),
  )
  body = types.Body(
    proprio_BSX=jnp.zeros((B, Q, c.proprio_dim)),
    embodiment_B=jnp.zeros(B, jnp.int32),
    valid_BA=jnp.ones((B, A), bool),
  )
  condition = types.Condition(
    latents_BFHWC=video(F, 4 + C) if c.image_condition else None,
    image_BIC=jnp.zeros((B, c.image_tokens, c.image_dim)) if c.image_dim else None,
  )
  clean_BFHWC = video(F - c.frames_per_chunk, C)
  return dict(clean_BFHWC=clean_BFHWC, noisy=noisy, body=body, condition=condition)
