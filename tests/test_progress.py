"""What long work says of itself, on a terminal, in a log, and from which process."""

from __future__ import annotations

import io
import re
import sys
import types

import pytest

from wam_jax import progress


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  def isatty(self):
    return True


class Clock:
  """Seconds that pass when a test says so."""

  def __init__(self):
    self.now_s = 0.0

  def __call__(self):
    return self.now_s


def run(stream, steps, every_s=progress.EVERY_S, **options):
  """Lines shown while one step a second is done; the second thing is all that was written."""
  clock = Clock()
  line = progress.Line(stream, every_s, clock)
  with progress.Progress('step', 50, line=line, clock=clock, **options) as shown:
    for step in steps:
      clock.now_s += 1
      shown.update(step, 'loss 0.5000')
  written = stream.getvalue()
  parts = written.replace('\r', '\n').splitlines()
  return [part[part.index('step') :].rstrip() for part in parts if 'step' in part], written


@pytest.mark.parametrize(
  ('stream', 'steps'),
  [
    (io.StringIO(), [11, 21, 31]),  # Every ten seconds.
    (Terminal(), list(range(2, 32))),  # At once; the first step has no rate yet.
  ],
)
def test_rate_and_time_left_are_shown(stream, steps):
  lines, _ = run(
    stream, range(1, 32), done=None, show_rate=lambda rate: f'{4 * rate:.1f} samples/s'
  )
  lines = lines[: len(steps)]  # On a terminal the last state stays, on a line of its own.
  assert [int(line.split()[1].split('/')[0]) for line in lines] == steps
  assert lines[0] == (
    f'step {steps[0]}/50 ({2 * steps[0]}%)  loss 0.5000  4.0 samples/s  ETA 0:00:{50 - steps[0]}'
  )


def test_a_log_has_no_carriage_returns():
  _, written = run(io.StringIO(), range(1, 51), every_s=5)
  assert '\r' not in written
  assert len(written.splitlines()) == 10
  assert written.splitlines()[-1] == 'step 50/50 (100%)  loss 0.5000  1/s  ETA 0:00:00'
  assert '\r' in run(Terminal(), range(1, 51))[1]


def test_quick_work_says_nothing(capsys):
  assert list(progress.track(range(3), 'reading', 3)) == [0, 1, 2]
  # Eight seconds, of the ten between two lines of a log.
  assert run(io.StringIO(), range(1, 9)) == ([], '')
  assert capsys.readouterr() == ('', '')


def test_bytes_are_gigabytes_and_other_units_have_their_name():
  stream = io.StringIO()
  line = progress.Line(stream, every_s=-1.0)
  sizes = [10**9, 2 * 10**9, 5 * 10**9]
  got = progress.track(sizes, 'copy:', 8e9, 'B', amount=lambda size: size / 2, line=line)
  assert list(got) == sizes
  lines = stream.getvalue().splitlines()
  assert [text.split('  ')[0] for text in lines] == [
    'copy: 0.5/8 GB (6%)',
    'copy: 1.5/8 GB (18%)',
    'copy: 4/8 GB (50%)',
  ]
  rest = r'\S+ GB/s  ETA (\d+ days?, )?\d+:\d\d:\d\d'
  assert all(re.fullmatch(rest, text.split('  ', 1)[1]) for text in lines)
  list(progress.track(range(123456, 123458), 'read', 123458, 'episodes', line=line))
  assert 'read 1/123458 episodes (0%)  ' in stream.getvalue()


def test_work_that_was_done_before_counts_in_the_amount_alone():
  stream, clock = io.StringIO(), Clock()
  line = progress.Line(stream, clock=clock)
  shown = progress.Progress('frames', 100, 'frames', done=60, line=line, clock=clock)
  clock.now_s = 20.0
  shown.add(10)
  # Ten frames in 20 s: 60 that were there before would make it 3.5/s.
  assert stream.getvalue() == 'frames 70/100 frames (70%)  0.5/s  ETA 0:01:00\n'


def test_a_line_without_an_amount():
  clock, log, terminal = Clock(), io.StringIO(), Terminal()
  lines = [progress.Line(stream, 10, clock) for stream in (log, terminal)]
  for text in ('tracing, 0 s', 'tracing, 5 s', 'compiling, 10 s'):
    for line in lines:
      line(text)
    clock.now_s += 5
  for line in lines:
    line.close()
  assert log.getvalue() == 'tracing, 0 s\ncompiling, 10 s\n'
  assert [text.strip() for text in terminal.getvalue().split('\r') if text.strip()] == [
    'tracing, 0 s',
    'tracing, 5 s',
    'compiling, 10 s',
  ]
  assert terminal.getvalue().endswith('\r')


def test_what_is_said_stands_above_the_line(monkeypatch):
  stream = Terminal()
  monkeypatch.setattr(sys, 'stdout', stream)
  line = progress.Line(stream)
  line('at work')
  progress.say('saved')
  parts = [text.strip() for text in stream.getvalue().replace('\r', '\n').splitlines()]
  assert [text for text in parts if text] == ['at work', 'saved', 'at work']


def test_only_the_first_process_speaks(monkeypatch, capsys):
  def speak(number):
    job = types.SimpleNamespace(is_initialized=lambda: True)
    jax = types.SimpleNamespace(distributed=job, process_index=lambda: number)
    monkeypatch.setitem(sys.modules, 'jax', jax)
    progress.say('hello')
    lines, _ = run(io.StringIO(), range(1, 51))
    return capsys.readouterr().out, len(lines)

  assert speak(0) == ('hello\n', 5)
  assert speak(1) == ('', 0)


def test_asking_who_is_first_starts_no_backend(monkeypatch):
  def refuse():
    pytest.fail('must not ask before jax.distributed is there')

  job = types.SimpleNamespace(is_initialized=lambda: False)
  monkeypatch.setitem(
    sys.modules, 'jax', types.SimpleNamespace(distributed=job, process_index=refuse)
  )
  assert progress.is_first_process()
  # A command that has not imported JAX must not do so for this.
  monkeypatch.delitem(sys.modules, 'jax')
  assert progress.is_first_process()
