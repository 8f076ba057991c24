"""Pictures of another episode, blank ones, waiting and failed readings are found and named."""

from __future__ import annotations

import dataclasses

import numpy as np

from data.validate import strays
from tests.builders.validate import spoilt


def test_pictures_that_are_not_of_their_place(tmp_path):
  def edit(episodes):
    # As saved before the camera looks again (isaac-sim/IsaacLab-Arena#339).
    before = [e['top'][-1] for e in episodes]
    for e, picture in zip(episodes[1:], before):
      e['top'] = [picture, *e['top'][1:]]
    episodes[3]['top'][30] = 255 - episodes[3]['top'][30]
    # A camera that takes three pictures to wake up.
    black = np.zeros((32, 32, 3), np.uint8)
    episodes[2]['wrist'] = [black] * 3 + episodes[2]['wrist'][3:]

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    list(findings.messages('fail')),
    'view',
    "the first picture of view 'top' has nothing to do with its neighbour in 5 of 6 episodes, "
    'first record 1 of',
  )
  warned = [message for kind, message in findings.messages('warn') if kind == 'view']
  assert len(warned) == 3
  assert "view 'top' has 1 pictures" in warned[0]
  assert 'first step 30 of record 3 of' in warned[0]
  assert "first picture of view 'wrist' has nothing to do with its neighbour in 1 of 6" in warned[1]
  assert "view 'wrist' has 2 pictures" in warned[2]


def test_motion_and_cuts_are_no_strays():
  rng = np.random.default_rng(0)
  scene_PIJ = rng.integers(0, 255, (2, 32, 32), dtype=np.uint8)
  cut_TIJ = np.repeat(scene_PIJ, 30, axis=0)
  assert strays.find(cut_TIJ) == []
  noise_TIJ = rng.integers(0, 255, (60, 32, 32), dtype=np.uint8)
  assert strays.find(noise_TIJ) == []
  cut_TIJ[[0, 5, 59]] = noise_TIJ[:3]
  assert strays.find(cut_TIJ) == [0, 5, 59]


def test_what_leaves_the_picture_at_once_is_no_stray():
  """As a table's edge does, after which the robot rests: one that comes from elsewhere is as far
  from the picture after its neighbour as from that.
  """
  scene_IJ = np.full((32, 32), 120, np.uint8)
  scene_IJ[::2] = 90
  leaving_TIJ = np.repeat(scene_IJ[None], 20, axis=0)
  for step, rows in enumerate((18, 6, 3)):
    leaving_TIJ[step, :rows] = 20
  assert strays.find(leaving_TIJ) == []
  assert strays.find(leaving_TIJ[::-1]) == []
  elsewhere_IJ = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
  leaving_TIJ[0] = elsewhere_IJ
  assert strays.find(leaving_TIJ) == [0]


def test_waiting_is_told(tmp_path):
  def edit(episodes):
    for e in episodes:
      for key, values in e.items():
        e[key] = [*[values[0]] * 40, *values]
      e['timestamp'] = np.arange(len(e['text']), dtype=np.float32) / spoilt.ROBOT.control_hz

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit), decoded=1)
  (message,) = [message for kind, message in findings.messages('warn') if kind == 'rest']
  assert 'nothing moves in 37% of the chunks' in message
  assert 'begins with 3.4 s of that' in message


def test_episodes_in_other_units(tmp_path):
  def edit(episodes):
    for e in episodes[:2]:
      e['proprio'][:, :2] = np.rad2deg(e['proprio'][:, :2])
      e['action'][:, :2] = np.rad2deg(e['action'][:, :2])

  slices = [dataclasses.replace(s, unit='') for s in spoilt.ROBOT.state]
  record = dataclasses.replace(spoilt.ROBOT, name='unknown_units', state=tuple(slices))
  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit), record, decoded=1)
  (message,) = [message for kind, message in findings.messages('warn') if kind == 'unit']
  assert 'state proprio[0:2] reaches 0.663 to 0.783 in 4 episodes and 38.9 to 39.4 in 2' in message
  assert '2 episodes come from another source, first record 0 of' in message


def test_readings_that_failed(tmp_path):
  def edit(episodes):
    # A message that is lost, as 0 (robotology/mesh-support#624), and as what was read last.
    episodes[2]['proprio'][20, 0] = 0.0
    episodes[4]['proprio'][10:40, 1] = episodes[4]['proprio'][10, 1]

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit), decoded=1)
  ((_, tick),) = findings.messages('warn', ['exploding'])
  assert 'state proprio[0] leaves for one row and comes back, 1 times, first at step 20' in tick
  assert 'record 2 of' in tick
  ((_, stuck),) = findings.messages('warn', ['constant'])
  assert 'state proprio[1] stays the same for 10 rows or more while its command moves' in stuck
  assert 'record 4 of' in stuck


def test_a_command_at_the_end_has_no_time_to_show(tmp_path):
  # As BridgeData is published: the gripper's command of the last row, and its reading before.
  def edit(episodes):
    for e in episodes:
      e['proprio'][20:, 1] = e['proprio'][20, 1]
      e['action'][19:, 1] = e['action'][19, 1]
    episodes[2]['action'][-1, 1] += 0.5

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit), decoded=1)
  assert list(findings.messages('warn', ['constant'])) == []
