"""Solvers against the official schedulers' trajectories (tests/golden) and against closed forms."""
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax import config as cfg
from wam_jax import sampler

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def replay(solver, start, velocities):
  """Samples before each step and after the last, with the given velocities."""
  carry, out = (start,) + (np.zeros_like(start),) * 3, [start]
  for i, v in enumerate(velocities):
    carry = sampler._advance(carry, v, solver.sigmas[i], solver.correct[i], solver.predict[i])
    out.append(carry[0])
  return np.stack(out)


@pytest.mark.parametrize('run', ['run0', 'run1', 'run2', 'run3'])
def test_unipc_golden(run):
  data = np.load(GOLDEN / 'flow_unipc_scheduler.npz')
  config = json.loads(str(data[f'{run}/config_json']))
  sigmas = sampler.sampling_sigmas(config['steps'], config['shift'], 0.999, config.get('video_final_noise', 0.0))
  np.testing.assert_allclose(sigmas, data[f'{run}/sigmas'], rtol=1e-5, atol=1e-7)
  solver = sampler.unipc(data[f'{run}/sigmas'].astype(np.float64))
  want = data[f'{run}/trajectory']
  np.testing.assert_allclose(replay(solver, want[0], data[f'{run}/velocities']), want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('run', ['euler0', 'euler1'])
def test_euler_golden(run):
  data = np.load(GOLDEN / 'flow_match_scheduler.npz')
  config = json.loads(str(data[f'{run}/config_json']))
  sigmas = sampler.sampling_sigmas(config['num_inference_steps'], config['shift'])
  np.testing.assert_allclose(sigmas[:-1], data[f'{run}/sigmas'], rtol=1e-5)
  want = data[f'{run}/trajectory']
  got = replay(sampler.euler(sigmas), want[0], data[f'{run}/velocities'])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('solver', ['euler', 'unipc'])
@pytest.mark.parametrize('steps', [1, 2, 4])
def test_straight_flow_ends_at_the_clean_sample(solver, steps):
  """With the exact velocity to one clean point, any number of steps lands on it."""
  clean = np.float32([0.3, -1.2]), np.float32([2.0])
  velocity = lambda v, sv, a, sa: ((v - clean[0]) / sv, (a - clean[1]) / sa)
  solvers = sampler.make_solvers(cfg.SampleConfig(solver=solver, steps=steps))
  got = sampler.denoise(velocity, jnp.float32([1, 1]), jnp.float32([-1]), *solvers)
  np.testing.assert_allclose(got[0], clean[0], atol=1e-5)
  np.testing.assert_allclose(got[1], clean[1], atol=1e-5)


def test_flash_leaves_the_video_at_its_final_level():
  video, action = sampler.make_solvers(cfg.SampleConfig(mode='flash', steps=1, video_final_sigma=0.6))
  np.testing.assert_allclose(video.sigmas, [1.0, 0.6], rtol=1e-6)
  np.testing.assert_allclose(action.sigmas, [1.0, 0.0])
  velocity = lambda v, sv, a, sa: ((v - 0.0) / sv, (a - 5.0) / sa)
  got_video, got_action = sampler.denoise(velocity, jnp.float32(1), jnp.float32(1), video, action)
  np.testing.assert_allclose(got_video, 0.6, rtol=1e-6)
  np.testing.assert_allclose(got_action, 5.0, rtol=1e-6)
