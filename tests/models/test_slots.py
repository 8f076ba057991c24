"""Attention by numbers of keys is attention by a mask: of the function, and of a whole policy."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.control import test_policy
from wam_jax import sharding
from wam_jax.models import attention
from wam_jax.models import slots

B, N, K = 2, 2, 8
CLEAN, VIDEO, ACTIONS, STATES = 4, 4, 3, 1
PAST, SLOTS = 6, 16
VALID_BR = np.bool_([[True] * 4, [True, False, False, True]])


def draw(seed, tokens):
  return np.random.default_rng(seed).normal(size=(B, N, tokens, K)).astype(np.float32)


def by_mask(q, past, own, video_sees_actions, state_sees_chunk):
  """The same, with everything written out."""
  T = CLEAN + VIDEO + ACTIONS + STATES
  seen_BTS = np.zeros((B, T, PAST + T), bool)
  seen_BTS[:, :, :PAST] = True
  seen_BTS[:, :, PAST : PAST + CLEAN] = True
  chunk = slice(CLEAN, T)
  seen_BTS[:, chunk, PAST + CLEAN : PAST + CLEAN + VIDEO] = True
  seen_BTS[:, chunk, PAST + CLEAN + VIDEO :] = VALID_BR[:, None]
  if not video_sees_actions:
    seen_BTS[:, CLEAN : CLEAN + VIDEO, PAST + CLEAN + VIDEO :] = False
  if not state_sees_chunk:
    seen_BTS[:, -STATES:] = False
    seen_BTS[:, -STATES:, -STATES:] = True
  k, v = (np.concatenate([x[:, :, :PAST], y], 2) for x, y in zip(past, own))
  return attention.attend(q, k, v, seen_BTS[:, None])


RULES = list(itertools.product([True, False], repeat=2))


@pytest.mark.parametrize(
  'kernels, video_sees_actions, state_sees_chunk',
  # The interpreter of splash's is slow: once is enough.
  [('cudnn', *rules) for rules in RULES] + [('splash', True, False)],
)
def test_kernels_agree_with_a_mask(kernels, video_sees_actions, state_sees_chunk, monkeypatch):
  """cuDNN's without the kernels, splash interpreted: float32 on any device."""
  without_kernels = functools.partial(slots.attend_cudnn, implementation='xla')
  monkeypatch.setattr(slots, 'attend_cudnn', without_kernels)
  T = CLEAN + VIDEO + ACTIONS + STATES
  q, *own = (draw(seed, T) for seed in range(3))
  # What no frame has written yet is nobody's business.
  past = [np.where(np.arange(SLOTS)[:, None] < PAST, draw(seed, SLOTS), 1e3) for seed in (3, 4)]
  past = [x.astype(np.float32) for x in past]
  given = slots.Slots(
    clean=CLEAN,
    video=VIDEO,
    states=STATES,
    video_sees_actions=video_sees_actions,
    state_sees_chunk=state_sees_chunk,
    clean_at=jnp.int32(PAST),
    video_at=jnp.int32(PAST + CLEAN),
    register_at=jnp.int32(PAST + CLEAN + VIDEO),
    clean_sees=jnp.int32(PAST + CLEAN),
    chunk_sees=jnp.int32(PAST + CLEAN + VIDEO),
    valid_BR=VALID_BR,
  )
  run = jax.jit(functools.partial(slots.attend, kernels=kernels))
  got = run(q, tuple(past), tuple(own), given)
  want = by_mask(q, past, own, video_sees_actions, state_sees_chunk)
  np.testing.assert_allclose(got, want, atol=1e-5)  # Float32, sums in another order.


@pytest.mark.parametrize(
  'platform, dtype, head_dim, tokens, kernels',
  [
    ('gpu', 'bfloat16', 128, 64, 'cudnn'),
    ('gpu', 'float32', 128, 64, 'dense'),
    # Widths that cuDNN refuses, the second one before Hopper.
    ('gpu', 'bfloat16', 12, 64, 'dense'),
    ('gpu', 'bfloat16', 256, 64, 'dense'),
    ('tpu', 'bfloat16', 12, 4096, 'splash'),
    ('tpu', 'bfloat16', 128, 4095, 'dense'),
    ('cpu', 'bfloat16', 128, 4096, 'dense'),
  ],
)
def test_kernels_are_those_that_the_device_has(
  platform, dtype, head_dim, tokens, kernels, monkeypatch
):
  monkeypatch.setattr(sharding, 'platform', lambda: platform)
  assert slots.choose(jnp.dtype(dtype), head_dim, tokens) == kernels


def test_a_policy_by_slots_acts_as_one_by_masks(monkeypatch):
  """Through an anchor, chunks and the next anchor: one robot has padded actions."""
  sample = test_policy.JOINT
  observations = [test_policy.observe(call) for call in range(test_policy.Q + 1)]
  want = test_policy.act_all(test_policy.reset(sample), observations, sample)
  test_policy.policy.cache_clear()
  monkeypatch.setattr(slots, 'choose', lambda *_: 'cudnn')
  without_kernels = functools.partial(slots.attend_cudnn, implementation='xla')
  monkeypatch.setattr(slots, 'attend_cudnn', without_kernels)
  got = test_policy.act_all(test_policy.reset(sample), observations, sample)
  test_policy.policy.cache_clear()
  for of_slots, of_masks in zip(got, want):
    for g, w in zip(of_slots, of_masks):
      np.testing.assert_allclose(g, w, atol=1e-5)
