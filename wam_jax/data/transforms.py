"""One example in, one out, in numpy: tiling the views, augmentation, and prompts to token ids.

Shared by training and control, so that both see the same pixels and words.
"""
from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
import zlib

import cv2
import numpy as np

from wam_jax.data import embodiments

CROP = 0.95  # Share of rows and columns that augmented training sees.


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """A crop and a colour change, one for all views and frames of a sample. Source: spec 5.6.

  The reference permutes the four colour operations; here their order is fixed.

  Attributes:
    crop_row, crop_column: where the crop lies, 0 top or left, 1 bottom or right.
    brightness, contrast, saturation: factors, 1 for no change.
    hue: rotation in turns.
  """

  crop_row: float = 0.5
  crop_column: float = 0.5
  brightness: float = 1.0
  contrast: float = 1.0
  saturation: float = 1.0
  hue: float = 0.0

  def crop(self, image_IJ3: np.ndarray) -> np.ndarray:
    """The crop of a view at its stored resolution."""
    rows, columns = (int(CROP * n) for n in image_IJ3.shape[:2])
    top = round(self.crop_row * (image_IJ3.shape[0] - rows))
    left = round(self.crop_column * (image_IJ3.shape[1] - columns))
    return image_IJ3[top:top + rows, left:left + columns]

  def jitter(self, image_IJ3: np.ndarray) -> np.ndarray:
    """The colour change, uint8 RGB to uint8 RGB."""
    if (self.brightness, self.contrast, self.saturation, self.hue) == (1, 1, 1, 0):
      return image_IJ3
    x = np.clip(image_IJ3.astype(np.float32) / 255 * self.brightness, 0, 1)
    gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)
    x = np.clip(self.contrast * x + (1 - self.contrast) * gray.mean(), 0, 1)
    gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = np.clip(self.saturation * x + (1 - self.saturation) * gray, 0, 1)
    hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)  # Float images: hue in degrees.
    hsv[..., 0] = (hsv[..., 0] + 360 * self.hue) % 360
    return np.rint(255 * np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1)).astype(np.uint8)


CENTER_CROP = Augmentation()  # What evaluation and control use after training with augmentation.


def sample_augmentation(rng: np.random.Generator) -> Augmentation:
  """A random crop and jitter with the reference's ranges."""
  around = [1 + rng.uniform(-w, w) for w in (0.3, 0.4, 0.5)]
  return Augmentation(rng.uniform(), rng.uniform(), *around, hue=rng.uniform(-0.08, 0.08))


def compose(record: embodiments.Embodiment, views: Mapping[str, np.ndarray],
            augmentation: Augmentation | None = None) -> np.ndarray:
  """The composite image [I, J, 3] uint8: every view resized to its rectangle, black elsewhere.

  Args:
    views: view key to [rows, columns, 3] uint8 RGB of any size.
    augmentation: applied to each view alike.
  Raises:
    ValueError: a view is missing, or is not uint8 RGB.
  """
  composite_IJ3 = np.zeros((*record.composite, 3), np.uint8)
  for view in record.views:
    image = _check_view(record, views, view.key)
    if augmentation is not None:
      image = augmentation.crop(image)
    image = resize(image, view.height, view.width)
    if augmentation is not None:
      image = augmentation.jitter(image)
    composite_IJ3[view.row:view.row + view.height, view.column:view.column + view.width] = image
  return composite_IJ3


def _check_view(record, views, key):
  if key not in views:
    raise ValueError(f'View {key!r} of {record.name!r} is missing; got {sorted(views)}, '
                     f'expected {[v.key for v in record.views]}.')
  image = np.asarray(views[key])
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise ValueError(f'View {key!r} of {record.name!r} is {image.dtype} {image.shape}; '
                     'expected uint8 RGB of shape (rows, columns, 3).')
  return image


def resize(image_IJ3: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """`image_IJ3` at another size: area average when shrinking, linear otherwise."""
  if image_IJ3.shape[:2] == (rows, columns):
    return image_IJ3
  shrinking = rows <= image_IJ3.shape[0] and columns <= image_IJ3.shape[1]
  return cv2.resize(image_IJ3, (columns, rows), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def prompt(record: embodiments.Embodiment, instruction: str) -> str:
  """The record's template with the lower-cased instruction at every `{}`."""
  return record.prompt.replace('{}', instruction.strip().lower())


@functools.lru_cache(maxsize=65536)
def tokenize(text: str, length: int, vocab: int) -> np.ndarray:
  """[length] int32 ids: 1 + crc32(word) % (vocab - 1) for each lower-cased word, 0 padding, truncated. Read-only.

  Words are runs of letters and digits. The hash is the same on every machine and in every Python.
  """
  words = re.findall(r'[^\W_]+', text.lower())[:length]
  ids_P = np.zeros(length, np.int32)
  ids_P[:len(words)] = [1 + zlib.crc32(word.encode()) % (vocab - 1) for word in words]
  ids_P.flags.writeable = False
  return ids_P
