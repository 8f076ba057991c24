"""Nested arrays compared leaf by leaf; a list is as good as a tuple."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def assert_same(got: Any, want: Any) -> None:
  """To the bit, but that all NaN are one."""
  _compare(np.testing.assert_array_equal, got, want)


def assert_close(got: Any, want: Any, atol: float = 1e-5) -> None:
  """In float32, but for sums in another order."""
  _compare(functools.partial(np.testing.assert_allclose, atol=atol, rtol=1e-5), got, want)


def _compare(compare: Callable[..., None], got: Any, want: Any) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(got)
  for (path, here), there in zip(leaves, jax.tree.leaves(want), strict=True):
    compare(here, there, err_msg=jax.tree_util.keystr(path))
