"""The fast painter and `images.compose` make the same pictures, up to one level of 255."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from wam_jax.data import embodiments
from wam_jax.data import images
from wam_jax.data import record as record_lib
from wam_jax.data import tiles

View = record_lib.View
DROID = embodiments.get('droid')
FLIPPED = dataclasses.replace(
  DROID,
  name='flipped',
  views=tuple(
    dataclasses.replace(view, flip=flip)
    for view, flip in zip(DROID.views, ('rows', 'columns', 'both'))
  ),
)
# A gap below and beside; one side shrinks.
THIRDS = dataclasses.replace(
  DROID,
  name='thirds',
  views=(
    *(View(v.key, row, 0, 176, 320) for v, row in zip(DROID.views[:2], (0, 176))),
    View(DROID.views[2].key, 0, 320, 200, 180, repeat=3),
  ),
)
AREA = dataclasses.replace(DROID, name='area', resize='area')


def make_views(seed=0):
  """Smooth pictures of 180 x 320."""
  # As camera pictures are: noise would show every difference of interpolation.
  rng = np.random.default_rng(seed)
  small = lambda: rng.integers(0, 256, (12, 20, 3), np.uint8)
  return {
    view.key: cv2.resize(small(), (320, 180), interpolation=cv2.INTER_CUBIC) for view in DROID.views
  }


def paint(record, augmentation, views, out=None):
  out = np.full((*record.composite, 3), 99, np.uint8) if out is None else out
  tiles.Painter(record, augmentation).paint(lambda key: views[key][..., ::-1].copy(), out)
  return out


@pytest.mark.parametrize('record', [DROID, FLIPPED, THIRDS, AREA], ids=lambda record: record.name)
@pytest.mark.parametrize('seed', range(3))
def test_paints_what_compose_makes(record, seed):
  augmentation = images.sample_augmentation(np.random.default_rng(seed))
  views = make_views(seed)
  want = images.compose(record, views, augmentation).astype(int)
  got = paint(record, augmentation, views).astype(int)
  assert np.abs(got - want).max() <= 1
  # Neither is brighter.
  assert abs((got - want).mean()) < 0.03


def test_without_a_change_of_colour_only_the_order_of_channels_changes():
  record = dataclasses.replace(
    DROID,
    name='plain',
    resize='area',
    composite=(171, 304),
    views=(View(DROID.views[0].key, 0, 0, 171, 304),),
  )
  views = make_views()
  np.testing.assert_array_equal(
    paint(record, images.CENTER_CROP, views),
    images.compose(record, views, images.CENTER_CROP),
  )


def test_a_painter_remembers_nothing_of_the_image_before():
  augmentation = images.sample_augmentation(np.random.default_rng(0))
  painter = tiles.Painter(DROID, augmentation)
  for seed in (0, 1, 0):
    # The memory that it paints into is not cleared.
    out = np.empty((352, 640, 3), np.uint8)
    painter.paint(lambda key, seed=seed: make_views(seed)[key][..., ::-1].copy(), out)
    np.testing.assert_array_equal(out, paint(DROID, augmentation, make_views(seed)))


def test_tiles_of_a_batch_are_painted_in_place():
  frames_RIJ3 = np.full((3, 352, 640, 3), 7, np.uint8)
  augmentation = images.sample_augmentation(np.random.default_rng(0))
  paint(DROID, augmentation, make_views(), frames_RIJ3[1])
  np.testing.assert_array_equal(frames_RIJ3[1], paint(DROID, augmentation, make_views()))
  assert (frames_RIJ3[[0, 2]] == 7).all()


def test_gaps_by_hand():
  views = (View('a', 0, 0, 6, 8), View('b', 2, 8, 8, 4))
  record = dataclasses.replace(DROID, name='gaps', composite=(10, 20), views=views)
  # Rectangles without overlap that cover what no view does.
  covered = np.zeros((10, 20), int)
  for rows, columns in tiles._find_gaps(record):
    covered[rows, columns] += 1
  want = np.ones((10, 20), int)
  want[:6, :8] = want[2:, 8:12] = 0
  np.testing.assert_array_equal(covered, want)
  assert not tiles._find_gaps(DROID)


def test_columns_are_repeated():
  record = dataclasses.replace(
    DROID,
    name='repeated',
    resize='area',
    composite=(171, 912),
    views=(View(DROID.views[0].key, 0, 0, 171, 912, repeat=3),),
  )
  views = make_views()
  crop = images.CENTER_CROP.crop(views[DROID.views[0].key])
  np.testing.assert_array_equal(paint(record, images.CENTER_CROP, views), crop.repeat(3, axis=1))
