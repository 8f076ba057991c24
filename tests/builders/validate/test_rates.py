"""Rows, timestamps and cameras of another rate than the record says are found and named."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.validate import clock
from data.validate import findings as findings_lib
from tests.builders.validate import spoilt
from tests.data import synthetic


def test_timestamps_of_another_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      # Recorded at 15 Hz; the record says 10.
      e['timestamp'] = e['timestamp'] * 10 / 15

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'rate',
    'timestamp of record 0 of',
    'grows by 0.06667 s a row (15 Hz); expected 0.1 s: correct control_hz=10',
  )
  assert len(found) == spoilt.EPISODES


def test_timestamps_that_do_not_grow_and_gaps(tmp_path):
  def edit(episodes):
    # A clock that was set back is a failure; rows that were dropped are a warning.
    episodes[1]['timestamp'][20:] -= 0.2
    episodes[2]['timestamp'][30:] += 0.5

  findings, _ = spoilt.validate(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    list(findings.messages('fail')),
    'rate',
    'timestamp of record 1 of',
    'does not grow: 1.9 s at step 19, 1.8 s',
  )
  spoilt.expect(
    list(findings.messages('warn')),
    'rate',
    'timestamp of record 2 of',
    'has 1 gaps, of 0.6 s after step 29',
  )


def test_camera_of_half_the_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      e['wrist'] = [e['wrist'][t // 2 * 2] for t in range(spoilt.STEPS)]

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'rate',
    "of the frames of 'wrist' repeat the frame before amid motion: they are new 5 times a second",
  )
  assert len(found) == 1


def test_recording_played_at_twice_its_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      # Resampled by repeating every row, as a conversion from 5 to 10 Hz may do.
      for key in ('proprio', 'action', 'top', 'wrist'):
        e[key] = [e[key][t // 2] for t in range(spoilt.STEPS)]

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'rate',
    'of the rows repeat the state of the row before amid motion: they are new 5 times',
    "frames of 'top'",
    "frames of 'wrist'",
  )


def check_stamps(stamps_T, path='steps/timestamp', **others):
  """(findings, period) of an episode with these timestamps, and other numbers by path."""
  stored = {path: stamps_T, **others}
  outline = types.SimpleNamespace(read_numbers=lambda key: np.asarray(stored[key]))
  episode = types.SimpleNamespace(where='record 4 of made', remedy='')
  findings = findings_lib.Findings()
  found = clock.Clock(path, tuple(others))
  return findings, clock.check(found, outline, episode, spoilt.ROBOT, findings)


SINCE_1970_NS = 1_700_000_000_000_000_000


@pytest.mark.parametrize(
  ('path', 'unit', 'dtype'),
  [
    ('steps/timestamp', 1, np.float32),
    ('steps/timestamp', 1000, np.int64),
    ('steps/observation/robot_timestamp_us', 10**6, np.int64),
    ('steps/time', 10**9, np.int64),
  ],
)
def test_timestamps_of_any_unit(path, unit, dtype):
  start = SINCE_1970_NS // (10**9 // unit) if dtype == np.int64 else 0
  rows = lambda hz: start + np.arange(50) * unit / hz if not start else None
  whole = lambda hz: start + (np.arange(50) * unit / hz).astype(np.int64)
  make = whole if start else lambda hz: rows(hz).astype(dtype)
  findings, period = check_stamps(make(10), path)
  assert not list(findings.lines())[:-1]
  assert period == pytest.approx(0.1)
  key = path.removeprefix('steps/')
  spoilt.expect(
    list(check_stamps(make(15), path)[0].messages('fail')),
    'rate',
    f'{key} of record 4 of made grows by 0.06',
    "expected 0.1 s: correct control_hz=10 of 'robot'",
  )


def test_timestamps_too_coarse_to_tell_are_said():
  stamps = (SINCE_1970_NS / 1e9 + np.arange(50) / 10).astype(np.float32)
  findings, period = check_stamps(stamps)
  assert period is None
  spoilt.expect(
    list(findings.messages('note')), 'rate', 'counts in steps of 128 s, too coarse to tell the rate'
  )
  # What training does not read may hold anything.
  findings, period = check_stamps(np.full(50, np.nan, np.float32))
  assert period is None
  assert not findings.count('fail')


def test_rates_stored_with_episodes_are_compared():
  stamps = np.arange(50, dtype=np.float32) / 10
  findings, _ = check_stamps(stamps, **{'episode_metadata/fps': [30]})
  spoilt.expect(
    list(findings.messages('warn')),
    'rate',
    'episode_metadata/fps of record 4 of made is 30; expected control_hz=10 (or video_fps=2.5)',
  )
  assert not check_stamps(stamps, **{'episode_metadata/fps': [10]})[0].count('warn')


def test_clocks_are_found_by_their_names(tmp_path):
  f = tfds.features
  steps = {
    'observation': {'sensor_time': f.Scalar(np.int64), 'timestep_pad_mask': f.Scalar(np.int64)},
    'timestamp_ns': f.Scalar(np.int64),
    'lifetime': f.Scalar(np.float32),
  }
  metadata = {'fps': f.Scalar(np.int32), 'note': f.Text()}
  made = f.FeaturesDict({'steps': f.Dataset(steps), 'episode_metadata': metadata})
  row = {
    'observation': {'sensor_time': 0, 'timestep_pad_mask': 1},
    'timestamp_ns': 0,
    'lifetime': 0.0,
  }

  class Timed(synthetic.SyntheticRlds):
    def _generate_examples(self, episodes):
      for i, rows in enumerate(episodes):
        yield i, {'steps': rows, 'episode_metadata': {'fps': 10, 'note': ''}}

  builder = Timed({'train': [[row]]}, made, data_dir=str(tmp_path), file_format='array_record')
  builder.download_and_prepare()
  assert clock.find(builder.data_path) == clock.Clock(
    'steps/timestamp_ns', ('episode_metadata/fps',)
  )
