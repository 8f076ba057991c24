"""A cache whose axes lie in another order: the same policy, in place, compiled once."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.control import test_policy
from wam_jax import config as cfg
from wam_jax.control import apart
from wam_jax.control import places
from wam_jax.control import policy as policy_lib
from wam_jax.control import quantize
from wam_jax.models import quantized

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


@pytest.mark.parametrize('precision', ['w8a8', 'fp8', 'int8'])
def test_kernels_of_bytes_lie_so_on_gpus_with_what_is_summed_over_innermost(precision):
  pytest.importorskip('qwix', reason="pip install -e '.[quant]'")
  scheme = quantize.SCHEMES[precision]
  w, b = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5), np.ones((2, 4, 5))
  kernel = apart.cut(quantize.quantize(w, b, scheme))[0]
  placed = jax.device_put(kernel, places.place_kernel(kernel, None, 'gpu'))
  order = placed.values.format.layout.major_to_minor
  assert order == ((1, 2, 0) if scheme.rounds_inputs else (0, 1, 2))
  np.testing.assert_array_equal(placed.values, kernel.values)
  np.testing.assert_array_equal(placed.scale, kernel.scale)
  x = np.ones((1, 2, 3), np.float32)
  product = lambda kernel: quantized.multiply('BTD,DNK->BNTK', x, kernel)
  np.testing.assert_array_equal(jax.jit(product)(placed), jax.jit(product)(kernel))


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
