"""Camera images to the composite that the model sees: flips, crops, colour, sizes and tiling.

Shared by training and control, so that both see the same pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Mapping

import cv2
import numpy as np

from wam_jax.data import embodiments

CROP = 0.95  # Share of rows and columns that augmented training sees.
GRAY = np.float32([0.299, 0.587, 0.114])  # Luma of red, green and blue.
BAND = 16  # Output rows that are averaged at a time when an image shrinks.


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """A crop and a colour change, one for all views and frames of a sample. Source: spec 5.6.

  The colour change is one matrix, so that it costs a tenth of decoding the image. The reference
  changes brightness, contrast, saturation and hue one after the other in random order, clips after
  each, and turns the hue of HSV; here their order is fixed, values are clipped once, and hue is an
  angle about the grey axis.

  Attributes:
    crop_row, crop_column: where the crop lies, 0 top or left, 1 bottom or right.
    brightness, contrast, saturation: factors, 1 for no change.
    hue: rotation in turns; a third takes red to green.
  """

  crop_row: float = 0.5
  crop_column: float = 0.5
  brightness: float = 1.0
  contrast: float = 1.0
  saturation: float = 1.0
  hue: float = 0.0

  def crop(self, image_IJ3: np.ndarray) -> np.ndarray:
    """The crop of a view at its stored resolution, as a view of the image."""
    rows, columns = (int(CROP * n) for n in image_IJ3.shape[:2])
    top = round(self.crop_row * (image_IJ3.shape[0] - rows))
    left = round(self.crop_column * (image_IJ3.shape[1] - columns))
    return image_IJ3[top : top + rows, left : left + columns]

  def jitter(self, image_IJ3: np.ndarray) -> np.ndarray:
    """The colour change, uint8 RGB to uint8 RGB."""
    if (self.brightness, self.contrast, self.saturation, self.hue) == (1, 1, 1, 0):
      return image_IJ3
    mean = self.brightness * float(GRAY @ cv2.mean(image_IJ3)[:3])
    offset = np.full((3, 1), (1 - self.contrast) * mean, np.float32)
    return cv2.transform(np.ascontiguousarray(image_IJ3), np.hstack([self._matrix, offset]))

  @functools.cached_property
  def _matrix(self) -> np.ndarray:
    """[3, 3] that takes a pixel to its new colour, but for what contrast adds."""
    saturate = self.saturation * np.eye(3) + (1 - self.saturation) * GRAY
    cos, sin = np.cos(2 * np.pi * self.hue), np.sin(2 * np.pi * self.hue) / np.sqrt(3)
    turn = cos * np.eye(3) + (1 - cos) / 3 + sin * np.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return (self.brightness * self.contrast * turn @ saturate).astype(np.float32)


CENTER_CROP = Augmentation()  # What evaluation and control use after training with augmentation.


def use_one_thread() -> None:
  """For readers, whose own threads and processes work side by side: images are small."""
  cv2.setNumThreads(1)


def sample_augmentation(rng: np.random.Generator) -> Augmentation:
  """A random crop and jitter with the reference's ranges."""
  around = [1 + rng.uniform(-w, w) for w in (0.3, 0.4, 0.5)]
  return Augmentation(rng.uniform(), rng.uniform(), *around, hue=rng.uniform(-0.08, 0.08))


def compose(
  record: embodiments.Embodiment,
  views: Mapping[str, np.ndarray],
  augmentation: Augmentation | None = None,
) -> np.ndarray:
  """The composite image [I, J, 3] uint8: every view in its rectangle, black elsewhere.

  Args:
    views: view key to [rows, columns, 3] uint8 RGB of any size, as stored.
    augmentation: applied to each view alike.
  Raises:
    ValueError: a view is missing, or is not uint8 RGB.
  Source: spec 5.6, 5.7.
  """
  composite_IJ3 = np.zeros((*record.composite, 3), np.uint8)
  for view in record.views:
    image = flip(_check_view(record, views, view.key), view.flip)
    if augmentation is not None:
      image = augmentation.jitter(augmentation.crop(image))
    image = resize(image, view.height, view.width // view.repeat, record.resize)
    if view.repeat > 1:
      image = cv2.resize(image, (view.width, view.height), interpolation=cv2.INTER_NEAREST)
    composite_IJ3[view.row : view.row + view.height, view.column : view.column + view.width] = image
  return composite_IJ3


def flip(image_IJ3: np.ndarray, axes: str) -> np.ndarray:
  """The image upside down ('rows'), mirrored ('columns'), 'both', or as it is ('')."""
  return {
    '': lambda x: x,
    'rows': lambda x: x[::-1],
    'columns': lambda x: x[:, ::-1],
    'both': lambda x: x[::-1, ::-1],
  }[axes](image_IJ3)


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
    return cv2.resize(
      image_IJ3, (columns, rows), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    )
  x = _scratch.array('old', image_IJ3.shape)
  np.copyto(x, image_IJ3)
  if rows < x.shape[0]:
    x = _shrink(x, rows)
  if columns < x.shape[1]:
    x = cv2.transpose(_shrink(cv2.transpose(x), columns))
  if x.shape[:2] != (rows, columns):
    x = cv2.resize(
      x, (columns, rows), _scratch.array('new', (rows, columns, 3)), interpolation=cv2.INTER_LINEAR
    )
  return cv2.convertScaleAbs(
    x, alpha=1, beta=-0.49
  )  # To nearest, so down, but for float rounding of whole levels.


class _Scratch(threading.local):
  """Memory of one thread that is used again for every image: fresh pages would cost more than the
  arithmetic.
  """

  def __init__(self):
    self._held: dict[str, np.ndarray] = {}

  def array(self, use: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array with any content, valid until the next call with this `use`."""
    size = math.prod(shape)
    if use not in self._held or self._held[use].size < size:
      self._held[use] = np.empty(size, np.float32)
    return self._held[use][:size].reshape(shape)


_scratch = _Scratch()


def _shrink(x_IJ3: np.ndarray, rows: int) -> np.ndarray:
  """The image with fewer rows, each a mean of the old ones under a triangle."""
  flat = np.ascontiguousarray(x_IJ3).reshape(x_IJ3.shape[0], -1)
  out = _scratch.array('shrunk', (rows, flat.shape[1]))
  for target, source, weights in _bands(x_IJ3.shape[0], rows):
    np.matmul(weights, flat[source], out=out[target])
  return out.reshape(rows, *x_IJ3.shape[1:])


@functools.lru_cache(maxsize=64)
def _bands(old: int, new: int) -> tuple[tuple[slice, slice, np.ndarray], ...]:
  """Rows of the result, the old rows that they see, and the weights between them, a band at a
  time.
  """
  scale = old / new
  distance = np.arange(old) + 0.5 - scale * (np.arange(new)[:, None] + 0.5)
  weights = np.maximum(1 - np.abs(distance) / scale, 0)
  weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
  bands = []
  for start in range(0, new, BAND):
    seen = np.flatnonzero(weights[start : start + BAND].any(0))
    source = slice(seen[0], seen[-1] + 1)
    bands.append(
      (
        slice(start, start + BAND),
        source,
        np.ascontiguousarray(weights[start : start + BAND, source]),
      )
    )
  return tuple(bands)
