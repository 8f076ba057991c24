"""Numbers, slices and statistics files that would spoil training are found and named."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from data.validate import findings as findings_lib
from data.validate import numeric
from tests.builders.validate import spoilt
from wam_jax.data import sources
from wam_jax.data import statistics


def test_overlapping_slices(good_path):
  record = dataclasses.replace(
    spoilt.ROBOT, state=(*spoilt.ROBOT.state, spoilt.Slice('proprio', 1, 3, 'm'))
  )
  spoilt.expect(
    spoilt.failures(good_path, record),
    'slice',
    "state slices proprio[0:2] and proprio[1:3] of 'robot' overlap",
    'state slices proprio[2:3] and proprio[1:3]',
  )


def test_action_relative_to_the_wrong_joints(good_path):
  # Two arms in one vector, and a record that takes the left one's state for the right one's action.
  arms = dataclasses.replace(
    spoilt.ROBOT,
    state=(
      spoilt.Slice('proprio', 0, 1, 'm'),
      spoilt.Slice('proprio', 1, 2, 'm'),
      spoilt.ROBOT.state[1],
    ),
    action=(
      spoilt.Slice('action', 0, 1, 'm', 'proprio:1:2'),
      spoilt.Slice('action', 1, 2, 'm', 'proprio:0:1'),
      spoilt.ROBOT.action[1],
    ),
  )
  found = spoilt.failures(good_path, arms)
  spoilt.expect(
    found,
    'slice',
    "action action[0:1] has relative_to='proprio:1:2' but follows the state proprio[0] to",
    "action action[1:2] has relative_to='proprio:0:1' but follows the state proprio[1]",
  )


def test_degrees_and_millimetres(tmp_path):
  def edit(episodes):
    # Positions in millimetres under a record that says metres.
    for e in episodes:
      e['proprio'][:, 0] *= 1000
      e['action'][:, 0] *= 1000

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'unit',
    "state proprio[0:2] holds 'm' up to 7",
    "action action[0:2] holds 'm'",
    'expected at most 10',
  )
  # Two whole turns either way, which degrees exceed; a normalized value may overshoot a little.
  assert numeric.UNIT_LIMIT['rad'] == pytest.approx(12.566, abs=1e-3)
  assert numeric.UNIT_LIMIT['normalized'] == 1.1


def test_constant_dimensions(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['proprio'][:, 2] = 0.5
      # Noise below the range floor of 0.001 is no motion.
      e['action'][:, 2] = 0.5 + 1e-5 * np.arange(spoilt.STEPS)

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'constant',
    'state proprio[2] hardly varies: q01 0.5, q99 0.5',
    'action action[2] hardly varies',
  )
  assert len(found) == 2


def test_exploding_dimensions(tmp_path):
  def edit(episodes):
    # One row of 360 each, which the quantiles at 1% and 99% do not show.
    episodes[1]['proprio'][30, 0] = 40
    episodes[4]['action'][12, 1] = -30

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'exploding',
    'state proprio[0] is 40 at step 30 of record 1 of',
    'action action[1] relative to the state is -30.',
    'at step 12 of record 4 of',
  )


def test_action_equal_to_the_state(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['action'][:, :2] = e['proprio'][:, :2]

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  # A relative action that repeats the state is 0 everywhere, and goes with the motion that led to
  # it: failures of their own.
  spoilt.expect(
    [f for f in found if f[0] not in ('constant', 'lag')],
    'copy',
    'action equals the state of the same step at 100%',
    'action[0] = proprio[0], action[1] = proprio[1], first at step 0 of record 0 of',
  )


def test_action_equal_to_the_next_state_is_worth_a_note(tmp_path):
  # Where no commands were recorded, datasets are made so on purpose.
  def edit(episodes):
    for e in episodes:
      e['action'][:-1, :2] = e['proprio'][1:, :2]

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert not findings.count('warn')
  assert any(
    'action is the state of the next step: action[0] = proprio[0], action[1] = proprio[1]'
    in message
    for _, message in findings.messages('note')
  )


def test_a_statistics_file_is_compared_with_the_data(tmp_path):
  path = spoilt.make_dataset(tmp_path)
  episodes = sources.Episodes(path, 'train', spoilt.ROBOT)
  statistics.load_or_compute(episodes)
  findings, _ = spoilt.validate(path)
  assert not findings.count('fail')
  assert not findings.count('note')
  file = pathlib.Path(statistics.find(episodes))
  good = file.read_text()

  # A file of other shards, one of these shards with other numbers, one of another robot.
  file.write_text(good.replace(episodes.fingerprint, '0' * 16))
  findings, _ = spoilt.validate(path)
  assert not findings.count('fail')
  spoilt.expect(
    list(findings.messages('warn')),
    'statistics',
    f'{file} is of another state of the dataset or its exclusions: training computes it again',
  )
  stale = json.loads(good)
  stale['state']['q99'][1] += 1
  file.write_text(json.dumps(stale))
  spoilt.expect(
    spoilt.failures(path), 'statistics', 'of state dimension 1, the data 0.', f'{file} says q99=1.'
  )
  other = dataclasses.replace(spoilt.ROBOT, action=spoilt.ROBOT.action[:1])
  statistics.load_or_compute(
    sources.Episodes(path, 'train', dataclasses.replace(other, name='other'))
  )
  shutil.copy(file.with_name('wam_statistics_other_train.json'), file)
  spoilt.expect(spoilt.failures(path), 'file', f'{file} holds statistics of another embodiment')


def test_too_short_for_a_chunk(good_path):
  # 80 steps, where every episode has 60.
  found = spoilt.failures(good_path, dataclasses.replace(spoilt.ROBOT, chunk_s=8.0))
  spoilt.expect(found, 'anchors', 'longer than one chunk of 80 steps')


def test_an_episode_of_one_step_is_no_failure(tmp_path):
  def edit(episodes):
    episodes[2]['text'] = ['go there']

  findings, result = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert result.card['length'] == {'min': 1, 'median': 60, 'max': 60}


def test_accepted_failures_are_warnings(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['proprio'][:, 2] = 0.5
      e['text'] = [''] * spoilt.STEPS

  path = spoilt.make_dataset(tmp_path, edit)
  findings, _ = spoilt.validate(path, accept=('constant',))
  assert {kind for kind, _ in findings.messages('fail')} == {'language'}
  assert {kind for kind, _ in findings.messages('warn')} == {'constant'}
  with pytest.raises(
    ValueError, match=r"no kinds of failure \['words'\] to accept; choose from .*'language'"
  ):
    findings_lib.Findings(frozenset(['words']))
