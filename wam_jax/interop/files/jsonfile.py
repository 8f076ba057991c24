"""JSON files that hold one object of named values: configs, indices, statistics."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from wam_jax import pointers


def read(path: epath.Path) -> dict[str, Any]:
  """The object in the file.

  Raises:
    ValueError: no such file, or another content.
  """
  if not path.exists():
    raise ValueError(f'{path} does not exist.')
  pointers.check(path)
  try:
    content = json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f'{path} is not JSON ({e}); copy or download it again.') from e
  if not isinstance(content, dict):
    raise ValueError(f'{path} holds {type(content).__name__}, not an object of named values.')
  return content


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """`content`, indented.

  Raises:
    ValueError: a number in it is NaN or infinite, which is no JSON.
  """
  path.write_text(json.dumps(content, indent=2, allow_nan=False) + '\n')
