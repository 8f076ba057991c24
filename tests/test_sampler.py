"""Solvers against the official schedulers' trajectories (tests/golden) and against closed forms."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from wam_jax import config as cfg
from wam_jax import flow
from wam_jax import sampler

RELEASED_STEPS = (0, 1, 2, 6, 10, 13, 14, 15)


def replay(solver, noise, velocities):
  """Samples before each evaluation and after the last, with the given velocities."""
  kept = sampler.start(solver, noise)
  samples = [noise]
  for velocity, weights in zip(velocities, solver.weights, strict=True):
    kept = sampler.advance(kept, velocity, weights)
    samples.append(kept[0])
  return np.stack(samples)


def denoise(velocity, noise_video, noise_action, solvers):
  """(video, action) after all steps."""
  kept = tuple(sampler.start(*one) for one in zip(solvers, (noise_video, noise_action)))
  (video, *_), (action, *_) = sampler.denoise(velocity, kept, solvers)
  return video, action


def runs(golden, prefix):
  """Per run of a scheduler's file: its configuration and arrays."""
  for run in sorted({name.split('/')[0] for name in golden.below(prefix)}):
    arrays = golden.below(f'{prefix}{run}/')
    yield json.loads(str(arrays.pop('config_json'))), arrays


def test_golden_unipc(golden_flow_unipc_scheduler, request):
  for config, given in runs(golden_flow_unipc_scheduler, 'run'):
    assert (config['solver_order'], config['solver_type']) == (2, 'bh2')
    assert config['predict_x0']
    assert config['lower_order_final']
    check = functools.partial(parity.check_scheduler, request, 'UniPC', given)
    largest = flow.warp(sampler.LARGEST_UNIPC, config['constructor_shift'])
    check('sigma_max_min', [largest, 0])
    final = config.get('video_final_noise', 0.0)
    sigmas = sampler.sampling_sigmas(config['steps'], config['shift'], largest, final)
    check('sigmas', sigmas)
    parity.check(request, 'UniPC timesteps', sampler.timesteps(sigmas[:-1]), given['timesteps'])
    check('trajectory', replay(sampler.unipc(sigmas), given['trajectory'][0], given['velocities']))


def test_golden_euler(golden_flow_match_scheduler, request):
  for config, given in runs(golden_flow_match_scheduler, 'euler'):
    check = functools.partial(parity.check_scheduler, request, 'Euler', given)
    sigmas = flow.schedule(
      levels=config['num_inference_steps'],
      shift=config['shift'],
      smallest=config['sigma_min'],
      drop_last=config['extra_one_step'],
    )
    check('sigmas', sigmas)
    check('timesteps', 1000 * sigmas)
    solver = sampler.euler(np.append(sigmas, 0.0))
    check('trajectory', replay(solver, given['trajectory'][0], given['velocities']))


def test_sampling_levels_are_those_of_training():
  want = np.append(flow.schedule(16, 5.0), 0.0)
  np.testing.assert_allclose(sampler.sampling_sigmas(16, 5.0), want, rtol=1e-6)


@pytest.mark.parametrize('solver', ['euler', 'unipc'])
@pytest.mark.parametrize('steps', [1, 2, 4])
def test_straight_flow_ends_at_the_clean_sample(solver, steps):
  """With the exact velocity to one clean point, any number of steps lands on it."""
  clean_video, clean_action = np.float32([0.3, -1.2]), np.float32([2.0])
  # From x = clean + sigma * (noise - clean).
  velocity = lambda v, sv, a, sa: ((v - clean_video) / sv, (a - clean_action) / sa)
  solvers = sampler.make_solvers(cfg.SampleConfig(solver=solver, steps=steps))
  video, action = denoise(velocity, jnp.float32([1, 1]), jnp.float32([-1]), solvers)
  np.testing.assert_allclose(video, clean_video, atol=1e-5)
  np.testing.assert_allclose(action, clean_action, atol=1e-5)


@pytest.mark.parametrize('solver', ['euler', 'unipc'])
def test_flash_stops_the_video_early_and_shows_what_it_predicts(solver):
  """The network meets the levels down to the final one; the result is clean all the same."""
  config = cfg.SampleConfig(mode='flash', solver=solver, steps=3, shift=1.0, video_final_sigma=0.7)
  video, action = sampler.make_solvers(config)
  np.testing.assert_allclose(video.told, [1.0, 0.9, 0.8], atol=1e-3)
  np.testing.assert_allclose(action.told, [1.0, 2 / 3, 1 / 3], atol=1e-3)
  # Towards a video of 2 and an action of 5.
  velocity = lambda v, sv, a, sa: ((v - 2.0) / sv, (a - 5.0) / sa)
  got_video, got_action = denoise(velocity, jnp.float32(1), jnp.float32(1), (video, action))
  np.testing.assert_allclose(got_video, 2.0, rtol=1e-5)
  np.testing.assert_allclose(got_action, 5.0, rtol=1e-5)


def test_actions_alone_have_their_own_steps_and_shift():
  """Held video is sampled at shift 1, whatever the shift of the video."""
  config = cfg.SampleConfig(mode='flash', steps=1, action_steps=4, shift=5.0)
  video, action = sampler.make_solvers(config)
  np.testing.assert_allclose(video.told, [1.0])
  np.testing.assert_allclose(action.sigmas, [1, 0.75, 0.5, 0.25, 0])
  _, action = sampler.make_solvers(cfg.SampleConfig(mode='act_only', steps=2, action_shift=3.0))
  np.testing.assert_allclose(action.sigmas, [1, 0.75, 0])


def test_steps_one_after_the_other_are_all_of_them():
  """A loop cut in two is the loop."""
  _, action = sampler.make_solvers(cfg.SampleConfig(solver='unipc', mode='act_only', steps=5))
  velocity = lambda a, sigma: jnp.sin(3 * a) + sigma
  kept = sampler.start(action, jnp.float32([0.5, -1]))
  whole = sampler.denoise_alone(velocity, kept, action)
  first = sampler.denoise_alone(velocity, kept, action, slice(2))
  cut = sampler.denoise_alone(velocity, first, action, slice(2, None))
  np.testing.assert_allclose(cut[0], whole[0], rtol=1e-6)
  np.testing.assert_array_equal(sampler.denoise_alone(velocity, kept, action, slice(0))[0], kept[0])


def test_a_level_that_the_solver_cannot_end_at_is_refused():
  held = cfg.SampleConfig(mode='flash', solver='unipc', video_final_sigma=1.0)
  with pytest.raises(ValueError, match="must be below 0.9998, where sample.solver='unipc' starts"):
    sampler.make_solvers(held)


@pytest.mark.parametrize('solver', ['euler', 'unipc'])
@pytest.mark.parametrize('evaluate', [RELEASED_STEPS, (0,)], ids=['released', 'first'])
def test_skipped_steps_use_the_last_velocity(solver, evaluate):
  """The network runs once per evaluated step, and the samples there are those of all steps with
  velocities repeated.
  """
  rng = np.random.default_rng(0)
  every = cfg.SampleConfig(solver=solver, steps=16)
  some = cfg.SampleConfig(solver=solver, steps=16, evaluate_steps=evaluate)
  all_steps, _ = sampler.make_solvers(every)
  some_steps, _ = sampler.make_solvers(some)
  velocities = rng.normal(size=(len(evaluate), 5)).astype(np.float32)
  noise = rng.normal(size=5).astype(np.float32)
  # Each of the 16 steps has the velocity of the last evaluated step up to it.
  repeated = velocities[np.searchsorted(evaluate, np.arange(16), side='right') - 1]
  want = replay(all_steps, noise, repeated)[[*evaluate, 16]]
  # Float32, sums in another order.
  np.testing.assert_allclose(replay(some_steps, noise, velocities), want, atol=1e-5)
  np.testing.assert_array_equal(some_steps.sigmas, all_steps.sigmas[[*evaluate, 16]])
  np.testing.assert_array_equal(some_steps.told, all_steps.told[list(evaluate)])


def test_integer_timesteps_change_what_the_network_is_told_only():
  unipc = cfg.SampleConfig(solver='unipc', steps=4)
  plain, _ = sampler.make_solvers(unipc)
  told, _ = sampler.make_solvers(dataclasses.replace(unipc, integer_timesteps=True))
  np.testing.assert_array_equal(told.told, np.array([999, 937, 833, 624]) / 1000)
  np.testing.assert_array_equal(told.weights, plain.weights)
  np.testing.assert_array_equal(plain.told, plain.sigmas[:-1])


def test_skipped_steps_do_not_run_the_network():
  """One trace of a loop over the evaluated steps, whatever the number of steps."""
  traces, calls = [], []

  def velocity(noisy_video, sigma_video, noisy_action, sigma_action):
    traces.append(None)
    # Runs at every evaluation, not at tracing alone.
    jax.debug.callback(calls.append, sigma_video)
    return noisy_video, noisy_action

  config = cfg.SampleConfig(solver='unipc', steps=16, evaluate_steps=RELEASED_STEPS)
  solvers = sampler.make_solvers(config)
  run = jax.jit(lambda x: denoise(velocity, x, x, solvers))
  jax.block_until_ready(run(jnp.zeros(2)))
  jax.effects_barrier()
  assert len(traces) == 1
  # Callbacks may arrive in any order.
  np.testing.assert_allclose(np.sort(calls)[::-1], solvers[0].told, rtol=1e-6)


def test_guidance_moves_away_from_the_negative_prompt():
  # negative + 5 * (positive - negative).
  positive = np.float32([1, 2])
  negative = np.float32([0, 3])
  np.testing.assert_allclose(sampler.guide(positive, negative, 5.0), [5, -2])
  np.testing.assert_allclose(sampler.guide(positive, negative, 1.0), [1, 2])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      dict(steps=16, evaluate_steps=(1, 2)),
      r'evaluate_steps=\(1, 2\) must start at 0.*nearest valid: \(0, 1, 2\)',
    ),
    (
      dict(steps=4, evaluate_steps=(0, 2, 2, 7)),
      r'stay below sample.steps=4; nearest valid: \(0, 2\)',
    ),
    (dict(guidance_scale=0.5), 'guidance_scale=0.5 must be at least 1'),
    (dict(guidance_scale=float('nan')), 'guidance_scale=nan must be at least 1'),
    (dict(observed='window'), "sample.observed='window' must be one of"),
  ],
)
def test_wrong_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    cfg.SampleConfig(**changes)


@pytest.mark.parametrize('solver', ['euler', 'unipc'])
def test_cosine_rule_runs_the_network_where_the_official_loop_does(solver):
  """Against the loop written out with its countdown, on velocities that turn slowly, then fast."""
  solvers = sampler.make_solvers(cfg.SampleConfig(solver=solver, steps=16, reuse='cosine'))
  video_solver, action_solver = solvers
  angle = lambda sigma: 4 * sigma

  def velocity(video, sigma_video, action, sigma_action):
    turned = jnp.stack([jnp.cos(angle(sigma_video)), jnp.sin(angle(sigma_video))])
    return turned[None] + 0 * video, action * sigma_action

  def official():
    kept = [sampler.start(video_solver, VIDEO), sampler.start(action_solver, ACTION)]
    evaluated, flows, countdown = [], [], 0
    for i in range(16):
      runs = i < 2
      if not runs and countdown > 1:
        countdown -= 1
      elif not runs and countdown == 1:
        countdown = 0
        runs = True
      elif not runs:
        a, b = np.ravel(flows[-1][0]), np.ravel(flows[-2][0])
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        countdown = 4 if cosine > 0.95 else 2 if cosine > 0.93 else 0
        runs = countdown == 0
      if runs:
        told = video_solver.told[i], action_solver.told[i]
        flows.append(velocity(kept[0][0], told[0], kept[1][0], told[1]))
        evaluated.append(i)
      for j, one in enumerate(solvers):
        kept[j] = sampler.advance(kept[j], flows[-1][j], one.weights[i])
    return evaluated, kept[0][0], kept[1][0]

  evaluated, video, action = official()
  start = (sampler.start(video_solver, VIDEO), sampler.start(action_solver, ACTION))
  given = sampler.Progress(jnp.int32(0), start, jnp.zeros_like(VIDEO), jnp.int32(0))
  run = jax.jit(lambda progress: sampler.denoise_by_similarity(velocity, progress, solvers))
  done = run(given)
  assert int(done.evaluations) == len(evaluated) < 16
  assert evaluated == [0, 1, 6, 9, 10, 15]  # Four steps, two and none are passed over.
  np.testing.assert_allclose(done.kept[0][0], video, atol=1e-5)
  np.testing.assert_allclose(done.kept[1][0], action, atol=1e-5)


VIDEO = jnp.float32([[0.3, -0.4]])
ACTION = jnp.float32([[1.0, 2.0]])


def test_flags_take_along_the_steps_of_what_they_replace():
  released = cfg.SampleConfig(solver='unipc', steps=16, evaluate_steps=RELEASED_STEPS)
  flash = cfg.SampleConfig(mode='flash', steps=1, action_steps=4)
  assert cfg.override_sampling(released, {'mode': None, 'guidance_scale': 5.0}) == (
    dataclasses.replace(released, guidance_scale=5.0)
  )
  assert cfg.override_sampling(released, {'steps': 4}).evaluate_steps == ()
  assert cfg.override_sampling(released, {'steps': 4, 'evaluate_steps': (0, 2)}).evaluate_steps == (
    (0, 2)
  )
  assert cfg.override_sampling(released, {'mode': 'act_only'}).evaluate_steps == ()
  assert cfg.override_sampling(flash, {'mode': 'joint'}).action_steps == 0
  assert cfg.override_sampling(flash, {'mode': 'act_only'}).action_steps == 4
