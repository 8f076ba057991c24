"""Keys that are numbers in a range, and the checks of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def check_above_0(group: Any, where: str, *keys: str) -> None:
  """Raises unless these keys of `group`, which is called `where`, are finite and above 0."""
  _check(group, where, keys, lambda x: 0 < x < math.inf, 'must be a number above 0')


def check_at_least_0(group: Any, where: str, *keys: str) -> None:
  _check(group, where, keys, lambda x: 0 <= x < math.inf, 'must be 0 or more')


def check_shares(group: Any, where: str, *keys: str) -> None:
  """Shares, and noise levels."""
  _check(group, where, keys, lambda x: 0 <= x <= 1, 'must be from 0 to 1')


def _check(
  group: Any, where: str, keys: tuple[str, ...], is_valid: Callable[[float], bool], rule: str
) -> None:
  values = {key: getattr(group, key) for key in keys}
  wrong = [f'{where}.{key}={x}' for key, x in values.items() if not is_valid(x)]
  if wrong:
    raise ValueError(f'{", ".join(wrong)}: {rule}.')
