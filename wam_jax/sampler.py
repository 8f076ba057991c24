"""Denoising loops over one chunk: noise levels, solvers, guidance, the scan. Knows no network and
no robot.

Both solvers are linear: what they keep between steps (the sample and, for UniPC, the last corrected
sample and the last two x0 = sample - sigma * velocity) goes by fixed weights into the next. The
weights are worked out in numpy float64, so the compiled loop only adds, and steps that use a
velocity again are one step with other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import flow

VelocityFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

LARGEST_UNIPC = float(
  np.float32(0.999)
)  # Largest level before the shift; the reference keeps it in float32.


class Solver(NamedTuple):
  """A schedule and its update weights (numpy float64) over n network evaluations.

  Attributes:
    sigmas: [n + 1] levels at the evaluations, and where the sample ends.
    told: [n] levels that the network is told.
    weights: [n, m, m + 1]: each of the m arrays kept, the sample first, from those before and the
      velocity.
  """

  sigmas: np.ndarray
  told: np.ndarray
  weights: np.ndarray


def sampling_sigmas(
  steps: int, shift: float, largest: float = 1.0, final: float = 0.0
) -> np.ndarray:
  """[steps + 1] float64 levels from `largest` down to `final`, evenly spaced before the shift.

  With `final` above 0 the whole schedule is squeezed to end there (decoupled inference).
  Source: DreamZero `FlowUniPCMultistepScheduler.set_timesteps`, policy head
  `decouple_inference_noise`.
  """
  sigmas = flow.warp(np.linspace(largest, 0.0, steps + 1), shift)
  return sigmas * (sigmas[0] - final) / sigmas[0] + final


def timesteps(sigmas: np.ndarray) -> np.ndarray:
  """int64 timesteps of levels, cut off. Source: DreamZero
  `FlowUniPCMultistepScheduler.set_timesteps`.
  """
  return np.floor(1000 * np.asarray(sigmas, np.float64)).astype(np.int64)


def euler(sigmas: np.ndarray) -> Solver:
  """First order: sample + (next sigma - sigma) * velocity. Source: DreamZero
  `FlowMatchScheduler.step`.
  """
  weights = np.stack([np.ones(len(sigmas) - 1), np.diff(sigmas)], 1)[:, None]
  return Solver(sigmas, sigmas[:-1], weights)


def unipc(sigmas: np.ndarray) -> Solver:
  """UniPC of order 2, B(h) = expm1(h), x0 prediction, first order at both ends.

  Source: DreamZero `FlowUniPCMultistepScheduler` (bh2, lower_order_final), after Zhao et al., arXiv
  2302.04867.
  """
  steps = len(sigmas) - 1
  alphas = 1 - sigmas
  with np.errstate(divide='ignore'):
    lambdas = np.log(alphas) - np.log(sigmas)
  weights, correct, order = np.zeros((steps, 4, 5)), np.float64([1, 0, 0, 0, 0]), 0
  for i in range(steps):
    if i > 0:
      correct = _unipc_correct(sigmas, alphas, lambdas, i, order)
    order = min(2, steps - i, i + 1)
    predict = _unipc_predict(sigmas, alphas, lambdas, i, order)
    sample, last, x0_1, x0_2, velocity = np.eye(5)
    x0 = sample - sigmas[i] * velocity
    corrected = correct @ np.stack([sample, last, x0, x0_1, x0_2])
    weights[i] = predict @ np.stack([corrected, x0, x0_1]), corrected, x0, x0_1
  return Solver(sigmas, sigmas[:-1], weights)


def skip(solver: Solver, evaluate: tuple[int, ...]) -> Solver:
  """`solver` with the network run at the steps `evaluate` only; each later step uses its last
  velocity again.

  Source: DreamZero policy head, `dit_step_mask`.
  """
  velocity = np.eye(solver.weights.shape[2])[-1:]
  merged = []
  for first, stop in zip(evaluate, (*evaluate[1:], len(solver.weights))):
    total = solver.weights[first]
    for weights in solver.weights[first + 1 : stop]:
      total = weights @ np.concatenate([total, velocity])
    merged.append(total)
  return Solver(solver.sigmas[[*evaluate, -1]], solver.told[list(evaluate)], np.stack(merged))


def make_solvers(config: cfg.SampleConfig) -> tuple[Solver, Solver]:
  """(video, action) solvers; in 'flash' the video's schedule stops at `video_final_sigma`."""
  make, largest = {'euler': (euler, 1.0), 'unipc': (unipc, LARGEST_UNIPC)}[config.solver]

  def solver(final):
    made = make(sampling_sigmas(config.steps, config.shift, largest, final))
    if config.integer_timesteps:
      made = made._replace(told=timesteps(made.sigmas[:-1]) / 1000)
    return skip(made, config.evaluate_steps) if config.evaluate_steps else made

  return solver(config.video_final_sigma if config.mode == 'flash' else 0.0), solver(0.0)


def guide(velocity, negative_velocity, scale: float):
  """Velocity of a prompt moved away from that of another; `scale` 1 leaves it. Source: Ho and
  Salimans, 2207.12598.
  """
  return negative_velocity + scale * (velocity - negative_velocity)


def denoise(
  velocity_fn: VelocityFn,
  noise_video: jax.Array,
  noise_action: jax.Array,
  video: Solver,
  action: Solver,
) -> tuple[jax.Array, jax.Array]:
  """Video and action samples after all steps, from the given noise.

  Args:
    velocity_fn: (noisy video, its sigma, noisy action, its sigma), sigmas scalar, to both
      velocities.
  """

  def step(kept, now):
    (kept_video, kept_action), (video_now, action_now) = kept, now
    velocities = velocity_fn(kept_video[0], video_now[0], kept_action[0], action_now[0])
    return (
      advance(kept_video, velocities[0], video_now[1]),
      advance(kept_action, velocities[1], action_now[1]),
    ), None

  steps = lambda solver: (
    jnp.asarray(solver.told, jnp.float32),
    jnp.asarray(solver.weights, jnp.float32),
  )
  (done_video, done_action), _ = jax.lax.scan(
    step, (start(video, noise_video), start(action, noise_action)), (steps(video), steps(action))
  )
  return done_video[0], done_action[0]


def start(solver: Solver, noise) -> tuple:
  """What the solver keeps before its first step."""
  return (noise,) + (jnp.zeros_like(noise),) * (solver.weights.shape[1] - 1)


def advance(kept: tuple, velocity, weights) -> tuple:
  """What the solver keeps after a step of the given weights, [m, m + 1]."""
  parts = (*kept, velocity)
  return tuple(sum(weights[i, j] * part for j, part in enumerate(parts)) for i in range(len(kept)))


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
