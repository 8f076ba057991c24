"""Weights in the dtype of the model: fewer bytes on the device, and nothing else changes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax.control import agent as agent_lib
from wam_jax.control import policy as policy_lib
from wam_jax.control import weights
from wam_jax.evaluation import approximation

HALF = dataclasses.replace(test_policy.MODEL, dtype='bfloat16')


def act_once(brain, params):
  """Actions and latents of the first call."""
  frozen = test_policy.fitted()
  frame = test_policy.FRAMES[:, 0]
  state = brain.reset(params, frozen, test_policy.TASK, frame, jax.random.key(0))
  outputs = []
  for call in range(1):
    action, latents, state = brain.step(params, frozen, state, test_policy.observe(call))
    outputs += [action, latents]
  return outputs


def test_halves_act_as_their_float32_bit_for_bit():
  wide = test_policy.random_params()
  narrow = weights.narrow(wide, HALF)
  brain = policy_lib.Policy(HALF, test_policy.JOINT, cfg.FlowConfig())
  for got, want in zip(act_once(brain, narrow), act_once(brain, wide), strict=True):
    np.testing.assert_array_equal(got, want)


def test_bytes_on_the_device_are_half_but_for_norms_and_words():
  wide = test_policy.random_params()
  placed = jax.device_put(weights.narrow(wide, HALF))
  kept = [wide['text_encoder'], wide['blocks']['norm3']]
  count = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  assert count(placed) == (count(wide) + count(kept)) / 2
  assert placed['blocks']['norm3']['scale'].dtype == jnp.float32
  # A model that computes in float32 keeps what it has.
  same = weights.narrow(wide, test_policy.MODEL)
  assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(wide), strict=True))


def test_the_two_policies_of_a_comparison_have_one_copy_of_the_weights():
  config = cfg.TrainConfig(model=HALF, sample=test_policy.FLASH)
  compared = approximation.ComparedPolicy(config, test_policy.random_params(), test_policy.fitted())
  one, other = (p._policy for p in (compared, compared._exact))
  pairs = zip(*(jax.tree.leaves((p.params, p.frozen)) for p in (one, other)), strict=True)
  assert all(a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer() for a, b in pairs)


@pytest.mark.slow
def test_a_policy_that_is_compared_acts_where_another_would():
  sample = dataclasses.replace(test_policy.FLASH, action_steps=2, approximate_kept_video=True)
  config = cfg.TrainConfig(model=test_policy.MODEL, sample=sample)
  compared = approximation.ComparedPolicy(config, test_policy.random_params(), test_policy.fitted())
  alone = agent_lib.TimedPolicy(config, test_policy.random_params(), test_policy.fitted())
  acted = []
  for policy in (compared, alone):
    policy.reset(test_policy.TASK, test_policy.FRAMES[:, 0], 0)
    acted.append(policy.step(test_policy.observe(0), None)[0])
  np.testing.assert_array_equal(*acted)
  assert compared.summarize()
