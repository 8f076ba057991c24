"""Flow matching: noise levels, interpolation, velocity targets, loss weights. No network, no I/O.

`sigma` is 0 for clean and 1 for noise; the reference's timestep is 1000 * sigma, the paper's time
is 1 - sigma, and the velocity here, noise - clean, is minus the paper's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import types


class NoiseLevels(NamedTuple):
  """Noise levels of a batch, float32 in [0, 1].

  Attributes:
    first_B: the level of frame 0.
    video_BQ: the level of each chunk's frames.
    action_BA: the level of each action step.
    video_seen_BQ: bool, chunks whose noisy video is seen; None where all are.
    given_BA: bool, action steps that are given clean, at the start of a chunk; None where none is.
  """

  first_B: jax.Array
  video_BQ: jax.Array
  action_BA: jax.Array
  video_seen_BQ: jax.Array | None = None
  given_BA: jax.Array | None = None


def warp(sigma, shift: float):
  """Levels moved towards noise: shift * s / (1 + (shift - 1) * s); NumPy and JAX arrays."""
  return shift * sigma / (1 + (shift - 1) * sigma)


def schedule(
  levels: int, shift: float, smallest: float = 0.0, drop_last: bool = True
) -> np.ndarray:
  """[levels] float32 discrete sigmas, from pure noise (index 0) downwards.

  Evenly spaced before the shift from 1 to `smallest`, which with `drop_last` would be the level
  after the last. The defaults are those of DreamZero's policy head. Source:
  `FlowMatchScheduler.set_timesteps`, its sigma_min and extra_one_step.
  """
  spaced = np.linspace(1.0, smallest, levels + drop_last)[:levels]
  return warp(spaced, shift).astype(np.float32)


def level_weights(sigmas: np.ndarray, scale: float = 1.0) -> np.ndarray:
  """The reference's bell-shaped loss weight of each level of a schedule, mean 1.

  The bell is highest at `scale` * sigma = 0.5. The reference's scale is 1000 / (number of levels):
  1 for its 1000.
  Source: DreamZero `FlowMatchScheduler.set_timesteps(training=True)`.
  """
  distance = scale * sigmas.astype(np.float64) - 0.5
  bell = np.exp(-2 * distance**2)
  bell = bell - bell.min()  # The levels furthest from the middle weigh nothing.
  return (bell * len(sigmas) / bell.sum()).astype(np.float32)


def sample_levels(
  key: jax.Array,
  batch: int,
  chunks: int,
  config: cfg.FlowConfig,
  action_horizon: int = 1,
  action_overlap: int = 0,
  *,
  given_BQ: types.Array | None = None,
) -> NoiseLevels:
  """One draw of noise levels per sample and chunk.

  coupled: one uniform index of the shifted schedule, shared by a chunk's video and actions (paper,
  section on the coupled schedule). coupled_beta: the same with a Beta draw of the index. flash:
  video eta ~ Beta(beta, 1), drawn as U^(1/beta), action ~ U(0, 1), independent (paper,
  DreamZero-Flash). decoupled: the reference's code for the same idea, Beta and uniform draws of
  indices of the shifted schedule, the actions' anew for every step. Frame 0 has its own level of
  the video's law.

  Of all chunks a share `video_at_noise` has video of level 1, whatever was drawn, and in a share
  `video_hidden` nobody sees the video.

  Args:
    action_horizon: action steps of a chunk.
    action_overlap: the most of them that are given clean, at level 0: from 0 to as many, each
      number as likely (Black et al., arXiv 2512.05964), but for the share `without_prefix` of all.
    given_BQ: [batch, chunks] int, `types.Batch.given_BQ`; where it is above 0 it stands in place of
      that draw.
  """
  key_video, key_action, key_first = jax.random.split(key, 3)
  first_B = _sample_video_levels(key_first, (batch,), config)
  video_BQ = _sample_video_levels(key_video, (batch, chunks), config)

  if config.schedule == 'decoupled':
    action_BA = _sample_scheduled(key_action, (batch, chunks * action_horizon), config)
  else:
    action_BQ = video_BQ
    if config.schedule == 'flash':
      action_BQ = warp(jax.random.uniform(key_action, (batch, chunks)), config.flash_shift)
    action_BA = jnp.repeat(action_BQ, action_horizon, 1)

  # What is drawn above does not depend on these shares, nor they on it: `split` gives the same keys
  # as folding in 0 to 2.
  key_noise, key_hidden = jax.random.split(jax.random.fold_in(key, 7))
  if config.video_at_noise:
    is_noise_BQ = jax.random.bernoulli(key_noise, config.video_at_noise, (batch, chunks))
    video_BQ = jnp.where(is_noise_BQ, 1.0, video_BQ)
  seen_BQ = None
  if config.video_hidden:
    seen_BQ = ~jax.random.bernoulli(key_hidden, config.video_hidden, video_BQ.shape)
  given_BA = None
  if action_overlap:
    key_length, key_none = jax.random.fold_in(key, 3), jax.random.fold_in(key, 4)
    length_BQ = jax.random.randint(key_length, (batch, chunks), 0, action_overlap + 1)
    if config.without_prefix:
      is_none_BQ = jax.random.bernoulli(key_none, config.without_prefix, length_BQ.shape)
      length_BQ = jnp.where(is_none_BQ, 0, length_BQ)
    if given_BQ is not None:
      length_BQ = jnp.where(given_BQ > 0, given_BQ, length_BQ)
    given_BA = prefix_mask(length_BQ, action_horizon).reshape(batch, -1)
    action_BA = jnp.where(given_BA, 0.0, action_BA)
  return NoiseLevels(first_B, video_BQ, action_BA, seen_BQ, given_BA)


def prefix_mask(length: types.Array, steps: int) -> jax.Array:
  """[..., steps] bool, the first `length` [...] of them."""
  return jnp.arange(steps) < jnp.asarray(length)[..., None]


def _sample_video_levels(key, shape, config: cfg.FlowConfig) -> jax.Array:
  if config.schedule == 'coupled':
    return _sample_scheduled(key, shape, config)
  eta = jax.random.uniform(key, shape) ** (1 / config.video_beta)
  if config.schedule in ('coupled_beta', 'decoupled'):
    return beta_level(eta, config)
  return warp(eta, config.flash_shift)


def _sample_scheduled(key, shape, config: cfg.FlowConfig) -> jax.Array:
  """Levels of the shifted schedule, each as likely as any other."""
  index = jax.random.randint(key, shape, 0, config.levels)
  return jnp.asarray(schedule(config.levels, config.shift))[index]


def beta_level(eta, config: cfg.FlowConfig):
  """Level of the discrete schedule for a draw `eta` in [0, 1], 1 the noisiest.

  Source: DreamZero policy head, `decouple_video_action_noise` and `use_high_noise_emphasis`.
  """
  index = jnp.floor((1 - eta) * config.levels)
  # A draw of exactly 0 would be the level after the last.
  index = jnp.clip(index, 0, config.levels - 1).astype(jnp.int32)
  return jnp.asarray(schedule(config.levels, config.shift))[index]


def interpolate(clean, noise, sigma):
  """Point on the straight path from `clean` (sigma 0) to `noise` (sigma 1).

  Args:
    clean, noise: [B, F, H, W, C] or [B, A, U], float32.
    sigma: noise level in [0, 1], broadcast from the left: [B, F] or [B, A].
  Raises:
    ValueError: `sigma` has more axes than `clean`.
  Source: DreamZero `FlowMatchScheduler.add_noise`; its timestep is 1000 * sigma.
  """
  sigma = _from_left(sigma, clean)
  return (1 - sigma) * clean + sigma * noise


def sample_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal float32."""
  # In two axes: the same bits as in more, and compiled 20 times faster on CPU.
  flat = jax.random.normal(key, (shape[0], math.prod(shape[1:])))
  return flat.reshape(shape)


def velocity(clean, noise):
  """The regression target, constant along the path.

  Source: DreamZero `FlowMatchScheduler.training_target`.
  """
  return noise - clean


def loss_weight(sigma, config: cfg.FlowConfig):
  """Weight of the squared error at each level, same shape as `sigma`."""
  if config.weighting == 'uniform':
    return jnp.ones_like(sigma)
  sigmas = schedule(config.levels, config.shift)
  return nearest_weight(sigma, sigmas, level_weights(sigmas))


def nearest_weight(sigma, sigmas: np.ndarray, weights: np.ndarray):
  """Weight of the level nearest to each `sigma`, of the same shape, in a falling schedule.

  Source: `FlowMatchScheduler.training_weight`.
  """
  # Between two levels the nearest one changes half way; `searchsorted` wants rising borders.
  ascending = jnp.asarray(sigmas[::-1])
  borders = (ascending[1:] + ascending[:-1]) / 2
  return jnp.asarray(weights[::-1])[jnp.searchsorted(borders, sigma)]


def video_loss(prediction, target, weight_BF, mask_BF, count=None) -> jax.Array:
  """Weighted squared error of the video velocity, mean over latents and over the frames in
  `mask_BF`.

  Args:
    prediction, target: [B, F, H, W, C].
    weight_BF: float32 weight of the error of each frame.
    mask_BF: bool, the frames that count.
    count: the number of frames to divide by; by default of those in the mask.
  """
  error = jnp.square(prediction.astype(jnp.float32) - target)
  error_BF = jnp.mean(error, axis=(2, 3, 4))
  return _masked_mean(weight_BF * error_BF, mask_BF, count)


def action_loss(prediction_BAU, target_BAU, weight_BA, mask_BAU, count=None) -> jax.Array:
  """Weighted squared error of the action velocity over real dimensions of real steps.

  The sum is divided by `count`, by default the number of such entries. Video-only samples have no
  real entry and add nothing.
  """
  error_BAU = jnp.square(prediction_BAU.astype(jnp.float32) - target_BAU)
  error_BAU = weight_BA[..., None] * error_BAU
  return _masked_mean(error_BAU, mask_BAU, count)


def _masked_mean(x, mask, count):
  if count is None:
    count = jnp.sum(mask)
  # A batch of videos alone has no action at all: 0, not NaN.
  return jnp.sum(x * mask) / jnp.maximum(count, 1)


def _from_left(sigma, like):
  """`sigma` with axes of size 1 after its own, to broadcast against `like`."""
  spare = jnp.ndim(like) - jnp.ndim(sigma)
  if spare < 0:
    raise ValueError(
      f'sigma of shape {jnp.shape(sigma)} has more axes than the array of shape {jnp.shape(like)}.'
    )
  return jnp.reshape(sigma, (*jnp.shape(sigma), *(1,) * spare))
