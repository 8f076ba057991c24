"""Weights that are replaced while robots act."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest

from tests import weights
from tests.control import test_engine
from wam_jax.control import generations as generations_lib

DISC = 'tabletop_disc'


@pytest.fixture(scope='module')
def engine():
  return test_engine.make_engine(together=2)


@pytest.fixture(scope='module')
def others():
  """Other weights of the same model."""
  return weights.draw_params(test_engine.MODEL, seed=7)


def test_an_episode_ends_with_the_weights_that_it_began_with(engine, others):
  old = list(test_engine.play(engine, DISC, 'go', 0))
  new = list(test_engine.play(engine.renew(others, engine.robots), DISC, 'go', 0))
  assert np.abs(old[0] - new[0]).max() > 1e-3

  one = generations_lib.Generations(engine, 3)
  before = test_engine.play(one, DISC, 'go', 0)
  got = [next(before)]
  one.replace(others, engine.robots, 5)
  after = test_engine.play(one, DISC, 'go', 0)
  together = [(next(before), next(after)) for _ in range(2)]
  np.testing.assert_array_equal([*got, *(pair[0] for pair in together)], old)
  np.testing.assert_array_equal([*(pair[1] for pair in together), next(after)], new)
  assert one.traces == 1


def test_sessions_of_both_are_computed_by_one_call(engine, others):
  one = generations_lib.Generations(engine, 3)
  episodes = [test_engine.take_turns(one, DISC, 'go', 0)]
  given = [next(episodes[0])]
  one.replace(others, engine.robots, 5)
  episodes += [test_engine.take_turns(one, DISC, 'go', 0) for _ in range(2)]
  given += [next(episode) for episode in episodes[1:]]
  acts = one.act([given[1], given[0], given[2]])
  assert [acted.checkpoint_step for acted in acts] == [5, 3, 5]
  old, *new = [acted.action_SU for acted in acts][1::-1]
  assert np.abs(old - new[0]).max() > 1e-3
  alone = next(test_engine.play(engine, DISC, 'go', 0))
  np.testing.assert_array_equal(old, alone)


def test_old_weights_leave_with_the_last_that_needs_them(engine, others):
  first = weights.draw_params(test_engine.MODEL, seed=8)
  one = generations_lib.Generations(engine.renew(first, engine.robots), 3)
  weight_bytes = one.newest.weight_bytes
  episode = test_engine.take_turns(one, DISC, 'go', 0)
  turn = next(episode)
  sizes = [count_bytes()]
  one.replace(others, one.robots, 5)
  sizes.append(count_bytes())
  episode.send(one.act([turn])[0])
  sizes.append(count_bytes())
  episode.close()
  del turn, episode
  sizes.append(count_bytes())
  assert sizes[1] - sizes[0] == weight_bytes
  # Beside what the chunk left.
  assert abs(sizes[2] - sizes[1]) < weight_bytes / 10
  assert sizes[1] - sizes[3] > 0.9 * weight_bytes


def count_bytes() -> int:
  gc.collect()
  return sum(array.nbytes for array in jax.live_arrays())


def test_weights_that_do_not_fit_are_refused(engine, others):
  one = generations_lib.Generations(engine, 3)
  with pytest.raises(ValueError, match='for robots with other names or records'):
    one.replace(others, {DISC: engine.robots[DISC]}, 5)
  wider = jax.tree.map(lambda x: np.concatenate([x, x], -1) if x.ndim > 1 else x, others)
  with pytest.raises(ValueError, match='have other shapes than what is compiled takes'):
    one.replace(wider, engine.robots, 5)
  assert one.newest is engine
