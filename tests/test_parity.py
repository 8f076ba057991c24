"""The golden files themselves: none is missing, so that no comparison is left out unnoticed."""

import numpy as np
import pytest

from tests import parity


def test_every_kind_of_file_is_there():
  assert [prefix for prefix in parity.PREFIXES if not parity.files(parity.HERE, prefix)] == []
  found = {path for prefix in parity.PREFIXES for path in parity.files(parity.HERE, prefix)}
  assert found == set(parity.HERE.glob('*.npz'))


def test_an_error_beyond_the_tolerance_or_not_a_number_fails(request):
  for got in (1.2, np.nan):
    with pytest.raises(AssertionError, match='part: largest error'):
      parity.check(request, 'part', [got], [1.0], absolute=0.1)
  with pytest.raises(AssertionError, match=r'shape \(1,\), expected \(2,\)'):
    parity.check(request, 'part', [1.0], [1.0, 1.0])
  request.node.user_properties.clear()


def test_the_table_shows_what_came_closest_to_its_tolerance():
  lines = parity.table([('a', 1e-6, 1e-4), ('a', 5e-5, 1e-4), ('b', 0.0, 0.0)])
  assert lines[1].split() == ['a', '5.00e-05', '1e-04']
  assert lines[2].split() == [
    'b',
    '0.00e+00',
    '0e+00',
  ]
