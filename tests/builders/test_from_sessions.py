"""Recordings become the dataset that a builder would have written of the same steps: every pixel
and number, and nothing that was not seen.
"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from data.sessions import convert
from tests import episodes as episodes_lib
from tests.builders.validate import spoilt
from wam_jax.client import recorder
from wam_jax.data import choice
from wam_jax.data import embodiments
from wam_jax.data import sources
from wam_jax.data import windows
from wam_jax.serving import description

ROBOT = spoilt.ROBOT
ABOUT = {**description.describe(ROBOT), 'robot': ROBOT.name, 'policy': 'tiny', 'session': '0/-'}


@pytest.fixture(scope='module')
def episodes():
  rng = np.random.default_rng(0)
  return [spoilt.make_episode(rng) for _ in range(spoilt.EPISODES)]


def observe(episode, step):
  return {key: episode[key][step] for key in ('top', 'wrist', 'proprio')}


def record_steps(directory, episodes, outcomes) -> None:
  """As the robot writes them."""
  kept = recorder.Recorder(directory, ABOUT)
  for episode, outcome in zip(episodes, outcomes, strict=True):
    kept.begin('go there')
    for step in range(spoilt.STEPS):
      kept.add({**observe(episode, step), 'prompt': 'go there'}, episode['action'][step])
    kept.end(**outcome)


def record_queries(directory, episode, chunks) -> None:
  """As a server writes them of a client that shows the model's frames when it asks: of eight steps,
  the fourth and the last.
  """
  file = recorder.File(directory, 'go there', ABOUT)
  for start in range(0, 8 * chunks, 8):
    steps = [start - 4, start] if start else [0]
    shown = {key: np.stack([episode[key][t] for t in steps]) for key in ('top', 'wrist')}
    shown['proprio'] = episode['proprio'][start]
    file.write({'observation': shown, 'steps': np.float64(steps)})
    # More than is executed, which the next chunk replaces.
    file.write({'actions': episode['action'][start : start + 12], 'step': float(start)})
  file.end({})


def run(root, **options):
  return convert.convert(str(root / 'kept'), str(root / 'made'), convert.Options(**options))


def test_every_step_is_as_it_was(tmp_path, episodes):
  outcomes = [{'success': number != 2} for number in range(len(episodes))]
  record_steps(tmp_path / 'kept', episodes, outcomes)
  converted = run(tmp_path)
  assert converted.made
  assert (converted.episodes, converted.steps) == (spoilt.EPISODES, 6 * spoilt.STEPS)
  assert converted.notes == ['outcomes: 1 failure, 5 success']

  made = episodes_lib.read(tmp_path / 'made')
  for number, (got, want) in enumerate(zip(made, episodes, strict=True)):
    for key in ('top', 'wrist', 'proprio'):
      np.testing.assert_array_equal([s['observation'][key] for s in got['steps']], want[key])
    np.testing.assert_array_equal([s['action'] for s in got['steps']], want['action'])
    assert [s['is_last'] for s in got['steps']] == [False] * (spoilt.STEPS - 1) + [True]
    assert got['steps'][-1]['is_terminal'] == (number != 2)
    assert got['steps'][0]['language_instruction'] == b'go there'
    assert got['policy'] == b'tiny'

  # The record that lies beside it is that of the robot, and no failure is trained on.
  record = embodiments.resolve('', str(tmp_path / 'made'))
  assert dataclasses.replace(record, episode_key=(), success='') == ROBOT
  assert spoilt.failures(str(tmp_path / 'made'), record) == []
  opened = sources.Episodes(str(tmp_path / 'made'), 'train', record)
  anchors = windows.make_anchors(opened)
  assert set(anchors.episode_K.tolist()) == {0, 1, 3, 4, 5}
  # Asked again, it is there.
  assert not run(tmp_path).made


def test_only_those_that_were_successful(tmp_path, episodes):
  record_steps(tmp_path / 'kept', episodes[:3], [{'success': True}, {}, {'success': False}])
  converted = run(tmp_path, successes=True)
  assert converted.episodes == 1
  assert '2 left out, not told to be successful: ' in converted.notes[0]
  assert episodes_lib.read(tmp_path / 'made')[0]['name'].endswith(b'_success')


def test_what_was_not_seen_is_said_and_no_chunk_begins_there(tmp_path, episodes):
  record_queries(tmp_path / 'kept', episodes[0], chunks=5)
  with pytest.raises(ValueError, match='at which nothing was seen .* --unseen=hold repeats'):
    run(tmp_path)
  converted = run(tmp_path, unseen='hold')
  assert converted.steps == 33
  (made,) = episodes_lib.read(tmp_path / 'made')
  tops = [step['observation']['top'] for step in made['steps']]
  states = [step['observation']['proprio'] for step in made['steps']]
  for step in range(33):
    np.testing.assert_array_equal(tops[step], episodes[0]['top'][step // 4 * 4])
    np.testing.assert_array_equal(states[step], episodes[0]['proprio'][step // 8 * 8])
    # What was commanded is known of every step: by the newest chunk.
    np.testing.assert_array_equal(made['steps'][step]['action'], episodes[0]['action'][step])

  path = str(tmp_path / 'made')
  record = embodiments.resolve('', path)
  ranges = choice.Choice(ranges=str(tmp_path / 'made' / choice.RANGES))
  anchors = windows.make_anchors(sources.Episodes(path, 'train', record, choice=ranges))
  assert [anchors[k].step for k in range(len(anchors))] == [0, 8, 16, 24]
  for anchor in (anchors[k] for k in range(len(anchors))):
    window = windows.make_window(record, 1, anchor.step, anchor.stop)
    np.testing.assert_array_equal(window.frame_steps_R % 4, 0)
    assert window.mask_Q.all()


def test_recordings_that_cannot_be_read_are_refused(tmp_path, episodes):
  with pytest.raises(ValueError, match=r'holds no recordings \(\*\.episode\)'):
    run(tmp_path)
  record_steps(tmp_path / 'kept', episodes[:1], [{}])
  (whole,) = (tmp_path / 'kept').glob('*.episode')
  content = whole.read_bytes()
  whole.with_name('other.episode').write_bytes(content[:-9])
  with pytest.raises(ValueError, match=r'other\.episode cannot be read: the message is cut short'):
    run(tmp_path)

  # What was not ended is no episode, and is told.
  whole.with_name('other.episode').rename(whole.with_name('.other.episode.part'))
  with pytest.raises(ValueError, match="--robot=arm is in none of them; they are of .'robot'."):
    run(tmp_path, robot='arm')
  other = recorder.Recorder(tmp_path / 'kept', {'robot': 'arm'})
  other.begin('go')
  other.add({}, np.zeros(3))
  other.end()
  with pytest.raises(ValueError, match=re.escape("are of ['arm', 'robot']; choose one of them by")):
    run(tmp_path)
  with pytest.raises(ValueError, match='does not say what its robot is'):
    run(tmp_path, robot='arm')
  with pytest.raises(ValueError, match='is not of .tabletop_disc.*views'):
    run(tmp_path, robot='arm', embodiment='tabletop_disc')
  converted = run(tmp_path, robot='robot')
  assert converted.notes[0] == '1 recordings were not ended, and are left out'


def test_a_record_of_ones_own(tmp_path, episodes):
  """In place of that in the recordings: another rate, say."""
  record_steps(tmp_path / 'kept', episodes[:1], [{}])
  record = dataclasses.replace(ROBOT, name='mine', control_hz=20.0, video_fps=5.0, chunk_s=0.4)
  file = tmp_path / 'mine.json'
  file.write_text(json.dumps(dataclasses.asdict(record)))
  converted = run(tmp_path, embodiment=str(file))
  assert embodiments.resolve('', str(tmp_path / 'made')).control_hz == 20
  assert converted.record.name == 'mine'
