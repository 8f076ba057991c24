"""Episodes of one split that are those of another are found, also if they were changed a little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.builders.validate import spoilt

NUMBERS = ('proprio', 'action')


def copy(episode, rows=slice(None)):
  return {key: values[rows] for key, values in episode.items()}


def encode_again(episode):
  """As half floats, and the pictures as they never were."""
  changed = {key: episode[key].astype(np.float16).astype(np.float32) for key in NUMBERS}
  pictures = {key: [255 - image for image in episode[key]] for key in ('top', 'wrist')}
  return {**copy(episode), **changed, **pictures}


def cut(episode):
  return copy(episode, slice(20, 55))


@pytest.mark.parametrize('change', [copy, encode_again, cut])
def test_an_episode_in_two_splits(tmp_path, change):
  def hold_out(episodes):
    rng = np.random.default_rng(1)
    return [spoilt.make_episode(rng), change(episodes[4])]

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, hold_out=hold_out))
  assert not findings.count('fail')
  found = list(findings.messages('warn'))
  spoilt.expect(
    found,
    'split',
    "1 of the 2 episodes of split 'val' are in 'train', too: record 1 of",
    'of its rows in common with record 4 of',
    'expected other episodes',
  )


def test_other_episodes_are_not_the_same(tmp_path):
  # The same places and the same words, gone through in another order: every step mirrored in time.
  def hold_out(episodes):
    rng = np.random.default_rng(1)
    backwards = {**copy(episodes[0]), **{key: episodes[0][key][::-1] for key in NUMBERS}}
    backwards['action'] = np.roll(backwards['action'], 7, axis=0)
    return [*(spoilt.make_episode(rng) for _ in range(4)), backwards]

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, hold_out=hold_out))
  assert not list(findings.messages('warn', ['split']))


def test_videos_are_told_by_their_pictures(tmp_path):
  path = spoilt.make_dataset(tmp_path, hold_out=lambda episodes: [copy(episodes[2])])
  record = dataclasses.replace(spoilt.ROBOT, name='robot_video', state=(), action=())
  findings, _ = spoilt.validate(path, record)
  spoilt.expect(
    list(findings.messages('warn')),
    'split',
    "'val' are in 'train', too: record 0 of",
    'record 2 of',
  )
