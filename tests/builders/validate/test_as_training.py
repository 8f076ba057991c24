"""What the validator lets pass, with every failure accepted that can be, training reads to the end;
what training stops at, it fails.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from data.validate import findings as findings_lib
from data.validate import survey
from tests.builders.validate import spoilt
from tests.data import synthetic
from wam_jax.data import pipeline
from wam_jax.data import sources
from wam_jax.data import statistics

NOISE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)


def train(path: str, record) -> str:
  """Reads every window of the dataset as training does; what stops it, or ''."""
  file = pathlib.Path(path) / 'embodiment.json'
  file.write_text(json.dumps(dataclasses.asdict(record)))
  config = synthetic.make_config({'d': (path, str(file), 1.0)})
  try:
    (sampler,) = pipeline.Data.open(config).open_mixture()
    for sample in range(len(sampler)):
      film = sampler(sample, np.random.default_rng(0))['frames_BRIJ3']
      film.paint(np.empty(film.shape, np.uint8))
  except ValueError as e:
    return str(e)
  return ''


def validate(path: str, record, accept=findings_lib.ACCEPTABLE) -> list[str]:
  """What it fails, in words."""
  try:
    return [message for _, message in spoilt.failures(path, record, accept=accept)]
  except ValueError as e:  # The dataset cannot be opened.
    return [str(e)]


def put(key, step, value):
  """Replaces one image or number of episode 2."""

  def edit(episodes):
    episodes[2][key][step] = value

  return edit


def png(image) -> bytes:
  return cv2.imencode('.png', image)[1].tobytes()


def shorten(episodes):
  for e in episodes:
    for key in e:
      e[key] = e[key][:7]


def spoil_words(episodes):
  episodes[0]['text'] = [''] * spoilt.STEPS
  episodes[1]['text'] = ['7'] * spoilt.STEPS
  episodes[2]['text'] = ["['go', 'there']"] + ['go'] * (spoilt.STEPS - 1)


def spoil_numbers(episodes):
  for e in episodes:
    e['action'] = np.roll(e['action'], 3, axis=0) * np.float32([0, 1, -1])
    e['proprio'] *= np.float32([1000, 1, 0])
    e['timestamp'] *= 3
  episodes[3]['proprio'][5, 1] = 1e6


def spoil_pictures(episodes):
  episodes[0]['top'] = [0 * image for image in episodes[0]['top']]
  episodes[1]['top'] = [episodes[1]['top'][0]] * spoilt.STEPS
  episodes[2]['wrist'] = episodes[2]['top']
  episodes[3]['top'][3] = cv2.imencode('.webp', NOISE)[1].tobytes()


# What training reads, though much of it is worth a failure.
READ = [lambda episodes: None, spoil_words, spoil_numbers, spoil_pictures]
STOPS = {
  'NaN': put('proprio', (5, 1), np.nan),
  'infinity': put('action', (5, 1), np.inf),
  'no image': put('top', 9, b''),
  'garbage': put('top', 9, b'\xff\xd8' + bytes(90) + b'\xff\xd9'),
  'grey': put('wrist', 9, png(NOISE[..., 0])),
  'alpha': put('wrist', 9, png(np.dstack([NOISE, NOISE[..., 0]]))),
  '16 bits': put('wrist', 9, png(NOISE.astype(np.uint16))),
  'another size': put('wrist', 9, png(NOISE[:16])),
  'too short': shorten,
}


@pytest.mark.parametrize('edit', READ)
def test_what_passes_is_read(tmp_path, edit):
  path = spoilt.make_dataset(tmp_path, edit)
  assert not validate(path, spoilt.ROBOT)
  assert not train(path, spoilt.ROBOT)


@pytest.mark.parametrize('name', STOPS)
def test_what_stops_training_fails(tmp_path, name):
  path = spoilt.make_dataset(tmp_path, STOPS[name])
  stopped = train(path, spoilt.ROBOT)
  found = validate(path, spoilt.ROBOT)
  assert stopped
  # By the same words, for the code of training decides. Where there is no window, each says why.
  if name != 'too short':
    assert any(stopped in message for message in found), (stopped, found)
  assert found


def test_a_record_that_does_not_fit_stops_both_alike(good_path):
  wrong = dataclasses.replace(
    spoilt.ROBOT,
    state=(*spoilt.ROBOT.state, spoilt.Slice('top', 0, 1, 'm')),
    language=('action',),
  )
  stopped = train(good_path, wrong)
  assert "'action' is float32 (3,), expected a text" in stopped
  assert validate(good_path, wrong) == [stopped]


@pytest.mark.parametrize('of', ['another record', 'another robot', 'other data'])
def test_statistics_that_are_no_longer_true(tmp_path, of):
  path = spoilt.make_dataset(tmp_path)
  record = spoilt.ROBOT
  file = pathlib.Path(statistics.find(sources.Episodes(path, 'train', record)))
  if of == 'another record':
    older = dataclasses.replace(record, action=record.action[:1])
    statistics.load_or_compute(sources.Episodes(path, 'train', older))
  elif of == 'another robot':
    other = dataclasses.replace(record, name='other')
    made = sources.Episodes(path, 'train', other)
    statistics.load_or_compute(made)
    shutil.move(statistics.find(made), file)
  else:
    statistics.load_or_compute(sources.Episodes(path, 'train', record))
    content = json.loads(file.read_text())
    content['of']['dataset'] = '0' * 16
    file.write_text(json.dumps(content))
  # None is accepted: training computes what is no longer true again, and says which file is wrong.
  found = validate(path, record, accept=())
  stopped = train(path, record)
  assert bool(found) == bool(stopped) == (of == 'another robot')
  assert not stopped or any(stopped in message for message in found)


def test_what_stops_training_cannot_be_accepted():
  with pytest.raises(
    ValueError, match=r"\['record', 'image'\] cannot be accepted: training stops at such failures"
  ):
    findings_lib.Findings(frozenset(['image', 'record', 'rate']))
  findings = findings_lib.Findings()
  findings.fail('rate', 'this')
  findings.fail('record', 'that')
  assert list(findings.lines())[-1] == (
    'FAILED: 2 failures, 0 warnings, 0 notes; training would stop at record '
    '(--write_exclusions leaves such episodes out); if that is meant: --accept=rate'
  )


@pytest.mark.parametrize('norm', ['q99', 'q99_reference'])
def test_quantiles_that_are_judged_are_those_that_training_takes(norm):
  """Of a gripper that closes twice in 300 rows, which the reference's quantiles do not know."""
  *others, gripper = spoilt.ROBOT.action
  action = (*others, dataclasses.replace(gripper, norm=norm))
  kept = survey.Survey.of(dataclasses.replace(spoilt.ROBOT, action=action))
  state_TX = np.zeros((300, 3), np.float32)
  action_TU = np.zeros((300, 3), np.float32)
  action_TU[100:102, 2] = 1
  kept.add(state_TX, action_TU, starts_Q=np.arange(292), here_K=np.arange(300), i=0)
  trained = kept.computed.finish('here').action
  np.testing.assert_array_equal(kept.action.summary.q99[2], trained.q99[2])
  assert trained.q99[2] == (1 if norm == 'q99' else 0)
