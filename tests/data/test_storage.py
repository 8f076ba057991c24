"""What long work says of itself."""

from __future__ import annotations

import re

from wam_jax.data import storage


def test_progress_tells_amount_rate_and_time_left(capsys):
  items = storage.progress(
    [1, 2, 5], 8, 'copying', every_s=-1.0, amount=lambda item: item / 2, unit=' GB'
  )
  assert list(items) == [1, 2, 5]
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(',')[0] for line in lines] == [
    'copying: 0.5/8 GB',
    'copying: 1.5/8 GB',
    'copying: 4/8 GB',
  ]
  assert all(re.fullmatch(r'copying: \S+ GB, \S+ GB/s, \d+ s left', line) for line in lines)


def test_progress_counts_items_and_keeps_quiet_when_it_is_quick(capsys):
  assert list(storage.progress(range(3), 3, 'reading')) == [0, 1, 2]
  assert not capsys.readouterr().err
  list(storage.progress(range(123456, 123458), 123458, 'reading', every_s=-1.0))
  assert capsys.readouterr().err.startswith('reading: 1/123458, ')
