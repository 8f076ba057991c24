"""Chunks that begin with actions that the robot is committed to: equal to training's view of the
same window with these actions clean, whatever the way of sampling; one program for every length.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import weights
from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax import types
from wam_jax.control import policy as policy_lib
from wam_jax.models import wam

B, Q, U, D = test_policy.B, test_policy.Q, test_policy.U, 2
MODEL = dataclasses.replace(test_policy.MODEL, action_overlap=D, video_sees='video')
A = MODEL.action_horizon
FLOW = cfg.FlowConfig(video_hidden=0.2)
MASK_BAU = np.ones((B, A, U), bool)
# Robot 1 has fewer steps and dimensions.
MASK_BAU[1, -1:] = False
MASK_BAU[1, :, -1:] = False
TASK = test_policy.TASK.replace(action_mask_BAU=MASK_BAU)
# Of each call, what the robots are committed to; how much of it, they tell apart.
GIVEN_QBDU = np.random.default_rng(3).uniform(-1, 1, (Q, B, D, U)).astype(np.float32)
LENGTH_QB = np.int32([[0, 2], [1, 2]])
SAMPLES = {
  'joint': cfg.SampleConfig(steps=2),
  'unipc': cfg.SampleConfig(steps=3, solver='unipc'),
  'kept video': cfg.SampleConfig(mode='flash', steps=1, action_steps=2),
  'act_only': cfg.SampleConfig(mode='act_only', steps=2),
}


@functools.cache
def params():
  return weights.draw_params(MODEL, seed=2)


@functools.cache
def policy(name, model=MODEL):
  return policy_lib.Policy(model, SAMPLES[name], FLOW)


def make_prefix(call, length_B=None):
  length_B = LENGTH_QB[call] if length_B is None else np.int32(length_B)
  return types.Prefix(action_BDU=GIVEN_QBDU[call], length_B=length_B)


def act_all(name, prefixes, noises=None):
  """(actions, latents) of calls with these prefixes."""
  one = policy(name)
  state = one.reset(
    params(), test_policy.fitted(), TASK, test_policy.FRAMES[:, 0], jax.random.key(0)
  )
  outputs = []
  for call, prefix in enumerate(prefixes):
    *output, state = one.step(
      params(),
      test_policy.fitted(),
      state,
      test_policy.observe(call),
      noise=noises[call] if noises else None,
      prefix=prefix,
    )
    outputs.append(output)
  return outputs


def make_noises():
  rng = np.random.default_rng(4)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return [(draw(B, 1, 4, 2, 6), draw(B, A, U)) for _ in range(Q)]


def run_without_cache(name, noises):
  """(actions, video) of all chunks by Euler steps of the whole window, as training sees it: of each
  chunk the first actions are clean, at noise level 0, at every step.
  """
  one = policy(name)
  mask = np.tile(MASK_BAU, (1, Q, 1))
  clean = test_policy.fitted().encode(test_policy.FRAMES[:, : 1 + (Q - 1) * test_policy.r])
  given = np.zeros((B, Q, A, U), np.float32)
  given[:, :, :D] = GIVEN_QBDU.transpose(1, 0, 2, 3)
  given = given.reshape(B, Q * A, U) * mask
  is_given = (np.arange(A) < LENGTH_QB.T[..., None]).reshape(B, Q * A)
  body = types.Body(
    proprio_BSX=test_policy.PROPRIO[:, :Q],
    embodiment_B=test_policy.EMBODIMENT_B,
    valid_BA=mask.any(-1),
  )

  @jax.jit
  def velocities(params, video, sigma_video, action, sigma_action):
    noisy = types.Noisy(
      video_BFHWC=video,
      sigma_video_BF=jnp.full((B, Q), sigma_video),
      video_seen_BF=np.zeros((B, Q), bool) if name == 'act_only' else None,
      action_BAU=jnp.where(is_given[..., None], given, action * mask),
      sigma_action_BA=jnp.where(is_given, 0.0, sigma_action),
    )
    run = lambda m: m(clean, noisy, body, m.encode_text(test_policy.PROMPT_BP))
    return nn.apply(run, wam.WorldActionModel(MODEL))({'params': params})

  video, action = (np.concatenate(parts, 1) for parts in zip(*noises))
  video_levels, action_levels = (solver.sigmas for solver in one.solvers)
  for step in range(len(action_levels) - 1):
    # Kept video and no video stay at noise.
    moves = name == 'joint'
    sigma_video = video_levels[step] if moves else 1.0
    velocity_video, velocity_action = velocities(
      params(), video, sigma_video, action, action_levels[step]
    )
    if moves:
      video = video + (video_levels[step + 1] - sigma_video) * velocity_video
    action = action + (action_levels[step + 1] - action_levels[step]) * velocity_action
  if name == 'kept video':
    video = video - velocity_video
  return np.where(is_given[..., None], given, action * mask), video


@pytest.mark.parametrize(
  'name',
  [
    'joint',
    pytest.param('kept video', marks=pytest.mark.slow),
    pytest.param('act_only', marks=pytest.mark.slow),
  ],
)
def test_with_the_cache_equals_without(name):
  """Of robots that are committed to different numbers of steps, chunk after chunk."""
  noises = make_noises()
  outputs = act_all(name, [make_prefix(call) for call in range(Q)], noises)
  want_action, want_video = run_without_cache(name, noises)
  actions, videos = zip(*outputs)
  # Float32, sums in another order.
  np.testing.assert_allclose(np.concatenate(actions, 1), want_action, atol=1e-5)
  if name != 'act_only':
    np.testing.assert_allclose(np.concatenate(videos, 1), want_video, atol=1e-5)
  # One program whatever a robot is committed to, also to nothing.
  act_all(name, [None, make_prefix(1, [2, 0])], noises)
  assert policy(name).traces == 1
  assert policy(name).traced['act'] == 1


def test_what_robots_are_committed_to_comes_back_and_decides_the_rest():
  noises = make_noises()
  first, second = act_all('joint', [make_prefix(call) for call in range(Q)], noises)
  for (actions, _), call in ((first, 0), (second, 1)):
    for robot in range(B):
      length = LENGTH_QB[call, robot]
      # Dimensions that robot 1 lacks are 0 like its other actions.
      want = GIVEN_QBDU[call, robot] * MASK_BAU[robot, :D]
      np.testing.assert_array_equal(actions[robot, :length], want[:length])

  # What lies beyond the length is not looked at.
  other = make_prefix(1)
  beyond = np.arange(D)[None, :, None] >= LENGTH_QB[1][:, None, None]
  other = other.replace(action_BDU=np.where(beyond, np.float32(9), other.action_BDU))
  (again,) = act_all('joint', [make_prefix(0), other], noises)[1:]
  np.testing.assert_array_equal(again[0], second[0])

  # And of what lies before, the other actions know; those of robots that wait, nothing.
  shifted = make_prefix(0).replace(action_BDU=GIVEN_QBDU[0] + 0.5)
  (moved, _), *_ = act_all('joint', [shifted], noises)
  np.testing.assert_array_equal(moved[0], first[0][0])
  assert np.abs(moved[1, D : A - 1, : U - 1] - first[0][1, D : A - 1, : U - 1]).max() > 1e-3


@pytest.mark.slow
def test_other_solvers_are_told_of_clean_actions_at_every_step():
  """UniPC keeps what it saw before: no commitment may leak by that into other actions."""
  noises = make_noises()
  (plain, _), *_ = act_all('unipc', [make_prefix(0)], noises)
  swapped = [(video, action.copy()) for video, action in noises]
  # The noise in place of committed actions is never seen.
  swapped[0][1][1, : LENGTH_QB[0, 1]] = 7.0
  (again, _), *_ = act_all('unipc', [make_prefix(0)], swapped)
  np.testing.assert_array_equal(again, plain)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(length_B=np.int32([0, 3])), r'\[0, 3\] is more than the model.action_overlap=2 steps'),
    (dict(length_B=np.int32([-1, 0])), 'whole numbers from 0 on'),
    (dict(length_B=np.float32([0, 1])), 'whole numbers from 0 on'),
    (dict(action_BDU=GIVEN_QBDU[0, :, :1]), r'shape \(2, 1, 3\).*expected \(2, 2, 3\)'),
    (dict(action_BDU=np.full((B, D, U), np.nan, np.float32)), 'action_BDU is not finite'),
  ],
)
def test_a_commitment_that_the_weights_do_not_know_is_refused(change, message):
  """Before anything runs: the state is as it was."""
  one = policy('joint')
  state = one.reset(
    params(), test_policy.fitted(), TASK, test_policy.FRAMES[:, 0], jax.random.key(0)
  )
  bad = make_prefix(0).replace(**change)
  step = functools.partial(one.step, params(), test_policy.fitted(), state, test_policy.observe(0))
  with pytest.raises(ValueError, match=message):
    step(prefix=bad)
  assert np.isfinite(step()[0]).all()


def test_weights_without_an_overlap_take_no_commitment():
  one = policy_lib.Policy(test_policy.MODEL, SAMPLES['joint'], FLOW)
  task = test_policy.TASK
  state = one.reset(
    params(), test_policy.fitted(), task, test_policy.FRAMES[:, 0], jax.random.key(0)
  )
  with pytest.raises(ValueError, match='were trained without one: model.action_overlap=0'):
    one.step(params(), test_policy.fitted(), state, test_policy.observe(0), prefix=make_prefix(0))
