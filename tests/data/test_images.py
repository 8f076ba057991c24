"""Tiling puts every quadrant in its place; augmentation is one for all views; the tokenizer's ids
by hand.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from tests.data import synthetic
from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import record as record_lib
from wam_jax.data import robot as robot_lib

View = record_lib.View


def paint_quadrants(rows, columns, colours) -> np.ndarray:
  """An image of four flat quadrants: top left, top right, bottom left, bottom right."""
  image = np.zeros((rows, columns, 3), np.uint8)
  for i, colour in enumerate(colours):
    top, left = i // 2 * rows // 2, i % 2 * columns // 2
    image[top : top + rows // 2, left : left + columns // 2] = colour
  return image


def test_painted_quadrants_land_in_their_rectangles():
  colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
  record = dataclasses.replace(
    synthetic.VIDEO,
    name='four',
    views=(View('a', 0, 0, 16, 32), View('b', 16, 0, 16, 16), View('c', 16, 16, 16, 8)),
    composite=(32, 32),
  )
  views = {
    # Enlarged; as it is; shrunk, and narrowed.
    'a': paint_quadrants(8, 16, colours),
    'b': paint_quadrants(16, 16, colours),
    'c': paint_quadrants(64, 64, colours[::-1]),
  }
  got = images.compose(record, views)
  for (row, column), colour in zip([(3, 3), (3, 28), (12, 3), (12, 28)], colours):
    np.testing.assert_array_equal(got[row, column], colour)
  np.testing.assert_array_equal(got[16:, :16], views['b'])
  np.testing.assert_array_equal(got[16:, 16:24], paint_quadrants(16, 8, colours[::-1]))
  # No view there.
  np.testing.assert_array_equal(got[16:, 24:], 0)


COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]


def place(record, painted) -> np.ndarray:
  """The composite of a record whose view number i is `painted[i]`."""
  return images.compose(record, {v.key: image for v, image in zip(record.views, painted)})


@pytest.mark.parametrize('name, rows', [('droid', 176), ('droid_wan22', 160)])
def test_droid_layout(name, rows):
  """The reference's: the wrist fills the top row, exterior 1 is bottom left, 2 bottom right."""
  painted = [paint_quadrants(180, 320, COLOURS[i:] + COLOURS[:i]) for i in range(3)]
  got = place(embodiments.get(name), painted)
  # Row, column and width of each view; all are `rows` high.
  rectangles = [
    (rows, 0, 320),
    (rows, 320, 320),
    (0, 0, 640),
  ]
  for shift, (row, column, width) in enumerate(rectangles):
    colours = COLOURS[shift:] + COLOURS[:shift]
    for i, colour in enumerate(colours):
      # Of each quadrant the quarter in its corner, where no neighbour is blended in.
      top = row + (i // 2) * rows * 3 // 4
      left = column + (i % 2) * width * 3 // 4
      corner = got[top : top + rows // 4, left : left + width // 4]
      np.testing.assert_array_equal(corner, np.broadcast_to(colour, corner.shape))

  # The wrist's picture is resized to half the width, and every column shown twice.
  noise = np.random.default_rng(0).integers(0, 256, (180, 320, 3), np.uint8)
  wrist = place(embodiments.get(name), [noise] * 3)[:rows]
  np.testing.assert_array_equal(wrist[:, ::2], wrist[:, 1::2])
  np.testing.assert_array_equal(wrist[:, ::2], images.resize(noise, rows, 320, 'bilinear'))


@pytest.mark.parametrize('name', ['agibot', 'agibot_reference', 'yam'])
def test_quadrant_layout(name):
  """The reference's: view 0 top left, view 1 bottom left, view 2 top right, the rest black."""
  painted = [np.full((480, 640, 3), colour, np.uint8) for colour in COLOURS[:3]]
  got = place(embodiments.get(name), painted)
  want = np.zeros((352, 640, 3), np.uint8)
  want[:176, :320] = COLOURS[0]
  want[176:, :320] = COLOURS[1]
  want[:176, 320:] = COLOURS[2]
  np.testing.assert_array_equal(got, want)


def test_libero_shows_the_same_world_from_files_and_from_the_simulator():
  """The simulator's images are upside down; the published set turned them by half a turn, which
  mirrors them.
  """
  world = paint_quadrants(256, 256, COLOURS)
  simulated = world[::-1]
  stored = simulated[::-1, ::-1]
  want = np.concatenate([paint_quadrants(352, 320, COLOURS)] * 2, axis=1)
  for name, image in (('libero', stored), ('libero_simulator', simulated)):
    got = place(embodiments.get(name), [image, image])
    # Away from the borders of quadrants, which resizing blends.
    for rows, columns in ((slice(0, 150), slice(0, 130)), (slice(200, 352), slice(500, 640))):
      np.testing.assert_array_equal(got[rows, columns], want[rows, columns])

  image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  np.testing.assert_array_equal(images.flip(image, 'both'), image[::-1, ::-1])
  np.testing.assert_array_equal(images.flip(image, ''), image)


@pytest.mark.parametrize('name', ['oxe', 'human'])
def test_a_single_view_fills_the_composite(name):
  got = place(embodiments.get(name), [paint_quadrants(256, 256, COLOURS)])
  assert got.shape == (352, 640, 3)
  np.testing.assert_array_equal(got[[0, 0, -1, -1], [0, -1, 0, -1]], COLOURS)


@pytest.mark.parametrize(
  'old, new',
  [
    # DROID's crop, and its whole picture at the size of the smaller model.
    ((171, 304), (176, 320)),
    ((180, 320), (160, 320)),
    # Cameras of 480 x 640, cropped; of LIBERO.
    ((456, 608), (176, 320)),
    ((256, 256), (352, 320)),
    # Shrunk one way and enlarged the other, by no simple ratio.
    ((40, 50), (17, 64)),
  ],
)
def test_bilinear_is_antialiased_and_rounds_down(old, new):
  image = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
  want = jax.image.resize(image.astype(np.float32), (*new, 3), 'bilinear', antialias=True)
  got = images.resize(image, *new, 'bilinear')
  difference = np.asarray(want) - got
  # Cut off, not rounded: the difference is from 0 to 1, half a level on average. A value a
  # hundredth below the next level may still reach it; float32 rounding is 0.002.
  assert difference.min() > -0.015
  assert difference.max() < 1
  assert difference.mean() > 0.4


def test_bilinear_weights_by_hand():
  """Halving averages four rows under a triangle: 1, 3, 3, 1; at the border 3 and 3 of the first, 1
  of the third.
  """
  image = np.zeros((8, 1, 3), np.uint8)
  image[:, 0, 0] = (0, 70, 140, 210, 0, 80, 160, 240)
  got = images.resize(image, 4, 1, 'bilinear')[:, 0, 0]
  want = (
    (3 * 0 + 3 * 70 + 140) / 7,
    (70 + 3 * 140 + 3 * 210 + 0) / 8,
    (210 + 3 * 0 + 3 * 80 + 160) / 8,
    (80 + 3 * 160 + 3 * 240) / 7,
  )
  np.testing.assert_array_equal(got, np.floor(want))


def test_resize_averages_when_shrinking():
  image = np.zeros((4, 4, 3), np.uint8)
  image[::2] = 200
  np.testing.assert_array_equal(images.resize(image, 2, 2), np.full((2, 2, 3), 100))


def test_one_thread_is_one_of_numpys_products_too():
  """And pixels are the same by one as by several."""
  code = """
import numpy as np
import threadpoolctl
from wam_jax.data import images

image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
count = lambda: {info['num_threads'] for info in threadpoolctl.threadpool_info()}
before, several = count(), images.resize(image, 176, 320)
images.use_one_thread()
np.testing.assert_array_equal(images.resize(image, 176, 320), several)
print(before, count())
"""
  given = {**os.environ, 'OPENBLAS_NUM_THREADS': '2'}
  done = subprocess.run([sys.executable, '-c', code], env=given, capture_output=True, text=True)
  assert done.stdout == '{2} {1}\n', done.stderr


def test_views_that_are_missing_or_no_pictures_are_refused():
  with pytest.raises(ValueError, match=r"View 'wrist' of 'clock' is missing; got \['top'\]"):
    images.compose(synthetic.CLOCK, {'top': np.zeros((8, 8, 3), np.uint8)})
  with pytest.raises(
    ValueError, match=r"View 'top' of 'clock' is float64 \(8, 8, 3\); expected uint8 RGB"
  ):
    images.compose(synthetic.CLOCK, {'top': np.zeros((8, 8, 3))})


def test_augmentation_without_change_is_the_centre_crop():
  image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  # 0.95 of 40 x 60 are 38 x 57.
  np.testing.assert_array_equal(images.CENTER_CROP.crop(image), image[1:39, 2:59])
  np.testing.assert_array_equal(images.CENTER_CROP.jitter(image), image)


def test_centre_crop_of_droid_and_who_uses_it():
  """171 x 304 of 180 x 320 from row 4 and column 8, then 176 x 320, as in the reference."""
  image = np.random.default_rng(0).integers(0, 256, (180, 320, 3), np.uint8)
  np.testing.assert_array_equal(images.CENTER_CROP.crop(image), image[4:175, 8:312])
  record = embodiments.get('droid')
  views = {v.key: image for v in record.views}
  cropped = robot_lib.Robot(0, record, None, center_crop=True).compose(views)
  whole = robot_lib.Robot(0, record, None, center_crop=False).compose(views)
  want = images.resize(image[4:175, 8:312], 176, 320, 'bilinear')
  np.testing.assert_array_equal(cropped[176:, :320], want)
  np.testing.assert_array_equal(cropped, images.compose(record, views, images.CENTER_CROP))
  np.testing.assert_array_equal(whole, images.compose(record, views))
  assert (cropped != whole).mean() > 0.9


def test_jitter_is_the_four_changes_in_order():
  """Against each change on its own, where nothing is clipped."""
  image = np.random.default_rng(0).integers(90, 140, (8, 8, 3), np.uint8)
  a = images.Augmentation(brightness=1.1, contrast=0.8, saturation=1.2, hue=0.05)
  # Brightness scales; contrast pulls towards the mean grey, saturation away from each pixel's grey.
  x = 1.1 * image
  x = 0.8 * x + 0.2 * (x @ images.GRAY).mean()
  x = 1.2 * x - 0.2 * (x @ images.GRAY)[..., None]
  only_hue = dataclasses.replace(images.CENTER_CROP, hue=0.05)
  want = only_hue.jitter(np.rint(x).astype(np.uint8))
  # `want` is rounded once more.
  np.testing.assert_allclose(a.jitter(image).astype(int), want, atol=2)
  # Turning the hue keeps how light a pixel is.
  np.testing.assert_allclose(want.mean(-1), x.mean(-1), atol=1)


def test_jitter_by_hand():
  image = np.full((4, 4, 3), (100, 50, 200), np.uint8)
  # A level of rounding to uint8 everywhere.
  darker = images.Augmentation(brightness=0.5).jitter(image)
  np.testing.assert_allclose(darker[0, 0], (50, 25, 100), atol=1)

  # The weights of ITU-R BT.601.
  luminance = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
  gray = images.Augmentation(saturation=0.0).jitter(image)
  np.testing.assert_allclose(gray[0, 0], [luminance] * 3, atol=1)

  halves = paint_quadrants(4, 4, [(0,) * 3, (0,) * 3, (200,) * 3, (200,) * 3])
  flat = images.Augmentation(contrast=0.0).jitter(halves)
  np.testing.assert_allclose(flat, 100, atol=1)

  # A third of a turn: red to green.
  red = np.full((4, 4, 3), (200, 0, 0), np.uint8)
  turned = images.Augmentation(hue=1 / 3).jitter(red)
  np.testing.assert_allclose(turned[0, 0], (0, 200, 0), atol=2)


def test_one_augmentation_for_all_views_and_reproducible():
  draw = lambda seed: images.sample_augmentation(np.random.default_rng(seed))
  a = draw(3)
  assert a == draw(3)
  assert draw(3) != draw(4)

  # Two cameras that see the same must still see the same.
  image = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8), (16, 16))
  record = dataclasses.replace(
    synthetic.VIDEO,
    name='twins',
    views=(View('a', 0, 0, 16, 16), View('b', 0, 16, 16, 16)),
    composite=(16, 32),
  )
  got = images.compose(record, {'a': image, 'b': image}, a)
  np.testing.assert_array_equal(got[:, :16], got[:, 16:])
  assert np.abs(got[:, :16].astype(int) - image).max() > 5
