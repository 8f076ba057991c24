"""Commands that are stored with another row, switches of opposite sense, angles at their seam and
numbers under two keys are found and named; robots that follow late are not.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.validate import angles
from data.validate import findings as findings_lib
from data.validate import motion
from data.validate import parts
from data.validate import survey
from tests.builders.validate import spoilt
from wam_jax.data import angles as data_angles
from wam_jax.data import record as record_lib

Slice = record_lib.Slice
# As ROBOT, told how to move instead of where to.
DELTAS = dataclasses.replace(
  spoilt.ROBOT,
  action=(Slice('action', 0, 2, 'm'), spoilt.ROBOT.action[1]),
)


def move(x_TN: np.ndarray, rows: int) -> np.ndarray:
  """Each row `rows` later, the ends repeated."""
  return x_TN[np.clip(np.arange(len(x_TN)) - rows, 0, len(x_TN) - 1)]


def to_deltas(episode, noise=0.0, hz=1.0):
  """Motion in place of targets: deltas, or velocities, with what a robot makes of them."""
  motion_TU = np.diff(episode['proprio'][:, :2], axis=0, append=episode['proprio'][-1:, :2])
  rng = np.random.default_rng(1)
  episode['action'][:, :2] = hz * (motion_TU + rng.normal(0, noise, motion_TU.shape))


def make_survey(record, state, action) -> survey.Survey:
  """What a pass over episodes of these numbers would keep."""
  kept = survey.Survey.of(record)
  for i, (state_TX, action_TU) in enumerate(zip(state, action)):
    starts = np.arange(len(state_TX) - record.steps_per_chunk)
    steps = np.arange(len(state_TX))
    kept.add(state_TX, action_TU, starts, steps, i)
    kept.series.append(survey.Series(f'record {i} of made', state_TX, action_TU, steps))
  return kept


@pytest.fixture
def episodes():
  rng = np.random.default_rng(0)
  return [spoilt.make_episode(rng) for _ in range(spoilt.EPISODES)]


def check_motion(record, episodes):
  """(findings, lags at which the first slice of the action is followed)."""
  kept = make_survey(record, [e['proprio'] for e in episodes], [e['action'] for e in episodes])
  findings = findings_lib.Findings()
  followed = motion.check(kept, findings)
  return findings, {pairing.best for pairing in followed[0][1]}


@pytest.mark.parametrize('reading', ['target', 'delta', 'velocity'])
@pytest.mark.parametrize(('rows', 'lag'), [(0, 0), (1, -1), (-1, 1)])
def test_actions_of_another_row(episodes, reading, rows, lag):
  for e in episodes:
    if reading == 'target':
      # The next pose, with an error that no exact comparison forgives.
      e['action'][:-1, :2] = e['proprio'][1:, :2] + 1e-4 * e['action'][:-1, :2]
    else:
      to_deltas(e, hz=10.0 if reading == 'velocity' else 1.0)
    e['action'] = move(e['action'], rows)
  findings, lags = check_motion(spoilt.ROBOT if reading == 'target' else DELTAS, episodes)
  found = list(findings.messages('fail'))
  assert lags == {lag}
  if not lag:
    assert not found
    return
  told = {
    -1: ['goes with the motion 1 row before its own (lag -1)', 'expected lag 0, or more of'],
    1: ['is the motion 1 row after its own (lag 1), as no robot follows', 'expected lag 0: store'],
  }
  spoilt.expect(
    [f for f in found if 'action[0:2]' in f[1]],
    'lag',
    *told[lag],
    'action[0] with proprio[0], action[1] with proprio[1]; 6 episodes, from record 0 of made',
  )


def test_a_robot_that_follows_late_is_no_fault(episodes):
  # Three rows late and with an error, as arms are that are told velocities.
  for e in episodes:
    to_deltas(e, noise=0.01)
    e['action'][:, :2] = move(e['action'][:, :2], -3)
  findings, lags = check_motion(DELTAS, episodes)
  assert not findings.count('fail'), list(findings.lines())
  assert lags == {3}
  # It is said all the same: actions that were stored too early look like that.
  assert any(
    'action[0:2] is followed 3 rows later (lag 3)' in message
    for _, message in findings.messages('note', ['lag'])
  )


def test_deltas_of_opposite_sign_are_told(episodes):
  for e in episodes:
    to_deltas(e, noise=0.002)
    e['action'][:, 1] *= -1
  findings, _ = check_motion(DELTAS, episodes)
  # A tool's frame may look the other way.
  assert not findings.count('fail')
  spoilt.expect(
    list(findings.messages('note')),
    'sense',
    'action action[0:2] moves the state the other way in action[1] and proprio[1] (-',
  )


def test_gripper_of_opposite_sense(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['action'][:, 2] = 1 - e['action'][:, 2]

  path = spoilt.make_dataset(tmp_path, edit)
  spoilt.expect(
    spoilt.failures(path),
    'sense',
    'action action[2] is high when state proprio[2] is low: correlation -',
    'of the 6 episodes that tell, first record 0 of',
    "rest='proprio:2:3' needs the same sense; expected the same sense",
  )
  # The mend that the message names.
  flipped = dataclasses.replace(spoilt.ROBOT.action[1], offset=1.0, scale=-1.0)
  mended = dataclasses.replace(spoilt.ROBOT, action=(spoilt.ROBOT.action[0], flipped))
  assert not spoilt.failures(path, mended)
  # Where nothing counts from that state, the model may learn it as it is: a warning.
  free = dataclasses.replace(spoilt.ROBOT.action[1], rest='')
  findings, _ = spoilt.validate(
    path, dataclasses.replace(spoilt.ROBOT, action=(spoilt.ROBOT.action[0], free))
  )
  assert not findings.count('fail')
  spoilt.expect(list(findings.messages('warn')), 'sense', 'action[2] is high when state proprio[2]')


def test_grippers_of_two_senses_in_one_dataset(tmp_path):
  def edit(episodes):
    for e in episodes[3:]:
      e['action'][:, 2] = 1 - e['action'][:, 2]

  spoilt.expect(
    spoilt.failures(spoilt.make_dataset(tmp_path, edit)),
    'sense',
    'action action[2] has the sense of state proprio[2] in 3 episodes and the opposite one in 3, '
    'first record 3 of',
    'expected one sense',
  )


def turn_about(rng, middle, rows=80) -> np.ndarray:
  """An angle that goes to and fro about `middle`, brought to [-pi, pi)."""
  angle_T = middle + np.cumsum(rng.normal(0, 0.1, rows))
  return (angle_T + np.pi) % (2 * np.pi) - np.pi


def list_angle_findings(unit, middle, relative=False, scale=1.0):
  rng = np.random.default_rng(0)
  record = dataclasses.replace(
    spoilt.ROBOT,
    state=(Slice('pose', 0, 1, unit),),
    action=(Slice('target', 0, 1, unit, relative_to='pose:0:1' if relative else ''),),
  )
  state = [scale * turn_about(rng, middle)[:, None] for _ in range(6)]
  kept = make_survey(record, state, [move(s, -1) for s in state])
  findings = findings_lib.Findings()
  for part in ('state', 'action'):
    angles.check(part, kept.seams[part], lambda i: f'record {i} of made', findings)
  return findings


@pytest.mark.parametrize(('unit', 'scale'), [('rad', 1), ('deg', 180 / np.pi), ('unknown', 1)])
def test_angles_at_the_seam(unit, scale):
  findings = list_angle_findings(unit, np.pi, relative=True, scale=scale)
  spoilt.expect(
    list(findings.messages('fail')),
    'angle',
    'action target[0] jumps by a whole turn',
    'at step',
    'of record 0 of made; expected neighbouring poses to have neighbouring numbers (a turn is '
    + ('360' if unit == 'deg' else '6.2832'),
    'Relative to pose:0:1, it is a whole turn off there',
  )
  # A state is only seen; an action is done.
  spoilt.expect(list(findings.messages('warn')), 'angle', 'state pose[0] jumps by a whole turn')


@pytest.mark.parametrize('unit', ['rad', 'unknown', 'm'])
def test_angles_away_from_the_seam(unit):
  assert not list(list_angle_findings(unit, 0.0).messages('fail'))
  # What is no angle may jump.
  if unit == 'm':
    assert not list(list_angle_findings(unit, np.pi).messages('fail'))


def test_quaternions_that_change_their_sign():
  rng = np.random.default_rng(0)
  record = dataclasses.replace(
    spoilt.ROBOT,
    state=(Slice('pose', 0, 4, 'quaternion'),),
    action=(Slice('a', 0, 4, 'quaternion'),),
  )
  angle_T = np.cumsum(rng.normal(0, 0.1, 50))
  q_T4 = np.stack([np.cos(angle_T / 2), np.sin(angle_T / 2), 0 * angle_T, 0 * angle_T], -1)
  findings = findings_lib.Findings()
  for part, rows in (
    ('state', q_T4),
    ('action', q_T4 * np.where(np.arange(50) < 20, 1, -1)[:, None]),
  ):
    seams = data_angles.Seams(getattr(record, part))
    seams.add(rows, 2)
    angles.check(part, seams, lambda i: f'record {i} of made', findings)
  spoilt.expect(
    list(findings.messages('fail')),
    'angle',
    'action a[0:4], a quaternion, changes its sign 1 times, first at step 19 of record 2 of made',
  )
  assert not findings.count('warn')


def test_a_vector_beside_its_own_parts():
  rng = np.random.default_rng(0)
  record = dataclasses.replace(
    spoilt.ROBOT,
    state=(Slice('joints', 0, 3, 'rad'), Slice('gripper', 0, 1, 'raw'), Slice('all', 0, 4, 'raw')),
    action=(Slice('a', 0, 1, 'm'), Slice('b', 0, 1, 'm')),
  )
  joints = np.cumsum(rng.normal(size=(6, 40, 3)), axis=1)
  gripper = np.cumsum(rng.normal(size=(6, 40, 1)), axis=1)
  action = np.cumsum(rng.normal(size=(6, 40, 1)), axis=1)
  state = np.concatenate([joints, gripper, joints, gripper], axis=-1).astype(np.float32)
  kept = make_survey(record, state, np.repeat(action, 2, -1).astype(np.float32))
  findings = findings_lib.Findings()
  parts.check(kept, findings)
  spoilt.expect(
    list(findings.messages('fail')),
    'slice',
    'state all[0:3] is joints[0:3] again, at all rows of 6 episodes from record 0 of made; '
    "expected every number once: leave one of the two out of 'robot'",
  )
  # Single columns may be two fingers that move alike.
  spoilt.expect(
    list(findings.messages('warn')),
    'slice',
    'state all[3:4] is gripper[0:1] again',
    'action b[0:1] is a[0:1] again',
  )
