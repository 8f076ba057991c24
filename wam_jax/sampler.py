"""Denoising loops over one chunk: noise levels, solvers, guidance, the scan. Knows no network and
no robot.

Both solvers are linear: what they keep between steps (the sample and, for UniPC, the last corrected
sample and the last two x0 = sample - sigma * velocity) goes by fixed weights into the next. The
weights are worked out in numpy float64, so the compiled loop only adds, and steps that use a
velocity again are one step with other weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax import config as cfg
from wam_jax import flow

# (noisy video, its sigma, noisy action, its sigma) to (video velocity, action velocity).
VelocityFn = Callable[..., tuple[jax.Array, jax.Array]]

# Largest level before the shift; the reference keeps it in float32.
LARGEST_UNIPC = float(np.float32(0.999))


class Solver(NamedTuple):
  """A schedule and its update weights (numpy float64) over n network evaluations.

  Attributes:
    sigmas: [n + 1] levels at the evaluations, and where the sample ends.
    told: [n] levels that the network is told.
    weights: [n, m, m + 1] for m kept arrays, the sample first: row i makes the i-th of the m kept
      before and the velocity.
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
  """int64 timesteps of levels, rounded down.

  Source: DreamZero `FlowUniPCMultistepScheduler.set_timesteps`.
  """
  return np.floor(1000 * np.asarray(sigmas, np.float64)).astype(np.int64)


def euler(sigmas: np.ndarray) -> Solver:
  """First order: sample + (next sigma - sigma) * velocity.

  Source: DreamZero `FlowMatchScheduler.step`.
  """
  steps = np.diff(sigmas)
  weights = np.stack([np.ones(len(steps)), steps], 1)[:, None]
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

  # A linear combination of what is kept and the velocity is a row of five numbers; a rule applied
  # to such rows is the row of its result.
  sample, last, x0_1, x0_2, velocity = np.eye(5)
  weights = np.zeros((steps, 4, 5))
  order = 0
  for i in range(steps):
    x0 = sample - sigmas[i] * velocity
    corrected = sample
    if i > 0:
      # By the order of the step before, which it corrects.
      correct = _unipc_correct(sigmas, alphas, lambdas, i, order)
      corrected = correct @ np.stack([sample, last, x0, x0_1, x0_2])
    order = min(2, steps - i, i + 1)
    predict = _unipc_predict(sigmas, alphas, lambdas, i, order)
    predicted = predict @ np.stack([corrected, x0, x0_1])
    weights[i] = np.stack([predicted, corrected, x0, x0_1])
  return Solver(sigmas, sigmas[:-1], weights)


def skip(solver: Solver, evaluate: tuple[int, ...]) -> Solver:
  """`solver` with the network run at the steps `evaluate` only; each later step uses its last
  velocity again.

  Source: DreamZero policy head, `dit_step_mask`.
  """
  velocity = np.eye(solver.weights.shape[2])[-1:]
  merged = []
  for first, stop in itertools.pairwise([*evaluate, len(solver.weights)]):
    total = solver.weights[first]
    for weights in solver.weights[first + 1 : stop]:
      total = weights @ np.concatenate([total, velocity])
    merged.append(total)
  return Solver(
    sigmas=solver.sigmas[[*evaluate, -1]],
    told=solver.told[list(evaluate)],
    weights=np.stack(merged),
  )


def make_solvers(config: cfg.SampleConfig) -> tuple[Solver, Solver]:
  """(video, action) solvers; in 'flash' the video's schedule stops at `video_final_sigma`."""
  video_final = config.video_final_sigma if config.mode == 'flash' else 0.0
  return _make_solver(config, video_final), _make_solver(config, 0.0)


def _make_solver(config: cfg.SampleConfig, final: float) -> Solver:
  if config.solver == 'euler':
    solver = euler(sampling_sigmas(config.steps, config.shift, 1.0, final))
  else:
    solver = unipc(sampling_sigmas(config.steps, config.shift, LARGEST_UNIPC, final))
  if config.integer_timesteps:
    solver = solver._replace(told=timesteps(solver.sigmas[:-1]) / 1000)
  return skip(solver, config.evaluate_steps) if config.evaluate_steps else solver


def guide(velocity, negative_velocity, scale: float):
  """Velocity of a prompt moved away from that of another; `scale` 1 leaves it.

  Source: Ho and Salimans, arXiv 2207.12598.
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
    kept_video, kept_action = kept
    (sigma_video, weights_video), (sigma_action, weights_action) = now
    velocity_video, velocity_action = velocity_fn(
      kept_video[0], sigma_video, kept_action[0], sigma_action
    )
    kept_video = advance(kept_video, velocity_video, weights_video)
    kept_action = advance(kept_action, velocity_action, weights_action)
    return (kept_video, kept_action), None

  at_start = (start(video, noise_video), start(action, noise_action))
  steps = (_per_step(video), _per_step(action))
  (kept_video, kept_action), _ = jax.lax.scan(step, at_start, steps)
  return kept_video[0], kept_action[0]


def _per_step(solver: Solver) -> tuple[jax.Array, jax.Array]:
  """What each step needs: (the level that the network is told, the weights)."""
  return jnp.asarray(solver.told, jnp.float32), jnp.asarray(solver.weights, jnp.float32)


def start(solver: Solver, noise: jax.Array) -> tuple[jax.Array, ...]:
  """What the solver keeps before its first step: the sample, which is noise, and no past."""
  past = solver.weights.shape[1] - 1
  return (noise, *(jnp.zeros_like(noise),) * past)


def advance(kept: tuple[jax.Array, ...], velocity, weights) -> tuple[jax.Array, ...]:
  """What the solver keeps after a step of the given weights, [m, m + 1]."""
  parts = (*kept, velocity)
  after = []
  for i in range(len(kept)):
    terms = [weights[i, j] * part for j, part in enumerate(parts)]
    after.append(sum(terms))
  return tuple(after)


def _unipc_predict(sigmas, alphas, lambdas, i, order):
  """Weights of (corrected sample, x0, x0 of the step before) in the next sample."""
  keep = sigmas[i + 1] / sigmas[i]
  if sigmas[i + 1] == 0:
    return keep, 1.0, 0.0  # The limit: the clean sample is x0.
  h = lambdas[i + 1] - lambdas[i]
  gain = -alphas[i + 1] * np.expm1(-h)
  weights = np.array([keep, gain, 0.0])
  if order == 2:
    # x0 goes on as it went in the step before, which was -r times as long.
    r = (lambdas[i - 1] - lambdas[i]) / h
    change = gain * 0.5 / r
    weights += [0, -change, change]
  return weights


def _unipc_correct(sigmas, alphas, lambdas, i, order):
  """Weights of (sample, last corrected sample, x0, x0 one and two steps before) in the corrected
  sample.
  """
  h = lambdas[i] - lambdas[i - 1]
  phi1 = np.expm1(-h)
  gain = -alphas[i] * phi1
  keep = sigmas[i] / sigmas[i - 1]
  weights = np.array([0, keep, 0, gain, 0])
  newer = np.array([0, 0, 1, -1, 0])
  if order == 1:
    return weights + gain * 0.5 * newer

  # Two differences of x0, with the weights that make the update exact to order 2.
  r = (lambdas[i - 2] - lambdas[i - 1]) / h
  older = np.array([0, 0, 0, -1, 1]) / r
  phi2 = phi1 / -h - 1
  phi3 = phi2 / -h - 0.5
  wanted = [phi2 / phi1, 2 * phi3 / phi1]
  rho_older, rho_newer = np.linalg.solve([[1, 1], [r, 1]], wanted)
  return weights + gain * (rho_older * older + rho_newer * newer)
