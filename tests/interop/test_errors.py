"""Errors list what is wrong, up to ten."""

from __future__ import annotations

import pytest

from wam_jax.interop import errors


def test_only_ten_problems_are_listed():
  errors.fail('title', [], 'remedy')
  with pytest.raises(ValueError, match=r'title\n  0\n(.*\n){9}  \.\.\. and 2 more\nremedy'):
    errors.fail('title', map(str, range(12)), 'remedy')
