"""A cache whose axes lie in another order: the same policy, in place, compiled once."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax.control import places
from wam_jax.control import policy as policy_lib

PARAMS = test_policy.random_params


def start(brain):
  frame = test_policy.FRAMES[:, 0]
  return brain.reset(PARAMS(), test_policy.fitted(), test_policy.TASK, frame, jax.random.key(0))


def live(brain, calls=5):
  """Actions of an episode with a new anchor in it, and the cache before and after each call."""
  state = start(brain)
  actions, caches = [], [state.memory.cache.k]
  for call in range(calls):
    observation = test_policy.observe(call)
    action, _, state = brain.step(PARAMS(), test_policy.fitted(), state, observation)
    actions.append(np.asarray(action))
    caches.append(state.memory.cache.k)
  return actions, caches


@pytest.mark.parametrize('order', [places.SLOTS_FIRST, places.SLOTS_BEFORE_HEADS])
def test_a_cache_that_lies_otherwise_stays_so_and_acts_the_same(order, monkeypatch):
  want, _ = live(policy_lib.Policy(test_policy.MODEL, test_policy.JOINT, cfg.FlowConfig()))
  monkeypatch.setattr(places, 'choose_order', lambda *_: order)
  brain = policy_lib.Policy(test_policy.MODEL, test_policy.JOINT, cfg.FlowConfig())
  got, caches = live(brain)
  for g, w in zip(got, want, strict=True):
    np.testing.assert_allclose(g, w, atol=2e-6)
  newest = caches[-1]
  assert newest.format.layout.major_to_minor == order
  assert all(cache.is_deleted() for cache in caches[:-1])  # Each took the place of the one before.
  assert brain.traces == 1
  # Nor was anything compiled again for arrays that lie otherwise.
  assert {name: p._cache_size() for name, p in brain.programs.items() if p._cache_size() > 1} == {}
