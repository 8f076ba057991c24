"""Denoising loops over one chunk: noise levels, solvers, the scan. Knows no network and no robot.

Both solvers are linear: with x0 = x - sigma * velocity, each step is a fixed combination of the sample, the last
sample and the last three x0. The combinations are worked out in numpy float64, so the compiled loop only adds.
"""
from __future__ import annotations

from typing import NamedTuple
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import flow

VelocityFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Solver(NamedTuple):
  """A schedule and its update weights (numpy float32).

  Attributes:
    sigmas: [n + 1] levels, the last is where the sample ends.
    correct: [n, 5] weights of (sample, last corrected sample, x0, previous x0, the one before) in the corrected sample.
    predict: [n, 3] weights of (corrected sample, x0, previous x0) in the next sample.
  """

  sigmas: np.ndarray
  correct: np.ndarray
  predict: np.ndarray


def sampling_sigmas(steps: int, shift: float, largest: float = 1.0, final: float = 0.0) -> np.ndarray:
  """[steps + 1] float64 levels from `largest` down to `final`, evenly spaced before the shift.

  With `final` above 0 the whole schedule is squeezed to end there (decoupled inference).
  Source: DreamZero `FlowUniPCMultistepScheduler.set_timesteps`, policy head `decouple_inference_noise`.
  """
  sigmas = flow.warp(np.linspace(largest, 0.0, steps + 1), shift)
  return sigmas * (sigmas[0] - final) / sigmas[0] + final


def euler(sigmas: np.ndarray) -> Solver:
  """First order: sample + (next sigma - sigma) * velocity. Source: DreamZero `FlowMatchScheduler.step`."""
  keep = sigmas[1:] / sigmas[:-1]
  correct = np.tile([1.0, 0, 0, 0, 0], (len(keep), 1))
  return _solver(sigmas, correct, np.stack([keep, 1 - keep, 0 * keep], 1))


def unipc(sigmas: np.ndarray) -> Solver:
  """UniPC of order 2, B(h) = expm1(h), x0 prediction, first order at both ends.

  Source: DreamZero `FlowUniPCMultistepScheduler` (bh2, lower_order_final), after Zhao et al., arXiv 2302.04867.
  """
  steps = len(sigmas) - 1
  alphas = 1 - sigmas
  with np.errstate(divide='ignore'):
    lambdas = np.log(alphas) - np.log(sigmas)
  correct, predict = np.zeros((steps, 5)), np.zeros((steps, 3))
  correct[0, 0] = 1
  previous_order = 0
  for i in range(steps):
    if i > 0:
      correct[i] = _unipc_correct(sigmas, alphas, lambdas, i, previous_order)
    previous_order = min(2, steps - i, i + 1)
    predict[i] = _unipc_predict(sigmas, alphas, lambdas, i, previous_order)
  return _solver(sigmas, correct, predict)


def make_solvers(config: cfg.SampleConfig) -> tuple[Solver, Solver]:
  """(video, action) solvers; in 'flash' the video's schedule stops at `video_final_sigma`."""
  make, largest = {'euler': (euler, 1.0), 'unipc': (unipc, 0.999)}[config.solver]
  final = config.video_final_sigma if config.mode == 'flash' else 0.0
  return (make(sampling_sigmas(config.steps, config.shift, largest, final)),
          make(sampling_sigmas(config.steps, config.shift, largest)))


def denoise(velocity_fn: VelocityFn, noise_video: jax.Array, noise_action: jax.Array, video: Solver,
            action: Solver) -> tuple[jax.Array, jax.Array]:
  """Video and action samples after all steps, from the given noise.

  Args:
    velocity_fn: (noisy video, its sigma, noisy action, its sigma), sigmas scalar, to both velocities.
  """

  def step(carry, weights):
    carry_video, carry_action = carry
    video_w, action_w = weights
    velocities = velocity_fn(carry_video[0], video_w[0], carry_action[0], action_w[0])
    return (_advance(carry_video, velocities[0], *video_w), _advance(carry_action, velocities[1], *action_w)), None

  start = lambda noise: (noise,) + (jnp.zeros_like(noise),) * 3
  weights = lambda s: (jnp.asarray(s.sigmas[:-1]), jnp.asarray(s.correct), jnp.asarray(s.predict))
  (done_video, done_action), _ = jax.lax.scan(
      step, (start(noise_video), start(noise_action)), (weights(video), weights(action)))
  return done_video[0], done_action[0]


def _advance(carry, velocity, sigma, correct, predict):
  """One solver step of (sample, last corrected sample, previous x0, the one before)."""
  sample, last, x0_1, x0_2 = carry
  x0 = sample - sigma * velocity
  corrected = correct[0] * sample + correct[1] * last + correct[2] * x0 + correct[3] * x0_1 + correct[4] * x0_2
  following = predict[0] * corrected + predict[1] * x0 + predict[2] * x0_1
  return following, corrected, x0, x0_1


def _unipc_predict(sigmas, alphas, lambdas, i, order):
  keep = sigmas[i + 1] / sigmas[i]
  if sigmas[i + 1] == 0:
    return keep, 1.0, 0.0
  phi1 = np.expm1(lambdas[i] - lambdas[i + 1])
  weights = np.array([keep, -alphas[i + 1] * phi1, 0.0])
  if order == 2:
    r = (lambdas[i - 1] - lambdas[i]) / (lambdas[i + 1] - lambdas[i])
    change = -alphas[i + 1] * phi1 * 0.5 / r
    weights += [0, -change, change]
  return weights


def _unipc_correct(sigmas, alphas, lambdas, i, order):
  h = lambdas[i] - lambdas[i - 1]
  phi1 = np.expm1(-h)
  weights = np.array([0, sigmas[i] / sigmas[i - 1], 0, -alphas[i] * phi1, 0])
  if order == 1:
    return weights - alphas[i] * phi1 * 0.5 * np.array([0, 0, 1, -1, 0])
  r = (lambdas[i - 2] - lambdas[i - 1]) / h
  phi2 = phi1 / -h - 1
  phi3 = phi2 / -h - 0.5
  rho = np.linalg.solve([[1, 1], [r, 1]], [phi2 / phi1, 2 * phi3 / phi1])
  older, newer = np.array([0, 0, 0, -1, 1]) / r, np.array([0, 0, 1, -1, 0])
  return weights - alphas[i] * phi1 * (rho[0] * older + rho[1] * newer)


def _solver(sigmas, correct, predict) -> Solver:
  return Solver(*(np.asarray(x, np.float32) for x in (sigmas, correct, predict)))
