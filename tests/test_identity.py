"""The hash of weights does not depend on who holds which part, and on every bit else."""

from __future__ import annotations

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from wam_jax import identity

RNG = np.random.default_rng(0)
WHOLE = RNG.normal(size=(6, 5, 8)).astype(np.float32)


def sum_of(part: np.ndarray, starts) -> int:
  return identity.add_up(identity.Part('w', WHOLE.shape, starts, part))


@pytest.mark.parametrize('cuts', [*itertools.product((1, 2, 6), (1, 5), (1, 2, 4))])
def test_parts_add_up_to_the_whole(cuts):
  sizes = [n // count for n, count in zip(WHOLE.shape, cuts)]
  total = 0
  for starts in itertools.product(*map(range, [0] * 3, WHOLE.shape, sizes)):
    part = WHOLE[tuple(slice(start, start + size) for start, size in zip(starts, sizes))]
    total += sum_of(part, starts)
  assert total % 2**64 == sum_of(WHOLE, (0, 0, 0))


def test_blocks_larger_than_a_cache_are_one_array():
  long = RNG.normal(size=(3, 70_001)).astype(np.float16)
  parts = [(long[:, :5], 0), (long[:, 5:], 5)]
  add_up = lambda part, start: identity.add_up(identity.Part('w', long.shape, (0, start), part))
  assert sum(itertools.starmap(add_up, parts)) % 2**64 == add_up(long, 0)


def test_every_mesh_and_numpy_have_one_hash():
  tree = {
    'a': {'w': WHOLE[:4].copy(), 'b': np.float32(3)},
    'c': WHOLE[0, :, 0].astype(ml_dtypes.bfloat16),
  }
  want = identity.hash_arrays(tree)
  mesh = jax.make_mesh((4, 2), ('x', 'y'))
  for spec in [('x', None, 'y'), ('y',), (None, None, ('y', 'x')), ()]:
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    spread = {
      'a': {'w': jax.device_put(tree['a']['w'], split), 'b': tree['a']['b']},
      'c': tree['c'],
    }
    assert identity.hash_arrays(spread) == want


def test_any_difference_is_another_hash():
  bit = WHOLE.copy()
  bit.view(np.uint32)[3, 2, 1] ^= 1
  swapped = WHOLE.copy()
  swapped[0, 0, 0], swapped[5, 4, 7] = WHOLE[5, 4, 7], WHOLE[0, 0, 0]
  minus_zero = np.where(np.arange(8) == 2, np.float32(-0.0), np.float32(0))
  trees = [
    {'w': WHOLE},
    {'w': bit},
    {'w': swapped},
    {'v': WHOLE},
    {'w': WHOLE.reshape(5, 6, 8)},
    {'w': WHOLE.view(np.int32)},
    {'w': WHOLE, 'v': np.zeros(0, np.float32)},
    {'w': WHOLE, 'v': WHOLE},
    {'w': np.zeros(8, np.float32)},
    {'w': minus_zero},
  ]
  assert len({identity.hash_arrays(tree) for tree in trees}) == len(trees)
