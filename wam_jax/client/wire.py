"""Messages as bytes: msgpack with NumPy arrays, as openpi, RoboArena and DreamZero send them.

What arrives is checked before anything is made of it: no pickle, no dtype that is not on the list,
no more items than the limits say. Owns no meaning of a message. Source: openpi-client,
msgpack_numpy.py.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import msgpack
import numpy as np

# Every dtype that a message may hold, as `dtype.str` writes it; texts beside them.
_DTYPES = {
  name: np.dtype(name)
  for name in (
    '|b1',
    '|u1',
    '|i1',
    '<u2',
    '<u4',
    '<u8',
    '<i2',
    '<i4',
    '<i8',
    '<f2',
    '<f4',
    '<f8',
  )
}
_TEXT = re.compile(r'<U([1-9][0-9]{0,3})\Z')
_MOST_AXES = 8
_MOST_ROWS = 2**31

# Bytes of the value, or of the length before it, after each head byte of msgpack.
_NUMBERS = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_NUMBERS.update({0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8})
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


class Malformed(ValueError):
  """A message that is not what the protocol says; the text can be shown to whoever sent it."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a message may hold; the length of the whole is the transport's.

  Attributes:
    depth: maps and lists inside each other.
    items: keys, values and elements together; an array of NumPy is about ten.
    text: bytes of one text.
  """

  depth: int = 8
  items: int = 4096
  text: int = 16384


LIMITS = Limits()


def pack(message: Any) -> bytes:
  """The bytes of a message of maps, lists, texts, numbers and arrays.

  Raises:
    ValueError: an array has a dtype that no reader takes.
  """
  return msgpack.packb(message, default=_pack_array)


def unpack(packed: bytes, limits: Limits = LIMITS) -> Any:
  """The message; its arrays are views of `packed`, read-only.

  Raises:
    Malformed: it is no such message.
  """
  check(packed, limits)
  try:
    return msgpack.unpackb(packed, object_hook=_unpack_array)
  except Malformed:
    raise
  except Exception as e:  # msgpack has many, and passes on those of texts that are no UTF-8.
    raise Malformed('the message is not msgpack: ' + type(e).__name__) from e


def check(packed: bytes, limits: Limits = LIMITS) -> None:
  """Reads the heads of all items, so that nothing large is made of a small message.

  Raises:
    Malformed: it is cut short, goes on after its end, holds an extension type, or exceeds a limit.
  """
  at = 0
  items = 0
  waiting = [1]  # Of each map or list that is open, the items that are still to come.
  while waiting:
    if waiting[-1] == 0:
      waiting.pop()
      continue
    waiting[-1] -= 1
    items += 1
    inside, at = _read_head(packed, at, limits)
    if inside is not None:
      waiting.append(inside)
      if len(waiting) > limits.depth + 1:
        raise Malformed(f'maps and lists lie deeper in each other than {limits.depth}')
    # A list says its length before its items come.
    if items + sum(waiting) > limits.items:
      raise Malformed(f'the message holds more than {limits.items} items')
  if at != len(packed):
    raise Malformed(f'the message goes on for {len(packed) - at} bytes after its end')


def _read_head(packed: bytes, at: int, limits: Limits) -> tuple[int | None, int]:
  """(items inside a map or list, None for anything else; where what follows begins)."""
  head, at = _read_number(packed, at, 1)
  if head < 0x80 or head >= 0xE0 or head in _NUMBERS:
    return None, _skip(packed, at, _NUMBERS.get(head, 0))
  if head <= 0x8F:
    return 2 * (head & 0x0F), at
  if head <= 0x9F:
    return head & 0x0F, at
  if head <= 0xBF:
    return None, _skip(packed, at, head & 0x1F)
  for lengths in (_BINARIES, _TEXTS, _LISTS, _MAPS):
    if head in lengths:
      length, at = _read_number(packed, at, lengths[head])
      if lengths is _LISTS or lengths is _MAPS:
        return (2 * length if lengths is _MAPS else length), at
      if lengths is _TEXTS and length > limits.text:
        raise Malformed(f'a text of {length} bytes is longer than {limits.text}')
      return None, _skip(packed, at, length)
  raise Malformed('the message holds an extension type of msgpack')


def _read_number(packed: bytes, at: int, size: int) -> tuple[int, int]:
  return int.from_bytes(packed[at : at + size], 'big'), _skip(packed, at, size)


def _skip(packed: bytes, at: int, size: int) -> int:
  if at + size > len(packed):
    raise Malformed('the message is cut short')
  return at + size


def _pack_array(value: Any) -> Any:
  if isinstance(value, (np.ndarray, np.generic)) and _find_dtype(value.dtype.str) is None:
    raise ValueError(f'An array of {value.dtype} cannot be sent; send numbers or texts.')
  if isinstance(value, np.ndarray):
    return {
      b'__ndarray__': True,
      b'data': value.tobytes(),
      b'dtype': value.dtype.str,
      b'shape': value.shape,
    }
  if isinstance(value, np.generic):
    return {b'__npgeneric__': True, b'data': value.item(), b'dtype': value.dtype.str}
  raise ValueError(f'A {type(value).__name__} cannot be sent.')


def _unpack_array(value: dict[Any, Any]) -> Any:
  # The keys are bytes as openpi sends them, and texts from clients in other languages.
  fields = {key.decode('ascii', 'replace') if isinstance(key, bytes) else key for key in value}
  if '__ndarray__' not in fields and '__npgeneric__' not in fields:
    return value
  named = {key.decode() if isinstance(key, bytes) else key: part for key, part in value.items()}
  dtype = _find_dtype(named.get('dtype'))
  if dtype is None:
    raise Malformed('an array has a dtype that is not one of {}'.format(', '.join(sorted(_DTYPES))))
  if '__npgeneric__' in named:
    return _make_scalar(dtype, named.get('data'))
  return _make_array(dtype, named.get('shape'), named.get('data'))


def _find_dtype(name: Any) -> np.dtype | None:
  """The dtype of a name on the list; others never reach NumPy, which reads programs into some."""
  if isinstance(name, bytes):
    name = name.decode('ascii', 'replace')
  if not isinstance(name, str):
    return None
  if name in _DTYPES:
    return _DTYPES[name]
  return np.dtype(name) if _TEXT.match(name) else None


def _make_scalar(dtype: np.dtype, value: Any) -> Any:
  if not isinstance(value, (bool, int, float, str)):
    raise Malformed(f'a scalar holds a {type(value).__name__}')
  try:
    return dtype.type(value)
  except (ValueError, OverflowError) as e:
    raise Malformed(f'a scalar does not fit its dtype {dtype.str}') from e


def _make_array(dtype: np.dtype, shape: Any, content: Any) -> np.ndarray:
  sizes = shape if isinstance(shape, (list, tuple)) else [None]
  whole = all(type(size) is int and 0 <= size < _MOST_ROWS for size in sizes)
  if not whole or len(sizes) > _MOST_AXES:
    raise Malformed(f'an array has no shape of at most {_MOST_AXES} sizes')
  if not isinstance(content, bytes):
    raise Malformed('the data of an array are no bytes')
  count = 1
  for size in sizes:
    count *= size
  if count * dtype.itemsize != len(content):
    raise Malformed(
      f'an array of shape {list(sizes)} and dtype {dtype.str} has {len(content)} bytes'
    )
  if dtype.kind == 'U' and not _is_text(content):
    raise Malformed('an array of texts holds numbers that are no characters')
  return np.ndarray(tuple(sizes), dtype, content)


def _is_text(content: bytes) -> bool:
  """Whether all are characters of Unicode, which UTF-8 can write; NumPy takes any numbers."""
  codes = np.ndarray(len(content) // 4, '<u4', content)
  return bool(((codes < 0xD800) | (codes > 0xDFFF) & (codes <= 0x10FFFF)).all())
