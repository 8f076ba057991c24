"""Fixtures of the builders' tests."""

from __future__ import annotations

import pytest

from tests.data import synthetic
from wam_jax.data import beside


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
  """Nothing is cached outside the test's directory."""
  monkeypatch.setattr(beside, 'FALLBACK', tmp_path / 'fallback')


@pytest.fixture(scope='session')
def clock_path(tmp_path_factory) -> str:
  """Eight synthetic episodes of 12 to 33 steps; do not change it."""
  return synthetic.make_dataset(tmp_path_factory.mktemp('clock'), range(12, 36, 3))
