"""Encoded images by their ends and headers: whole, and of the size and colours that training takes.

A header that says nothing else than features.json promises is believed; any other image is given to
the decoder of training, which decides. So every image of a dataset is looked at, and few decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from wam_jax.data import episode as episode_lib

JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
JPEG_END, PNG_END = b'\xff\xd9', b'IEND\xaeB`\x82'
_END_BYTES = 64  # In which the end mark must be: some encoders pad after it.
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # JPEG markers without a length.
# JPEG markers of a frame header; 0xC4, 0xC8 and 0xCC between them are others.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def find_problem(episode: episode_lib.Episode, key: str, step: int) -> str:
  """What is wrong with an image, as far as it can be told without decoding those that look right;
  ''.
  """
  return inspect(episode, key, step)[1]


def inspect(episode: episode_lib.Episode, key: str, step: int) -> tuple[int, str]:
  """(bytes, what is wrong) of an image, which is read once unless it looks wrong."""
  where = f'image {key!r} of step {step} of {episode.where}'
  try:
    image = episode.encoded[key][step]
  except ValueError as e:
    return 0, f'{where}: {e} {episode.remedy}'
  if cut := _find_cut(image):
    return len(image), (
      f'{where} is a truncated {cut} ({len(image)} bytes); expected a whole one: encode it again. '
      f'{episode.remedy}'
    )
  if _is_promised(_read_size(image), episode.image_shape[key]):
    return len(image), ''
  try:
    episode.decode_bgr(key, step)
  except ValueError as e:
    return len(image), f'{e} It begins with {image[:4].hex(" ") or "nothing"}.'
  return len(image), ''


def _find_cut(image: bytes) -> str:
  """What kind of image it is the beginning of; '' if it is whole, or no kind that tells."""
  end = image[-_END_BYTES:]
  if image[:2] == JPEG and JPEG_END not in end:
    return 'JPEG'
  if image[:8] == PNG and PNG_END not in end:
    return 'PNG'
  if (
    image[:4] == b'RIFF'
    and len(image) >= 8
    and len(image) < 8 + int.from_bytes(image[4:8], 'little')
  ):
    return 'WebP'
  return ''


def _is_promised(size: tuple[int, int] | None, shape: Sequence[int | None]) -> bool:
  """Whether an image with this header decodes to what features.json says, in colours of 8 bits."""
  if size is None or len(shape) != 3:
    return False
  return all(want in (None, got) for want, got in zip(shape, (*size, 3)))


def _read_size(image: bytes) -> tuple[int, int] | None:
  """(rows, columns) of a JPEG or PNG in colours of 8 bits; None of any other, and of damaged
  headers.
  """
  try:
    if image[:8] == PNG:
      columns, rows, bits, kind = struct.unpack('>IIBB', image[16:26])
      return (rows, columns) if (bits, kind) == (8, 2) else None  # 2: colours, without alpha.
    if image[:2] == JPEG:
      return _read_jpeg_size(image)
  except (struct.error, IndexError):
    return None
  return None


def _read_jpeg_size(image: bytes) -> tuple[int, int] | None:
  """As `_read_size`, by the frame header, which stands after segments of other kinds."""
  place = 2
  while image[place] == 0xFF:
    marker = image[place + 1]
    if marker in _FRAMES:
      bits, rows, columns, components = struct.unpack('>BHHB', image[place + 4 : place + 10])
      return (rows, columns) if (bits, components) == (8, 3) else None
    if marker in _ALONE or marker == 0xFF:  # The latter fills.
      place += 1 if marker == 0xFF else 2
    else:
      place += 2 + int.from_bytes(image[place + 2 : place + 4], 'big')
  return None
