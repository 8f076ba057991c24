"""Camera images to the composite that the model sees: flips, crops, colour, sizes and tiling.

Shared by training and control, so that both see the same pixels. Augmented images of training alone
go through `tiles.Painter`, which makes what `compose` makes, up to one level, in half the time
(tests/data/test_tiles.py, test_paints_what_compose_makes).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
import threadpoolctl

from wam_jax.data import record as record_lib

CROP = 0.95  # Share of rows and columns that augmented training sees.
GRAY = np.float32([0.299, 0.587, 0.114])  # Luma of red, green and blue.
BAND = 16  # Output rows that are averaged at a time when an image shrinks.


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """A crop and a colour change, one for all views and frames of a sample.

  The colour change is one matrix, so that it costs a tenth of decoding the image. The reference
  changes brightness, contrast, saturation and hue one after the other in random order, clips after
  each, and turns the hue of HSV; here their order is fixed, values are clipped once, and hue is an
  angle about the grey axis.

  Attributes:
    crop_row, crop_column: where the crop lies, 0 top or left, 1 bottom or right.
    brightness, contrast, saturation: factors, 1 for no change.
    hue: rotation in turns; a third takes red to green.
  Source: DreamZero `groot/vla/data/transform/video.py`.
  """

  crop_row: float = 0.5
  crop_column: float = 0.5
  brightness: float = 1.0
  contrast: float = 1.0
  saturation: float = 1.0
  hue: float = 0.0

  def crop(self, image_IJ3: np.ndarray) -> np.ndarray:
    """The crop of a view at its stored resolution, as a view of the image."""
    I, J = image_IJ3.shape[:2]
    rows = int(CROP * I)
    columns = int(CROP * J)
    top = round(self.crop_row * (I - rows))
    left = round(self.crop_column * (J - columns))
    return image_IJ3[top : top + rows, left : left + columns]

  def jitter(self, image_IJ3: np.ndarray) -> np.ndarray:
    """The colour change, uint8 RGB to uint8 RGB."""
    if (self.brightness, self.contrast, self.saturation, self.hue) == (1, 1, 1, 0):
      return image_IJ3
    # Contrast scales about the mean luma of the brightened image.
    mean = self.brightness * float(GRAY @ cv2.mean(image_IJ3)[:3])
    offset = np.full((3, 1), (1 - self.contrast) * mean, np.float32)
    change_34 = np.hstack([self.matrix, offset])
    return cv2.transform(np.ascontiguousarray(image_IJ3), change_34)

  @functools.cached_property
  def matrix(self) -> np.ndarray:
    """[3, 3] float32 that takes an RGB pixel to its new colour, but for what contrast adds."""
    saturate = self.saturation * np.eye(3) + (1 - self.saturation) * GRAY
    # A rotation about the grey axis (1, 1, 1), by Rodrigues' formula.
    angle = 2 * np.pi * self.hue
    cos = np.cos(angle)
    sin = np.sin(angle) / np.sqrt(3)  # The axis has length 1.
    cross = np.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn = cos * np.eye(3) + (1 - cos) / 3 + sin * cross
    return (self.brightness * self.contrast * turn @ saturate).astype(np.float32)


CENTER_CROP = Augmentation()  # What evaluation and control use after training with augmentation.


def use_one_thread() -> None:
  """For readers, whose own threads and processes work side by side: images are small.

  Of NumPy's products, too, whose threads wait for each other: where other programs have the cores,
  an image takes ten times as long by two of them as by one, and at worst seconds.
  """
  cv2.setNumThreads(1)
  threadpoolctl.threadpool_limits(1, user_api='blas')


def sample_augmentation(rng: np.random.Generator) -> Augmentation:
  """A random crop and jitter with the reference's ranges."""
  # In this order: what a seed draws must not change.
  brightness, contrast, saturation = (1 + rng.uniform(-width, width) for width in (0.3, 0.4, 0.5))
  return Augmentation(
    crop_row=rng.uniform(),
    crop_column=rng.uniform(),
    brightness=brightness,
    contrast=contrast,
    saturation=saturation,
    hue=rng.uniform(-0.08, 0.08),
  )


def compose(
  record: record_lib.Embodiment,
  views: Mapping[str, np.ndarray],
  augmentation: Augmentation | None = None,
) -> np.ndarray:
  """The composite image [I, J, 3] uint8: every view in its rectangle, black elsewhere.

  Args:
    views: view key to [rows, columns, 3] uint8 RGB of any size, as stored.
    augmentation: applied to each view alike.
  Raises:
    ValueError: a view is missing, or is not uint8 RGB.
  Source: DreamZero `DreamTransform._prepare_video`.
  """
  composite_IJ3 = np.zeros((*record.composite, 3), np.uint8)
  for view in record.views:
    image = flip(_check_view(record, views, view.key), view.flip)
    if augmentation is not None:
      image = augmentation.jitter(augmentation.crop(image))
    image = resize(image, view.height, view.width // view.repeat, record.resize)
    if view.repeat > 1:
      image = cv2.resize(image, (view.width, view.height), interpolation=cv2.INTER_NEAREST)
    get_tile(composite_IJ3, view)[:] = image
  return composite_IJ3


def get_tile(composite_IJ3: np.ndarray, view: record_lib.View) -> np.ndarray:
  """The rectangle of a view in a composite, as a view of it."""
  rows = slice(view.row, view.row + view.height)
  columns = slice(view.column, view.column + view.width)
  return composite_IJ3[rows, columns]


def flip(image_IJ3: np.ndarray, axes: str) -> np.ndarray:
  """The image upside down ('rows'), mirrored ('columns'), 'both', or as it is ('')."""
  rows = -1 if axes in ('rows', 'both') else 1
  columns = -1 if axes in ('columns', 'both') else 1
  return image_IJ3[::rows, ::columns]


def _check_view(record, views, key):
  if key not in views:
    raise ValueError(
      f'View {key!r} of {record.name!r} is missing; got {sorted(views)}, '
      f'expected {[v.key for v in record.views]}.'
    )
  image = np.asarray(views[key])
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise ValueError(
      f'View {key!r} of {record.name!r} is {image.dtype} {image.shape}; '
      'expected uint8 RGB of shape (rows, columns, 3).'
    )
  return image


def resize(image_IJ3: np.ndarray, rows: int, columns: int, kind: str = 'area') -> np.ndarray:
  """A uint8 image at another size.

  Args:
    kind: 'area', the mean of the pixels covered when both sides shrink and linear otherwise,
      rounded; or 'bilinear', where a side that shrinks is averaged under a triangle as wide as two
      new pixels, rounded down (the reference).
  Source: PyTorch `interpolate(mode='bilinear', antialias=True)` on float images, then a cast to
  uint8.
  """
  if image_IJ3.shape[:2] == (rows, columns):
    return image_IJ3
  if kind == 'area':
    shrinking = rows <= image_IJ3.shape[0] and columns <= image_IJ3.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(image_IJ3, (columns, rows), interpolation=interpolation)

  pixels = _scratch.get_array('old', image_IJ3.shape)
  np.copyto(pixels, image_IJ3)
  if rows < pixels.shape[0]:
    pixels = _shrink(pixels, rows)
  if columns < pixels.shape[1]:
    pixels = cv2.transpose(_shrink(cv2.transpose(pixels), columns))
  if pixels.shape[:2] != (rows, columns):
    enlarged = _scratch.get_array('new', (rows, columns, 3))
    pixels = cv2.resize(pixels, (columns, rows), enlarged, interpolation=cv2.INTER_LINEAR)
  # OpenCV rounds to nearest; half a level less is down, and a little more than that leaves whole
  # levels what they are in spite of float rounding.
  return cv2.convertScaleAbs(pixels, alpha=1, beta=-0.49)


class _Scratch(threading.local):
  """Memory of one thread that is used again for every image: fresh pages would cost more than the
  arithmetic.
  """

  def __init__(self):
    self._held: dict[str, np.ndarray] = {}

  def get_array(self, use: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array with any content, valid until the next call with this `use`."""
    size = math.prod(shape)
    if use not in self._held or self._held[use].size < size:
      self._held[use] = np.empty(size, np.float32)
    return self._held[use][:size].reshape(shape)


_scratch = _Scratch()


def _shrink(x_IJ3: np.ndarray, rows: int) -> np.ndarray:
  """The image with fewer rows, each a mean of the old ones under a triangle."""
  flat = np.ascontiguousarray(x_IJ3).reshape(x_IJ3.shape[0], -1)
  out = _scratch.get_array('shrunk', (rows, flat.shape[1]))
  for band in _make_bands(x_IJ3.shape[0], rows):
    np.matmul(band.weights, flat[band.source], out=out[band.target])
  return out.reshape(rows, *x_IJ3.shape[1:])


class _Band(NamedTuple):
  """Rows of a smaller image, the old rows that they see, and the weights between them."""

  target: slice
  source: slice
  weights: np.ndarray


@functools.lru_cache(maxsize=64)
def _make_bands(old: int, new: int) -> tuple[_Band, ...]:
  """How `old` rows become `new` ones, a band at a time: most weights between all of them are 0."""
  # Distances between pixel centres, in old rows; the triangle reaches one new row to each side.
  scale = old / new
  old_centre = np.arange(old) + 0.5
  new_centre = scale * (np.arange(new)[:, None] + 0.5)
  distance = old_centre - new_centre
  weights = np.maximum(1 - np.abs(distance) / scale, 0)
  # At the edges a part of the triangle lies outside the image.
  weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
  bands = []
  for start in range(0, new, BAND):
    target = slice(start, start + BAND)
    seen = np.flatnonzero(weights[target].any(0))
    source = slice(seen[0], seen[-1] + 1)
    bands.append(_Band(target, source, np.ascontiguousarray(weights[target, source])))
  return tuple(bands)
