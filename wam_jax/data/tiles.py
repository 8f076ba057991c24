"""Augmented composite images straight into a batch: what `images.compose` makes, up to one level,
in half the time (tests/data/test_tiles.py, test_paints_what_compose_makes).

Reading and decoding a 180 x 320 JPEG takes about 0.3 ms; everything after it here less than half of
that. What it takes is little memory traffic: the colour matrix is applied where the image was
decoded, before the crop, exchanging red and blue in passing; the crop is resized into its place in
the batch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from wam_jax.data import images
from wam_jax.data import record as record_lib


class Painter:
  """Makes the composite images of one sample.

  Args:
    augmentation: applied to each view and frame alike.
  """

  def __init__(self, record: record_lib.Embodiment, augmentation: images.Augmentation):
    self._record = record
    self._augmentation = augmentation
    self._gaps = _find_gaps(record)
    self._memory: dict[tuple[Any, ...], np.ndarray] = {}

    # From blue, green, red as stored to red, green, blue; the last column is set for each image.
    self._change = np.zeros((3, 4), np.float32)
    self._change[:, :3] = augmentation.matrix[:, ::-1]

    # What a pixel's blue, green and red add, on average over the image, to every pixel of it.
    luma = images.GRAY[::-1] * augmentation.brightness * (1 - augmentation.contrast)
    self._contrast = luma.tolist()

  def paint(self, decode: Callable[[str], np.ndarray], out_IJ3: np.ndarray) -> None:
    """Writes the composite image of one step.

    Args:
      decode: view key to a fresh [rows, columns, 3] uint8 image, blue first; it is changed.
      out_IJ3: uint8, RGB; memory of any content.
    """
    for rows, columns in self._gaps:
      out_IJ3[rows, columns] = 0
    for view in self._record.views:
      self._paint_view(view, decode(view.key), images.get_tile(out_IJ3, view))

  def _paint_view(self, view: record_lib.View, image_IJ3: np.ndarray, tile_IJ3: np.ndarray) -> None:
    crop_IJ3 = self._augmentation.crop(images.flip(image_IJ3, view.flip))
    rows = view.height
    columns = view.width // view.repeat
    enlarging = rows >= crop_IJ3.shape[0] and columns >= crop_IJ3.shape[1]
    enlarging &= self._record.resize == 'bilinear'

    # `images.resize` rounds down; half a level less before rounding to nearest is the same on
    # average.
    self._change[:, 3] = self._compute_offset(crop_IJ3) - (0.5 if enlarging else 0.0)
    cv2.transform(image_IJ3, self._change, dst=image_IJ3)  # And with it the crop, a view of it.

    if enlarging:
      pixels_IJ4 = self._enlarge(crop_IJ3, rows, columns)
    else:
      pixels_IJ4 = self._widen(images.resize(crop_IJ3, rows, columns, self._record.resize))
    if view.repeat > 1:
      pixels_IJ4 = self._repeat(pixels_IJ4, view.repeat)
    cv2.cvtColor(pixels_IJ4, cv2.COLOR_RGBA2RGB, dst=tile_IJ3)

  def _compute_offset(self, crop_IJ3: np.ndarray) -> float:
    """What contrast adds to every pixel."""
    blue, green, red, _ = cv2.sumElems(crop_IJ3)
    by_blue, by_green, by_red = self._contrast
    total = blue * by_blue + green * by_green + red * by_red
    pixels = crop_IJ3.shape[0] * crop_IJ3.shape[1]
    return total / pixels

  def _enlarge(self, image_IJ3: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Linear interpolation, rounded to nearest; [rows, columns, 4].

    OpenCV has faster and more exact code for x86, which it uses only where told that its own
    results need not be met.
    """
    out = self._get_memory((rows, columns, 4), np.uint8)
    cv2.ipp.setUseIPP_NotExact(True)  # Of this thread.
    pixels_IJ4 = cv2.resize(self._widen(image_IJ3), (columns, rows), dst=out)
    cv2.ipp.setUseIPP_NotExact(False)
    return pixels_IJ4

  def _widen(self, image_IJ3: np.ndarray) -> np.ndarray:
    """With a fourth channel: OpenCV resizes and interleaves pixels of four bytes nearly twice as
    fast.
    """
    out = self._get_memory((*image_IJ3.shape[:2], 4), np.uint8)
    return cv2.cvtColor(image_IJ3, cv2.COLOR_RGB2RGBA, dst=out)

  def _repeat(self, pixels_IJ4: np.ndarray, times: int) -> np.ndarray:
    """Each column `times` times, side by side."""
    rows, columns = pixels_IJ4.shape[:2]
    # A pixel of four bytes is one number, and the copies are channels.
    wide = self._get_memory((rows, columns, times), np.int32)
    cv2.merge([pixels_IJ4.view(np.int32)] * times, dst=wide)
    return wide.view(np.uint8).reshape(rows, -1, 4)

  def _get_memory(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory of a shape and dtype that is used for every image: fresh pages would cost as much as
    the arithmetic.
    """
    key = (shape, dtype)
    if key not in self._memory:
      self._memory[key] = np.empty(shape, dtype)
    return self._memory[key]


@functools.lru_cache(maxsize=64)
def _find_gaps(record: record_lib.Embodiment) -> tuple[tuple[slice, slice], ...]:
  """Rectangles of the composite that no view covers."""
  free_IJ = np.ones(record.composite, bool)
  for view in record.views:
    images.get_tile(free_IJ, view)[:] = False
  # In rows that are alike, stretches of columns that are alike.
  return tuple(
    (rows, columns)
    for rows in _find_runs(free_IJ)
    for columns in _find_runs(free_IJ[rows.start])
    if free_IJ[rows.start, columns.start]
  )


def _find_runs(values: np.ndarray) -> list[slice]:
  """Stretches of the first axis in which all entries are the same."""
  differs = (values[1:] != values[:-1]).reshape(len(values) - 1, -1)
  changed = differs.any(1)
  edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(values)]
  return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
