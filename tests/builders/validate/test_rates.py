"""Rows, timestamps and cameras of another rate than the record says are found and named."""

from __future__ import annotations

from tests.builders.validate import spoilt


def test_timestamps_of_another_rate(tmp_path):
  def edit(episodes):
    for e in episodes:
      # Recorded at 15 Hz; the record says 10.
      e['timestamp'] = e['timestamp'] * 10 / 15

  found = spoilt.failures(spoilt.make_dataset(tmp_path, edit))
  spoilt.expect(
    found,
    'rate',
    'timestamps of record 0 of',
    'are 0.06667 s apart (15 Hz); expected 0.1 s: correct control_hz=10',
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
    'timestamps of record 1 of',
    'do not grow: 1.9 s at step 19, 1.8 s',
  )
  spoilt.expect(
    list(findings.messages('warn')),
    'rate',
    'timestamps of record 2 of',
    'have 1 gaps, of 0.6 s after step 29',
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
