"""What a camera's pictures are, by the files themselves, and how they are stored.

JPEG and PNG of 8-bit colour are stored as they are, byte for byte; what is resized, grey, of
another format, or a frame of a video is encoded as JPEG. Depth, 16 bits a pixel, is no picture.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import cv2
import numpy as np

from data import video

_STARTS = {b'\xff\xd8': 'jpeg', b'\x89PNG\r\n\x1a\n': 'png'}
_ENDS = {'jpeg': b'\xff\xd9', 'png': b'IEND\xaeB`\x82'}
_END_BYTES = 64  # In which the end mark must be: some encoders pad after it.


class Camera(NamedTuple):
  """A camera.

  Attributes:
    rows, columns: of its pictures, as the first one is.
    encoding: of what is stored of it, 'jpeg' or 'png'.
    told: what becomes of it, in words.
  """

  rows: int
  columns: int
  encoding: str
  told: str


class Picture(NamedTuple):
  """A picture that was read.

  Attributes:
    image_IJ3: uint8, BGR.
    format: 'jpeg', 'png', or '' for another.
    kept: whether its bytes are what a reader of RLDS expects.
    kind: what it is, in words.
  """

  image_IJ3: np.ndarray
  format: str
  kept: bool
  kind: str


def read(encoded: bytes) -> Picture:
  """An encoded picture.

  Raises:
    ValueError: it cannot be read, is cut off, or has more than 8 bits, as depth has.
  """
  found = next((name for start, name in _STARTS.items() if encoded.startswith(start)), '')
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if encoded else None
  if image is None:
    raise ValueError(f'an image of {len(encoded)} bytes is not a readable picture.')
  if found and _ENDS[found] not in encoded[-_END_BYTES:]:
    raise ValueError(f'an image of {len(encoded)} bytes is cut off.')
  channels = image.shape[2] if image.ndim == 3 else 1
  if image.dtype != np.uint8:
    raise ValueError(
      f'an image has {image.dtype.itemsize * 8} bits a pixel and {channels} channels, as depth '
      'has; it is no picture.'
    )
  # A camera may say in Exif how to turn its pictures, which readers of RLDS do not ask.
  is_turned = found == 'jpeg' and b'Exif\0' in encoded[:4096]
  if channels == 1:
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
  elif channels == 4:
    image = cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
  if is_turned:
    upright = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    is_turned = not np.array_equal(upright, image)
    image = upright
  kind = found.upper() or 'pictures of another format'
  kind += {1: ', grey', 4: ', with transparency'}.get(channels, '')
  kept = bool(found) and channels == 3 and not is_turned
  return Picture(image, found, kept, f'{kind}, turned by Exif' if is_turned else kind)


def plan(picture: Picture, size: tuple[int, int] | None, as_jpeg: bool) -> Camera:
  """What becomes of a camera whose first picture this is."""
  rows, columns = picture.image_IJ3.shape[:2]
  told = f'{rows}x{columns} {picture.kind}'
  if _is_kept(picture, size, as_jpeg):
    return Camera(rows, columns, picture.format, f'{told}, byte for byte')
  return Camera(rows, columns, 'jpeg', f'{told}, {_tell_encoding((rows, columns), size)}')


def plan_video(rows: int, columns: int, kind: str, size: tuple[int, int] | None) -> Camera:
  """What becomes of a camera of a video."""
  told = f'{rows}x{columns} {kind} video, {_tell_encoding((rows, columns), size)}'
  return Camera(rows, columns, 'jpeg', told)


def plan_array(array: np.ndarray, size: tuple[int, int] | None) -> Camera:
  """What becomes of a camera whose pictures are arrays of numbers."""
  rows, columns = from_array(array).shape[:2]
  told = f'{rows}x{columns} numbers, {_tell_encoding((rows, columns), size)}'
  return Camera(rows, columns, 'jpeg', told)


def from_array(array: np.ndarray) -> np.ndarray:
  """[rows, columns, 3] BGR of an array in RGB, with its channels first or last."""
  image = array if array.shape[-1] == 3 else np.moveaxis(array, 0, -1)
  return np.ascontiguousarray(image[..., ::-1])


def _tell_encoding(found: tuple[int, int], size: tuple[int, int] | None) -> str:
  resized = f'resized to {size[0]}x{size[1]} and ' if size and size != found else ''
  return f'{resized}encoded as JPEG of quality {video.JPEG_QUALITY}'


def _is_kept(picture: Picture, size: tuple[int, int] | None, as_jpeg: bool) -> bool:
  is_size = size in (None, picture.image_IJ3.shape[:2])
  return picture.kept and is_size and not (as_jpeg and picture.format != 'jpeg')


def store(
  encoded: bytes, camera: Camera, size: tuple[int, int] | None, as_jpeg: bool
) -> io.BytesIO:
  """What is stored of a picture: itself, or a JPEG of it.

  Raises:
    ValueError: as `read`; or it has another size than the camera's.
  """
  picture = read(encoded)
  check_size(picture.image_IJ3, camera)
  # A reader tells the two formats apart, so that a camera may have both.
  if _is_kept(picture, size, as_jpeg):
    return io.BytesIO(encoded)
  return video.to_jpeg(picture.image_IJ3, size)


def check_size(image_IJ3: np.ndarray, camera: Camera) -> None:
  """Raises ValueError if an image is not of the camera's size."""
  if image_IJ3.shape[:2] != camera[:2]:
    raise ValueError(
      f'an image has {image_IJ3.shape[:2]} pixels (rows, columns); the first one of its camera has '
      f'{camera[:2]}.'
    )
