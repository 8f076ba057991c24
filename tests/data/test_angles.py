"""Angles that go around: their differences are the short way or are refused, never a turn off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import angles
from wam_jax.data import normalize
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib
from wam_jax.data import statistics

Slice = record_lib.Slice
AROUND = {'rad': (-np.pi, np.pi), 'deg': (0.0, 360.0)}


def make_record(unit='rad', wrap=(), width=1) -> record_lib.Embodiment:
  return dataclasses.replace(
    synthetic.CLOCK,
    state=(Slice('pose', 0, 1, 'm'), Slice('pose', 1, 1 + width, unit)),
    action=(
      Slice('target', 0, 1, 'm'),
      Slice('target', 1, 1 + width, unit, relative_to=f'pose:1:{1 + width}', wrap=wrap),
    ),
  )


def go_around(angles_TN, low, high) -> np.ndarray:
  return (low + np.mod(angles_TN - low, high - low)).astype(np.float32)


def compute(record, states, actions):
  computation = statistics.Computation(record)
  for i, (state_TX, action_TU) in enumerate(zip(states, actions)):
    starts = np.arange(len(state_TX) - record.steps_per_chunk)
    computation.add(state_TX, action_TU, starts, i)
  return computation


def make_episodes(unit, count=5, steps=60):
  """An angle about the seam of its numbers that turns by less than a tenth each step."""
  rng = np.random.default_rng(0)
  low, high = AROUND[unit]
  turn = high - low
  states, actions = [], []
  for _ in range(count):
    angle_T = high + turn * (0.1 * np.sin(np.arange(steps + 1) / 9) + rng.normal(0, 0.002))
    pose_TX = np.stack([np.sin(np.arange(steps + 1) / 7), go_around(angle_T, low, high)], 1)
    states.append(pose_TX[:-1].astype(np.float32))
    actions.append(pose_TX[1:].astype(np.float32))
  return states, actions


@pytest.mark.parametrize('unit', ['rad', 'deg'])
def test_differences_are_short_or_refused(unit):
  low, high = AROUND[unit]
  states, actions = make_episodes(unit)
  (problem,) = compute(make_record(unit), states, actions).list_unsafe(lambda i: f'record {i}')
  assert 'action target[1], counted from pose:1:2, goes around: from ' in problem
  assert f'"wrap": [{low:.6g}, {high:.6g}] in that slice' in problem
  assert 'record 0' in problem

  declared = make_record(unit, AROUND[unit])
  computation = compute(declared, states, actions)
  assert computation.list_unsafe(str) == []
  found = computation.finish('made')
  turn = high - low
  # Eight steps of the sine are at most 0.09 of a turn.
  assert -0.12 * turn < found.action.min[1] < -0.05 * turn
  assert 0.05 * turn < found.action.max[1] < 0.12 * turn


def test_a_seam_is_told_by_the_step_of_its_episode():
  """Also where chunks start late."""
  states, actions = make_episodes('rad', count=1)
  (state_TX,), (action_TU,) = states, actions
  record = make_record()
  computation = statistics.Computation(record)
  starts = np.arange(20, len(state_TX) - record.steps_per_chunk)
  computation.add(state_TX, action_TU, starts)
  steps = {}
  for part, rows in (('state', state_TX), ('action', action_TU)):
    steps[part] = 20 + int(np.abs(np.diff(rows[20:, 1])).argmax())
    assert computation.seams[part].first[1, 0][:2] == (0, steps[part])
  (problem,) = computation.list_unsafe(str)
  assert f'after step {steps["action"]} of 0' in problem


def test_a_command_comes_back_within_the_numbers():
  """What a robot is sent is the recorded target on both sides of the seam."""
  record = make_record('rad', AROUND['rad'])
  states, actions = make_episodes('rad')
  robot = robot_lib.Robot(0, record, compute(record, states, actions).finish('made'))
  S = record.steps_per_chunk
  for state_TX, action_TU in zip(states, actions):
    for start in range(len(state_TX) - S):
      chunk_QSU = action_TU[None, start : start + S]
      proprio_QX = state_TX[start : start + 1]
      relative_QSU = normalize.subtract_reference(record, chunk_QSU, proprio_QX)
      assert np.abs(relative_QSU[..., 1]).max() < 1
      # Not normalized, which would clip the ends.
      back = normalize.add_reference(record, relative_QSU, proprio_QX)
      np.testing.assert_allclose(back, chunk_QSU, atol=1e-5)
      middle = robot.normalize_action(relative_QSU[0], 2)
      sent_SU = robot.act(middle, proprio_QX[0])
      assert (np.abs(sent_SU[:, 1]) <= np.pi + 1e-6).all()
      gap = np.angle(np.exp(1j * (sent_SU[:, 1] - chunk_QSU[0, :, 1])))
      assert np.abs(gap).max() < 0.06  # The part beyond the quantiles.


def test_what_does_not_go_around_keeps_every_bit():
  record = make_record('rad')
  rng = np.random.default_rng(0)
  action_QSU = rng.normal(0, 3, (4, 8, 2)).astype(np.float32)
  proprio_QX = rng.normal(0, 3, (4, 2)).astype(np.float32)
  got = normalize.subtract_reference(record, action_QSU, proprio_QX)
  want = action_QSU.copy()
  want[..., 1] -= proprio_QX[:, None, 1]
  np.testing.assert_array_equal(got, want)
  back = normalize.add_reference(record, got, proprio_QX)
  np.testing.assert_allclose(back, action_QSU, atol=1e-6)


def test_an_absolute_angle_and_a_length_may_jump():
  states, actions = make_episodes('rad')
  absolute = dataclasses.replace(make_record(), action=(Slice('target', 0, 2, 'rad'),))
  assert compute(absolute, states, actions).list_unsafe(str) == []
  lengths = make_record('m')
  assert compute(lengths, states, actions).list_unsafe(str) == []


def euler_past_a_pole(t_T) -> np.ndarray:
  """Pitch swings through a quarter turn; named within a quarter, all three angles flip there."""
  pitch_T = np.pi / 2 + 0.3 * np.sin(t_T)
  over_T = pitch_T > np.pi / 2
  flip_T = np.where(over_T, np.pi, 0)
  angles_T3 = np.stack([0.2 + flip_T, np.where(over_T, np.pi - pitch_T, pitch_T), 0.4 + flip_T], 1)
  return go_around(angles_T3, -np.pi, np.pi)


def vector_past_half_a_turn(t_T) -> np.ndarray:
  """A rotation about one axis by about half a turn; beyond, its vector is the opposite one."""
  angle_T = go_around(np.pi + 0.2 * np.sin(t_T), -np.pi, np.pi)
  axis = np.array([0.6, 0.64, 0.48])
  return angle_T[:, None] * axis


def quaternion_of_either_sign(t_T) -> np.ndarray:
  half_T = 0.3 * np.sin(t_T)
  sign_T = np.where(np.sin(3 * t_T) > 0, 1, -1)
  zero_T = np.zeros_like(half_T)
  return sign_T[:, None] * np.stack([np.cos(half_T), np.sin(half_T), zero_T, zero_T], 1)


@pytest.mark.parametrize(
  'rotate, unit, what',
  [
    (euler_past_a_pole, 'rad', 'a rotation'),
    (vector_past_half_a_turn, 'rad', 'a rotation'),
    (quaternion_of_either_sign, 'quaternion', 'a quaternion'),
  ],
)
def test_rotations_that_flip_are_refused(rotate, unit, what):
  t_T = np.arange(60) / 7
  pose_TN = rotate(t_T)
  width = pose_TN.shape[1]
  rows_TX = np.concatenate([t_T[:, None], pose_TN], 1).astype(np.float32)
  for wrap in ((), (-np.pi, np.pi)) if unit == 'rad' else ((),):
    record = make_record(unit, wrap, width)
    problems = compute(record, [rows_TX[:-1]], [rows_TX[1:]]).list_unsafe(lambda i: f'record {i}')
    assert any(f'is {what} whose numbers flip together' in problem for problem in problems)
  # A slow and small rotation is none of these.
  calm_TX = rows_TX.copy()
  calm_TX[:, 1:] = rows_TX[:1, 1:] + 0.01 * np.sin(t_T)[:, None]
  assert compute(make_record(unit, (), width), [calm_TX[:-1]], [calm_TX[1:]]).list_unsafe(str) == []


def test_wrong_wraps():
  with pytest.raises(ValueError, match=r'wrap=\(3, 1\) of slice'):
    make_record('rad', (3, 1))


def test_a_proposal_says_where_an_angle_goes_around():
  """And what flips is proposed to be absolute, so that nothing proposed is refused."""
  states, actions = make_episodes('rad')
  record = make_record('rad')
  computation = compute(record, states, actions)
  mended, changes = angles.mend(record, **computation.seams)
  np.testing.assert_allclose(mended.action[1].wrap, (-np.pi, np.pi))
  assert mended.action[0] == record.action[0]
  assert len(changes) == 1
  assert compute(mended, states, actions).list_unsafe(str) == []

  t_T = np.arange(60) / 7
  rows_TX = np.concatenate([t_T[:, None], euler_past_a_pole(t_T)], 1).astype(np.float32)
  record = make_record('rad', (), 3)
  seams = compute(record, [rows_TX[:-1]], [rows_TX[1:]]).seams
  mended, _ = angles.mend(record, **seams)
  assert (mended.action[1].relative_to, mended.action[1].rest) == ('', 'pose:1:4')
