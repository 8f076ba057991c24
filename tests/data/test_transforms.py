"""Tiling puts every quadrant in its place; augmentation is one for all views; the tokenizer's ids by hand."""
from __future__ import annotations

import dataclasses
import zlib

import cv2
import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import transforms

View = embodiments.View


def paint_quadrants(rows, columns, colours) -> np.ndarray:
  """An image of four flat quadrants: top left, top right, bottom left, bottom right."""
  image = np.zeros((rows, columns, 3), np.uint8)
  for i, colour in enumerate(colours):
    top, left = i // 2 * rows // 2, i % 2 * columns // 2
    image[top:top + rows // 2, left:left + columns // 2] = colour
  return image


def test_painted_quadrants_land_in_their_rectangles():
  colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
  record = embodiments.Embodiment(
      'four', (View('a', 0, 0, 16, 32), View('b', 16, 0, 16, 16), View('c', 16, 16, 16, 8)), (32, 32), (), (),
      10.0, 2.5, 0.8)
  views = {'a': paint_quadrants(8, 16, colours),      # Enlarged.
           'b': paint_quadrants(16, 16, colours),     # As it is.
           'c': paint_quadrants(64, 64, colours[::-1])}  # Shrunk, and narrowed.
  got = transforms.compose(record, views)
  for (row, column), colour in zip([(3, 3), (3, 28), (12, 3), (12, 28)], colours):
    np.testing.assert_array_equal(got[row, column], colour)
  np.testing.assert_array_equal(got[16:, :16], views['b'])
  np.testing.assert_array_equal(got[16:, 16:24], paint_quadrants(16, 8, colours[::-1]))
  np.testing.assert_array_equal(got[16:, 24:], 0)  # No view there.


def test_resize_averages_when_shrinking():
  image = np.zeros((4, 4, 3), np.uint8)
  image[::2] = 200
  np.testing.assert_array_equal(transforms.resize(image, 2, 2), np.full((2, 2, 3), 100))


def test_view_errors():
  with pytest.raises(ValueError, match=r"View 'wrist' of 'clock' is missing; got \['top'\]"):
    transforms.compose(synthetic.CLOCK, {'top': np.zeros((8, 8, 3), np.uint8)})
  with pytest.raises(ValueError, match=r"View 'top' of 'clock' is float64 \(8, 8, 3\); expected uint8 RGB"):
    transforms.compose(synthetic.CLOCK, {'top': np.zeros((8, 8, 3))})


def test_augmentation_without_change_is_the_centre_crop():
  image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  np.testing.assert_array_equal(transforms.CENTER_CROP.crop(image), image[1:39, 2:59])  # 38 x 57 of 40 x 60.
  np.testing.assert_array_equal(transforms.CENTER_CROP.jitter(image), image)


def test_jitter_by_hand():
  image = np.full((4, 4, 3), (100, 50, 200), np.uint8)
  darker = transforms.Augmentation(brightness=0.5).jitter(image)
  np.testing.assert_allclose(darker[0, 0], (50, 25, 100), atol=1)  # uint8 rounding.
  gray = transforms.Augmentation(saturation=0.0).jitter(image)
  np.testing.assert_allclose(gray[0, 0], [0.299 * 100 + 0.587 * 50 + 0.114 * 200] * 3, atol=1)
  halves = paint_quadrants(4, 4, [(0,) * 3, (0,) * 3, (200,) * 3, (200,) * 3])
  flat = transforms.Augmentation(contrast=0.0).jitter(halves)
  np.testing.assert_allclose(flat, 100, atol=1)
  turned = transforms.Augmentation(hue=1 / 3).jitter(np.full((4, 4, 3), (200, 0, 0), np.uint8))
  np.testing.assert_allclose(turned[0, 0], (0, 200, 0), atol=2)  # A third of a turn: red to green.


def test_one_augmentation_for_all_views_and_reproducible():
  a = transforms.sample_augmentation(np.random.default_rng(3))
  assert a == transforms.sample_augmentation(np.random.default_rng(3)) != transforms.sample_augmentation(
      np.random.default_rng(4))
  image = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8), (16, 16))
  record = embodiments.Embodiment(
      'twins', (View('a', 0, 0, 16, 16), View('b', 0, 16, 16, 16)), (16, 32), (), (), 10.0, 2.5, 0.8)
  got = transforms.compose(record, {'a': image, 'b': image}, a)
  np.testing.assert_array_equal(got[:, :16], got[:, 16:])
  assert np.abs(got[:, :16].astype(int) - image).max() > 5


def test_tokenize_by_hand():
  ids = transforms.tokenize("Push the RED block, 3 times; don't", 6, 100)
  words = ['push', 'the', 'red', 'block', '3', 'times']
  np.testing.assert_array_equal(ids, [1 + zlib.crc32(w.encode()) % 99 for w in words])
  np.testing.assert_array_equal(transforms.tokenize('-- go!', 4, 100), [1 + zlib.crc32(b'go') % 99, 0, 0, 0])
  assert transforms.tokenize('', 3, 100).tolist() == [0, 0, 0] and ids.dtype == np.int32


def test_prompt_fills_every_brace():
  record = dataclasses.replace(synthetic.CLOCK, prompt='A robot {} now. It should {}.')
  assert transforms.prompt(record, ' Push IT ') == 'A robot push it now. It should push it.'
