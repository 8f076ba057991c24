"""Fixtures of the tests of `data.validate`."""

from __future__ import annotations

import pytest

from tests.builders.validate import spoilt


@pytest.fixture(scope='session')
def good_path(tmp_path_factory) -> str:
  """A dataset with nothing wrong; do not change it."""
  return spoilt.make_dataset(tmp_path_factory.mktemp('good'))
