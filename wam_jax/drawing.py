"""What pictures for people are made of: words in a font that can be read, enlarged frames, MP4.

Owns no layout. Needs the extra `sim`, and no JAX.
"""

from __future__ import annotations

import contextlib
import fractions
import functools
import os
from collections.abc import Iterator
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

Color = tuple[int, int, int]
_CRF = '10'  # Of H.264: hardly any loss.


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
  return ImageFont.load_default(size)


# A film writes the same words on each of its pictures.
@functools.lru_cache(maxsize=256)
def _fit(text: str, size: int, columns: int) -> int:
  """The largest size up to `size` in which `text` is no wider than so many columns; 8 at least."""
  while size > 8 and _font(size).getlength(text) > columns:
    size -= 1
  return size


def write(
  picture: np.ndarray, text: str, at: tuple[int, int], size: int, color: Color, anchor: str = 'la'
) -> None:
  """Writes `text` on `picture` [rows, columns, 3] uint8, smaller where it would not fit.

  Args:
    at: column and row of the anchor.
    size: of the font, pixels.
    anchor: which corner of the text stands there, as Pillow names them: 'la' the upper left one,
      'ra' the upper right one.
  """
  room = at[0] if anchor[0] == 'r' else picture.shape[1] - at[0]
  font = _font(_fit(text, size, room - 4))
  image = Image.fromarray(picture)
  ImageDraw.Draw(image).text(at, text, fill=color, font=font, anchor=anchor)
  picture[:] = np.asarray(image)


def label(picture: np.ndarray, text: str) -> None:
  """Writes `text` on a dark chip in the lower left corner of `picture`."""
  size = 13
  rows, columns = size + 8, min(picture.shape[1], round(_font(size).getlength(text)) + 14)
  chip = picture[-rows:, :columns]
  chip[:] = chip // 4
  write(chip, text, (7, 2), size, (255, 255, 255))


def enlarge(frame_IJ3: np.ndarray, rows: int) -> np.ndarray:
  """`frame_IJ3` blown up to about `rows` rows by whole factors, every pixel a square."""
  factor = max(1, round(rows / frame_IJ3.shape[0]))
  size = (factor * frame_IJ3.shape[1], factor * frame_IJ3.shape[0])
  # As `np.repeat` would, faster.
  return cv2.resize(np.ascontiguousarray(frame_IJ3), size, interpolation=cv2.INTER_NEAREST)


def make_even(picture: np.ndarray, color: Color) -> np.ndarray:
  """Sides padded by `color` to even lengths, as the codec of MP4 needs."""
  rows, columns, _ = picture.shape
  return cv2.copyMakeBorder(
    picture, 0, rows % 2, 0, columns % 2, borderType=cv2.BORDER_CONSTANT, value=color
  )


class Mp4:
  """A film that is being written: H.264, by the FFmpeg of PyAV.

  In this process: a program that is started by a fork may hang where there are threads, as there
  are with JAX, and Ctrl-C would end it before its film is whole.
  """

  def __init__(self, path: str | os.PathLike[str], fps: float):
    """
    Raises:
      OSError: nothing can be written there.
    """
    self._path = os.fspath(path)
    with self._as_errors_of_the_system():
      self._container = av.open(self._path, 'w', format='mp4')
    self._fps = fractions.Fraction(fps).limit_denominator(1000)
    self._stream: Any = None

  def append_data(self, picture: np.ndarray) -> None:
    """Adds a picture, uint8 [rows, columns, 3] with even sides, all of one size.

    Raises:
      OSError: the disk is full.
    """
    if self._stream is None:
      self._stream = self._container.add_stream('libx264', self._fps, {'crf': _CRF})
      self._stream.height, self._stream.width = picture.shape[:2]
      self._stream.pix_fmt = 'yuv420p'
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), 'rgb24')
    with self._as_errors_of_the_system():
      self._container.mux(self._stream.encode(frame))

  def close(self) -> None:
    """The film is whole.

    Raises:
      OSError: the disk is full.
    """
    stream, self._stream = self._stream, None
    with self._as_errors_of_the_system():
      try:
        if stream is not None:
          self._container.mux(stream.encode(None))
      finally:
        self._container.close()

  @contextlib.contextmanager
  def _as_errors_of_the_system(self) -> Iterator[None]:
    """PyAV's own know no other name of the file, which those who write whole files give."""
    try:
      yield
    except av.FFmpegError as e:
      raise OSError(e.errno, e.strerror, self._path) from e
