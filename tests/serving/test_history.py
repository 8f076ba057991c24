"""Which frames the model is shown, by hand: DROID sees eight frames, three control steps apart, of
chunks of 24 steps.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving import engines
from wam_jax.serving import history as history_lib


def start(kind='spacing', steps_per_query=24):
  return history_lib.History(engines.DROID, kind, steps_per_query)


def ask(history, names, steps=None, answered=True):
  """(what is shown, window) of frames that are called `names`."""
  steps = None if steps is None else np.asarray(steps, float)
  window = history.add(list(names), steps)
  if answered:
    history.note_answer(window)
  return ''.join(window.frames), window


def test_the_first_query_shows_the_newest_frame_alone():
  shown, window = ask(start(), 'abc')
  assert shown == 'cccccccc'
  assert (window.repeated, window.off, window.step) == (0, 0, 0)


def test_as_many_frames_as_the_model_sees_are_shown_as_they_are():
  history = start()
  ask(history, 'a')
  shown, window = ask(history, 'bcdefghi')
  assert shown == 'bcdefghi'
  assert (window.repeated, window.off) == (0, 0)


def test_four_frames_of_24_steps():
  """At 1, 8.67, 16.33 and 24; the model's times are 3, 6, ..., 24."""
  history = start()
  ask(history, 'a')
  shown, window = ask(history, 'bcde')
  assert shown == 'bcccddee'
  assert window.repeated == 4
  assert window.off == pytest.approx(12 - 26 / 3)


def test_a_frame_a_query_of_eight_steps():
  """Frames at 0, 8, 16, 24 and the model's times 3, ..., 24."""
  history = start(steps_per_query=8)
  for name in 'abc':
    ask(history, name)
  shown, window = ask(history, 'd')
  assert shown == 'abbbccdd'
  assert window.repeated == 4
  assert window.off == 4  # The time 12 is as far from 8 as from 16.


def test_the_frame_of_a_chunk_ago_where_the_model_looks_back_to_it():
  """Queries 12 steps apart, of the frames since the last; the model's times are 12, 15, ..., 36."""
  history = history_lib.History(engines.DROID, 'spacing', 12, frames=9)
  assert ask(history, 'a')[0] == 'aaaaaaaaa'
  for names, end in (('bcde', 12), ('fghi', 24)):
    ask(history, names, [end - 9, end - 6, end - 3, end])
  shown, window = ask(history, 'jklm', [27, 30, 33, 36])
  assert shown == 'efghijklm'
  assert (window.repeated, window.off) == (0, 0)


def test_times_that_the_client_says_stand():
  history = start()
  ask(history, 'a', steps=[100])
  shown, window = ask(history, 'bcdefghi', steps=[103, 106, 109, 112, 115, 118, 121, 124])
  assert shown == 'bcdefghi'
  assert (window.repeated, window.off, window.step) == (0, 0, 124)
  # Every control step at once.
  shown, _ = ask(history, [chr(ord('A') + i) for i in range(24)], steps=range(125, 149))
  assert shown == 'CFILORUX'
  with pytest.raises(ValueError, match='of step 90, and step 148 was answered already'):
    ask(history, 'z', steps=[90])


def test_a_query_that_was_not_answered_and_comes_again_is_of_the_same_time():
  history = start(steps_per_query=8)
  ask(history, 'a')
  ask(history, 'b', answered=False)
  shown, window = ask(history, 'c')
  assert 'b' not in shown
  assert window.step == 8


def test_as_the_reference():
  """The last four that came, each twice, the oldest for those that lack. Source: spec 7.5."""
  history = start('reference')
  assert ask(history, 'ab')[0] == 'bbbbbbbb'
  history = start('reference')
  ask(history, 'a')
  assert ask(history, 'b')[0] == 'aaaaaabb'
  assert ask(history, 'c')[0] == 'aaaabbcc'
  assert ask(history, 'defg')[0] == 'ddeeffgg'


def test_an_episode_of_hours_keeps_few_frames():
  history = start(steps_per_query=1)
  for i in range(2000):
    history.note_answer(history.add([i], None))
  assert len(history._frames) <= 24 + 3 + 1
