"""Rows against weights: what is missing, unexpected or misshapen."""

from __future__ import annotations

from wam_jax.interop.table import rows


def test_mismatches_are_all_named():
  row = rows.Row('a.{}.weight', 'a/w', '(N K) D -> D N K', {'N': 2, 'K': 3, 'D': 4}, layers=2)
  assert rows.list_mismatches([row], {'a.0.weight': (6, 5), 'b': (1,)}) == [
    'a.1.weight is missing; expected [6, 4]',
    'b [1] is unexpected',
    'a.0.weight is [6, 5]; expected [6, 4]',
  ]
