"""Fixtures of the data tests; what they are made of is in synthetic.py."""

from __future__ import annotations

import pytest

from tests.data import synthetic
from wam_jax.data import beside
from wam_jax.data import embodiments


@pytest.fixture(autouse=True)
def clocks(monkeypatch, tmp_path):
  """The synthetic robots are in the table, and nothing is cached outside the test's directory."""
  for record in (synthetic.CLOCK, synthetic.RELATIVE, synthetic.SLOW, synthetic.VIDEO):
    monkeypatch.setitem(embodiments.EMBODIMENTS, record.name, record)
  monkeypatch.setattr(beside, 'FALLBACK', tmp_path / 'fallback')


@pytest.fixture(scope='session')
def clock_path(tmp_path_factory) -> str:
  """Eight synthetic episodes of 12 to 33 steps; do not change it."""
  return synthetic.make_dataset(tmp_path_factory.mktemp('clock'), range(12, 36, 3))
