"""Whether what features.json promises of each key is what a record takes it for: pictures, numbers,
texts.

Said when a dataset is opened, before anything of it is read: a camera of 16 bits would otherwise
stop a run at its first picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wam_jax.data import record as record_lib


def list_problems(specs: Mapping[str, Any], record: record_lib.Embodiment) -> Iterator[str]:
  """Keys that are there and of another kind than the record takes them for, in words.

  Args:
    specs: feature path under `steps/` to its per-step shape and dtype.
  """
  numbers = [*(f'observation/{s.key}' for s in record.state), *(s.key for s in record.action)]
  checks = [
    *((f'observation/{view.key}', _is_picture, _PICTURE) for view in record.views),
    *((key, _is_vector, _VECTOR) for key in dict.fromkeys(numbers)),
    *((key, _is_language, _TEXT) for key in record.language),
  ]
  for key, is_right, expected in checks:
    if key in specs and not is_right(specs[key]):
      yield f'{key!r} is {describe(specs[key])}, expected {expected}'


_PICTURE = 'a picture: uint8 (rows, columns, 3)'
_VECTOR = 'numbers of one shape at every step'
_TEXT = 'a text, or the codes of its characters'


def describe(spec: Any) -> str:
  """What a feature is, as features.json says."""
  if _kind(spec) in 'OSU':
    return 'text' if not spec.shape else f'texts of shape {tuple(spec.shape)}'
  return f'{np.dtype(spec.np_dtype).name} {tuple(spec.shape)}'


def _kind(spec: Any) -> str:
  return np.dtype(spec.np_dtype).kind


def _is_picture(spec: Any) -> bool:
  # Encoded pictures may also be stored as the bytes that they are.
  if _kind(spec) in 'OS' and not spec.shape:
    return True
  has_colours = len(spec.shape) == 3 and spec.shape[-1] in (3, None)
  return np.dtype(spec.np_dtype) == np.uint8 and has_colours


def _is_vector(spec: Any) -> bool:
  return _kind(spec) in 'fiub' and None not in spec.shape


def is_text(spec: Any) -> bool:
  """Whether a feature is a text."""
  return not spec.shape and _kind(spec) in 'OSU'


def is_coded_text(spec: Any) -> bool:
  """Whether a feature may be a text as the numbers of its characters, as in Language-Table."""
  return len(spec.shape) == 1 and _kind(spec) in 'iu'


def _is_language(spec: Any) -> bool:
  return is_text(spec) or (is_coded_text(spec) and None not in spec.shape)
