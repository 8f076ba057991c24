"""One chunk takes over from another, step by step."""

from __future__ import annotations

import numpy as np

from wam_jax.client import plan as plan_lib


def make_plan(steps, value=0.0):
  plan = plan_lib.Plan()
  plan.adopt(np.full((len(steps), 1), value), start=steps[0], now=steps[0])
  return plan


def take_all(plan, steps):
  return [float(plan.take(step)[0]) for step in steps]


def test_what_comes_too_late_is_left_out():
  plan = make_plan(range(4))
  plan.adopt(np.arange(8.0)[:, None], start=2, now=5)
  assert 4 not in plan
  assert take_all(plan, range(5, 10)) == [3, 4, 5, 6, 7]
  assert 10 not in plan


def test_a_new_chunk_is_blended_in_over_what_both_have():
  plan = make_plan(range(8))
  plan.adopt(np.ones((8, 1)), start=2, now=3, blends=True)
  # Steps 3 to 7 are of both, 8 and 9 of the new one alone.
  want = [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1]
  np.testing.assert_allclose(take_all(plan, range(3, 10)), want)


def test_what_is_planned_next_ends_where_the_plan_does():
  plan = make_plan(range(2, 5), 7.0)
  assert [float(x[0]) for x in plan.list_next(3, 4)] == [7.0, 7.0]
  assert plan.list_next(5, 2) == []
