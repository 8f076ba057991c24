"""Keys that have a choice of values, and the check of them."""

from __future__ import annotations

import functools
import typing
from typing import Any, Literal

Dtype = Literal['float32', 'bfloat16']


# Cached, because annotations are strings here, which every call would evaluate again.
@functools.cache
def list_choices(group: type) -> dict[str, tuple[str, ...]]:
  """The values that each key of a group may have, for the keys that have a choice."""
  hints = typing.get_type_hints(group)
  return {key: typing.get_args(h) for key, h in hints.items() if typing.get_origin(h) is Literal}


def check_choices(group: Any, where: str) -> None:
  """Raises unless each key of `group` has one of its values; `build` tells of a config file."""
  for key, choices in list_choices(type(group)).items():
    check_choice(f'{where}.{key}', getattr(group, key), choices)


def check_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f'{where}={value!r} must be one of {choices}.')
