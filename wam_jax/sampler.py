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
  bounds = itertools.pairwise([*evaluate, len(solver.weights)])
  merged = [_merge(solver.weights[first:stop]) for first, stop in bounds]
  return Solver(
    sigmas=solver.sigmas[[*evaluate, -1]],
    told=solver.told[list(evaluate)],
    weights=np.stack(merged),
  )


def _merge(weights: np.ndarray) -> np.ndarray:
  """The weights of several steps that use one velocity, as those of one step."""
  velocity = np.eye(weights.shape[2])[-1:]
  total = weights[0]
  for row in weights[1:]:
    total = row @ np.concatenate([total, velocity])
  return total


def make_solvers(config: cfg.SampleConfig) -> tuple[Solver, Solver]:
  """(video, action) solvers. In 'flash' the video's levels stop at `video_final_sigma`; its last
  step goes on to the clean video that it predicts, which is what can be shown.

  Raises:
    ValueError: the solver cannot reach that level.
  """
  video_final = config.video_final_sigma if config.mode == 'flash' else 0.0
  video = _make_solver(config, config.steps, config.shift, video_final)
  if steps := config.steps_of_actions_alone:
    return video, _make_solver(config, steps, config.action_shift, 0.0)
  return video, _make_solver(config, config.steps, config.shift, 0.0)


def _make_solver(config: cfg.SampleConfig, steps: int, shift: float, final: float) -> Solver:
  if config.solver == 'euler':
    sigmas = sampling_sigmas(steps, shift, 1.0, final)
    solver = euler(_to_clean(sigmas))
  else:
    sigmas = sampling_sigmas(steps, shift, LARGEST_UNIPC, final)
    if final >= sigmas[0]:
      raise ValueError(
        f'sample.video_final_sigma={final} must be below {sigmas[0]:.4f}, where '
        "sample.solver='unipc' starts; use sample.solver='euler'."
      )
    solver = unipc(_to_clean(sigmas))
  if config.integer_timesteps:
    solver = solver._replace(told=timesteps(solver.sigmas[:-1]) / 1000)
  return skip(solver, config.evaluate_steps) if config.evaluate_steps else solver


def _to_clean(sigmas: np.ndarray) -> np.ndarray:
  """The levels with 0 for the last one: the network is not asked there, whatever it is."""
  return np.append(sigmas[:-1], 0.0)


def guide(velocity, negative_velocity, scale: float):
  """Velocity of a prompt moved away from that of another; `scale` 1 leaves it.

  Source: Ho and Salimans, arXiv 2207.12598.
  """
  return negative_velocity + scale * (velocity - negative_velocity)


def denoise(
  velocity_fn: VelocityFn,
  kept: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]],
  solvers: tuple[Solver, Solver],
  steps: slice = slice(None),
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
  """What the solvers of video and action keep after some of their steps.

  Args:
    velocity_fn: (noisy video, its sigma, noisy action, its sigma), sigmas scalar, to both
      velocities.
    kept: what they keep before them, from `start` on.
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

  each = jax.tree.map(lambda x: x[steps], tuple(_per_step(solver) for solver in solvers))
  kept, _ = jax.lax.scan(step, kept, each)
  return kept


class Progress(NamedTuple):
  """Where a solver stands that decides by itself where the network runs.

  Attributes:
    step: the next step.
    kept: what the solvers of video and action keep.
    velocity: that of the video at the last evaluation.
    evaluations: number of evaluations so far.
  """

  step: jax.Array
  kept: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
  velocity: jax.Array
  evaluations: jax.Array


def denoise_by_similarity(
  velocity_fn: VelocityFn, progress: Progress, solvers: tuple[Solver, Solver]
) -> Progress:
  """`progress` after all steps: where two evaluations in a row gave nearly the same velocity of the
  video, the last velocities are used again for some steps, in which the network does not run.

  Source: DreamZero policy head, `DYNAMIC_CACHE_SCHEDULE`.
  """
  steps = len(solvers[0].told)
  told = [jnp.asarray(solver.told, jnp.float32) for solver in solvers]
  tables = [jnp.asarray(_reuse(solver), jnp.float32) for solver in solvers]

  def run(progress: Progress) -> Progress:
    step, kept, last, evaluations = progress
    given = [(one[0], sigmas[step]) for one, sigmas in zip(kept, told)]
    velocities = velocity_fn(*given[0], *given[1])
    choice = jnp.where(step > 0, _choose_reuse(velocities[0], last), 0)
    video = advance(kept[0], velocities[0], tables[0][step, choice])
    action = advance(kept[1], velocities[1], tables[1][step, choice])
    after = step + 1 + jnp.asarray(_REUSED)[choice]
    return Progress(after, (video, action), velocities[0], evaluations + 1)

  return jax.lax.while_loop(lambda progress: progress.step < steps, run, progress)


# Steps that use the last velocities again, by the least similarity.
_REUSED = np.array([0, 2, 4], np.int32)
_SIMILAR = (0.93, 0.95)


def _choose_reuse(velocity: jax.Array, last: jax.Array) -> jax.Array:
  """Index of `_REUSED`, by the mean over samples of the cosine between two velocities."""
  a, b = (x.reshape(len(x), -1).astype(jnp.float32) for x in (velocity, last))
  norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
  cosine = jnp.mean(jnp.sum(a * b, axis=1) / jnp.maximum(norms, 1e-8))
  return jnp.sum(cosine > np.asarray(_SIMILAR, np.float32), dtype=jnp.int32)


def _reuse(solver: Solver) -> np.ndarray:
  """[n, 3, m, m + 1]: the weights of each step and of the steps after it that use its velocity."""
  rows = [
    [_merge(solver.weights[first : first + 1 + more]) for more in _REUSED]
    for first in range(len(solver.weights))
  ]
  return np.asarray(rows)


def denoise_alone(
  velocity_fn: Callable[[jax.Array, jax.Array], jax.Array],
  kept: tuple[jax.Array, ...],
  solver: Solver,
  steps: slice = slice(None),
) -> tuple[jax.Array, ...]:
  """What the solver keeps after some of its steps of one modality.

  Args:
    velocity_fn: (noisy sample, its sigma, scalar) to its velocity.
    kept: what it keeps before them, from `start` on.
  """

  def step(kept, now):
    sigma, weights = now
    return advance(kept, velocity_fn(kept[0], sigma), weights), None

  sigmas, weights = _per_step(solver)
  kept, _ = jax.lax.scan(step, kept, (sigmas[steps], weights[steps]))
  return kept


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
