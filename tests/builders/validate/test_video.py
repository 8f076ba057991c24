"""Cameras that are blank, frozen, doubled, swapped or late are found and named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.builders.validate import spoilt


def test_two_views_of_the_same_camera(tmp_path):
  def edit(episodes):
    for e in episodes:
      # One camera under both names, as a copied line in a conversion gives it.
      e['wrist'] = e['top']

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found, 'view', "views 'top' and 'wrist' of record 0 of", 'show the same pixels', 'record 5 of'
  )


def test_blank_and_frozen_views(tmp_path):
  def edit(episodes):
    # Black, as behind a cap, and the first picture for ever, as of a driver that hangs.
    episodes[1]['top'] = [np.zeros((32, 32, 3), np.uint8)] * spoilt.STEPS
    episodes[4]['wrist'] = [episodes[4]['wrist'][0]] * spoilt.STEPS

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found, 'view', "view 'top' of record 1 of", 'is blank at all 60 steps (grey level 0)'
  )
  spoilt.expect(
    found,
    'view',
    "view 'wrist' of record 4 of",
    'shows one frozen picture for all 60 steps while the robot moves',
  )


def test_swapped_wrist_camera(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['top'], e['wrist'] = e['wrist'], e['top']

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'view',
    "view 'top' moves as a whole",
    'in 6 of 6 episodes',
    'the two cameras are swapped',
  )


# Steps; up to 3 are within the delay of a real camera.
@pytest.mark.parametrize('late', [6, -5])
def test_frames_shifted_against_the_rows(tmp_path, late):
  def edit(episodes):
    for e in episodes:
      for key in ('top', 'wrist'):
        e[key] = [e[key][np.clip(t - late, 0, spoilt.STEPS - 1)] for t in range(spoilt.STEPS)]

  findings, result = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  side = 'after' if late > 0 else 'before'
  when = f'come about {abs(late)} steps ({abs(late) / 10:g} s) {side} the rows'
  spoilt.expect(
    list(findings.messages('fail')),
    'alignment',
    f"images of 'top' {when}",
    f"images of 'wrist' {when}",
  )
  assert [view['late_steps'] for view in result.card['views'].values()] == [late, late]


def test_images_of_the_next_episode(tmp_path):
  def edit(episodes):
    # As numbers of video files that are one too high.
    for key in ('top', 'wrist'):
      shown = [e[key] for e in episodes]
      for e, images in zip(episodes, shown[1:] + shown[:1]):
        e[key] = images

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'alignment',
    "images of 'top' show the motion of the record 1 after their own",
    "images of 'wrist' show the motion of the record 1 after their own",
  )


def test_a_camera_may_be_two_steps_late(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['top'] = [e['top'][max(t - 2, 0)] for t in range(spoilt.STEPS)]

  findings, result = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert result.card['views']['top']['late_steps'] == 2


def test_shuffled_frames_and_short_episodes_are_not_called_late(good_path, tmp_path):
  def edit(episodes):
    rng = np.random.default_rng(1)
    for e in episodes:
      e['top'] = [e['top'][t] for t in rng.permutation(spoilt.STEPS)]

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  assert not findings.count('fail')
  assert any(
    "motion is hardly seen in 'top'" in message for _, message in findings.messages('note')
  )
  # A lag is told from three episodes on.
  findings, _ = spoilt.validate(good_path, split='train[:2]')
  assert "too few or too short episodes to tell whether 'top' is late" in ''.join(findings.lines())


def test_video_without_state_passes(good_path):
  findings, result = spoilt.validate(
    good_path, dataclasses.replace(spoilt.ROBOT, name='robot_video', state=(), action=())
  )
  assert not findings.count('fail')
  assert not findings.count('warn')
  assert result.card['dimensions'] == []
  assert result.card['views']['top']['late_steps'] is None
